from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.errors import ConfigurationError
from fleet.scaling import ScaleLimits, ScaleState, Scaling, decide
from tests.fleet_parts import stats

LIMITS = ScaleLimits(least=1, most=4, jobs_per_replica=2.0)
BUSY = frozenset({"a job"})


def test_more_are_asked_for_when_it_was_so_for_a_while() -> None:
    state, scaling = decide(LIMITS, ScaleState(), 100.0, {"dev": 5}, [stats("a")], {})
    assert scaling == Scaling(target=1, reason="5 jobs for 1 replicas, wanted 3; for 0 of 10 s")
    state, scaling = decide(LIMITS, state, 109.0, {"dev": 5}, [stats("a")], {})
    assert scaling.target == 1
    state, scaling = decide(LIMITS, state, 110.0, {"dev": 5}, [stats("a")], {})
    assert (scaling.target, state) == (3, ScaleState())


def test_queue_that_was_long_for_a_moment_asks_for_nothing() -> None:
    state, _ = decide(LIMITS, ScaleState(), 100.0, {"dev": 9}, [stats("a")], {})
    state, _ = decide(LIMITS, state, 105.0, {}, [stats("a", jobs=BUSY)], {})
    _, scaling = decide(LIMITS, state, 111.0, {"dev": 9}, [stats("a")], {})
    assert scaling.target == 1


def test_no_more_than_the_most_are_asked_for() -> None:
    state, _ = decide(LIMITS, ScaleState(), 0.0, {"dev": 900}, [stats("a")], {})
    _, scaling = decide(LIMITS, state, 60.0, {"dev": 900}, [stats("a")], {})
    assert scaling.target == 4


def test_fewer_than_the_least_are_made_up_for_at_once() -> None:
    _, scaling = decide(ScaleLimits(least=2, most=4), ScaleState(), 0.0, {}, [stats("a")], {})
    assert scaling.target == 2


def test_first_replica_of_none_comes_at_once() -> None:
    _, scaling = decide(ScaleLimits(least=0, most=4), ScaleState(), 0.0, {"dev": 1}, [], {})
    assert scaling.target == 1


def test_one_goes_after_the_other() -> None:
    idle = [stats("a"), stats("b"), stats("c")]
    state, scaling = decide(LIMITS, ScaleState(), 0.0, {}, idle, {})
    assert (scaling.target, scaling.drain) == (3, None)
    state, scaling = decide(LIMITS, state, 600.0, {}, idle, {})
    assert (scaling.target, scaling.drain) == (2, "a")
    leaving = [stats("a", is_draining=True), *idle[1:]]
    state, scaling = decide(LIMITS, state, 605.0, {}, leaving, {})
    assert (scaling.target, scaling.drain, scaling.gone) == (2, None, ("a",))
    _, scaling = decide(LIMITS, state, 1205.0, {}, idle[1:], {})
    assert scaling.drain == "b"


def test_least_are_kept() -> None:
    _, scaling = decide(LIMITS, ScaleState(fewer_since=0.0), 9999.0, {}, [stats("a")], {})
    assert (scaling.target, scaling.drain) == (1, None)


def test_replica_with_a_job_does_not_go() -> None:
    both = [stats("a", jobs=BUSY), stats("b", jobs=frozenset({"another"}))]
    limits = ScaleLimits(least=1, most=4, jobs_per_replica=8.0)
    _, scaling = decide(limits, ScaleState(fewer_since=0.0), 9999.0, {}, both, {})
    assert (scaling.target, scaling.drain) == (2, None)
    assert "every replica has a job" in scaling.reason


def test_only_replica_of_a_model_that_is_asked_for_often_does_not_go() -> None:
    both = [stats("a", ["dev"]), stats("b", ["klein"])]
    often = {"dev": 1 / 30, "klein": 1 / 300}
    _, scaling = decide(LIMITS, ScaleState(fewer_since=0.0), 9999.0, {}, both, often)
    assert scaling.drain == "b"


def test_replica_whose_models_are_elsewhere_goes_first() -> None:
    three = [stats("a", ["dev"]), stats("b", ["klein"]), stats("c", ["klein"])]
    seldom = {"dev": 1 / 200, "klein": 1 / 300}
    _, scaling = decide(LIMITS, ScaleState(fewer_since=0.0), 9999.0, {}, three, seldom)
    assert scaling.drain == "b"


def test_drained_replica_goes_when_its_last_job_has_ended() -> None:
    busy = [stats("a", is_draining=True, jobs=BUSY), stats("b")]
    assert decide(LIMITS, ScaleState(), 0.0, {}, busy, {})[1].gone == ()
    done = [stats("a", is_draining=True), stats("b")]
    assert decide(LIMITS, ScaleState(), 0.0, {}, done, {})[1].gone == ("a",)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"least": 3, "most": 2}, "at least 3 and at most 2"),
        ({"least": -1}, "at least -1"),
        ({"jobs_per_replica": 0.0}, "jobs_per_replica is 0"),
    ],
)
def test_limits_that_contradict_each_other_are_refused(
    values: dict[str, float], words: str
) -> None:
    with pytest.raises(ConfigurationError, match=words):
        ScaleLimits(**values)


@given(
    st.lists(st.tuples(st.booleans(), st.sampled_from(["dev", "klein"])), max_size=6),
    st.dictionaries(st.sampled_from(["dev", "klein"]), st.integers(0, 40)),
    st.dictionaries(st.sampled_from(["dev", "klein"]), st.floats(0, 1)),
    st.floats(0, 2000),
)
def test_target_is_within_the_limits_and_nobody_busy_goes(
    replicas: list[tuple[bool, str]],
    waiting: dict[str, int],
    demand: dict[str, float],
    since: float,
) -> None:
    known = [
        stats(f"r{place}", [model], jobs=frozenset({f"j{place}"} if busy else ()))
        for place, (busy, model) in enumerate(replicas)
    ]
    state = ScaleState(more_since=0.0, fewer_since=0.0)
    _, scaling = decide(LIMITS, state, since, waiting, known, demand)
    assert scaling.target <= max(LIMITS.most, len(known))
    assert scaling.target >= min(LIMITS.least, len(known))
    leaver = next((each for each in known if each.replica == scaling.drain), None)
    if leaver is not None:
        assert not leaver.jobs
        others = {model for each in known if each is not leaver for model in each.models}
        assert all(
            model in others or not waiting.get(model) and demand.get(model, 0.0) < 1 / 60
            for model in leaver.models
        )
