from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.replica import ReplicaStats
from fleet.simulator import CardModel, Failure, OurPolicy, Result, SimCard, SimJob, World
from tests.fleet_parts import CARD, SECONDS, cards

MODELS = sorted(SECONDS)


def traffic(count: int, rate: float, seed: int = 1, models: Sequence[str] = MODELS) -> list[SimJob]:
    source = random.Random(seed)
    now, jobs = 0.0, []
    for place in range(count):
        now += source.expovariate(rate) if rate else 0.0
        jobs.append(SimJob(job=f"j{place}", at=now, model=source.choice(models)))
    return jobs


def run(fleet: list[SimCard], jobs: Sequence[SimJob], **values: object) -> Result:
    policy = values.pop("policy", None) or OurPolicy()
    return World(cards=fleet, jobs=jobs, policy=policy, **values).run()  # type: ignore[arg-type]


def test_job_waits_for_the_load_and_takes_its_time() -> None:
    job = SimJob(job="j", at=10.0, model="dev", work=2.0)
    result = run(cards(1), [job], latency_seconds=0.5)
    (outcome,) = result.outcomes
    assert outcome.began == pytest.approx(10.0 + 0.5 + 6.0)
    assert outcome.ended == pytest.approx(16.5 + 10.0)
    assert (result.loads, result.mean_wait) == (1, pytest.approx(6.5))


def test_model_that_was_used_longest_ago_leaves() -> None:
    fleet = cards(1, dataclasses.replace(CARD, memory_gib=50.0))
    names = ["dev", "klein", "dev", "schnell"]
    jobs = [SimJob(job=f"j{i}", at=100.0 * i, model=name) for i, name in enumerate(names)]
    result = run(fleet, jobs)
    assert fleet[0].models == ("schnell",)  # neither fits beside it
    assert result.loads == 3


def test_change_of_loras_takes_its_time() -> None:
    jobs = [
        SimJob(job=f"j{i}", at=100.0 * i, model="dev", lora_set=name)
        for i, name in enumerate(["", "sketch", "sketch", ""])
    ]
    result = run(cards(1), jobs, latency_seconds=0.0)
    assert result.lora_changes == 2
    assert [outcome.waited for outcome in result.outcomes] == pytest.approx([6.0, 0.5, 0.0, 0.5])


def test_job_of_a_card_that_dies_is_drawn_elsewhere() -> None:
    jobs = traffic(60, rate=1.0)
    failures = (Failure(card=0, at=20.0, back_at=90.0), Failure(card=1, at=60.0, back_at=61.0))
    result = run(cards(2), jobs, failures=failures)
    assert result.lost == 0
    assert sum(outcome.tries for outcome in result.outcomes) > len(jobs)
    assert result.sends == sum(outcome.tries for outcome in result.outcomes)


def test_same_traffic_gives_the_same_decisions() -> None:
    both = [OurPolicy(), OurPolicy()]
    for policy in both:
        run(cards(3), traffic(100, rate=2.0), policy=policy)
    assert both[0].decisions == both[1].decisions


class Lazy(OurPolicy):
    """Gives nothing out before a minute has gone by."""

    def _give_out(self) -> None:
        if self._world.now > 60:
            super()._give_out()


def test_card_that_idles_while_somebody_waits_is_noticed() -> None:
    jobs = traffic(5, rate=1.0)
    result = run(cards(1), jobs, policy=Lazy())
    assert result.ready_while_waiting_seconds > 50
    with pytest.raises(AssertionError, match="c0 could have begun with .* and did nothing until"):
        run(cards(1), jobs, policy=Lazy(), is_strict=True)


def test_reports_that_are_rare_and_late_lose_nothing() -> None:
    jobs = traffic(80, rate=1.5)
    fleet = cards(3)
    result = run(fleet, jobs, latency_seconds=0.7, report_seconds=30.0)
    assert result.lost == 0
    assert result.sends == len(jobs)


def test_two_nodes_do_what_both_do_alone() -> None:
    jobs = traffic(200, rate=0.0)
    alone = sum(run(cards(1), jobs).rate for _ in range(2))
    assert run(cards(2), jobs, is_strict=True, latency_seconds=0.0).rate >= 0.9 * alone


def test_without_patience_no_card_idles_while_somebody_waits() -> None:
    policy = OurPolicy(patience_seconds=0.0)
    result = run(cards(2), traffic(150, rate=0.6), policy=policy, latency_seconds=0.0)
    assert result.idle_while_waiting_seconds == 0.0


def test_memory_for_all_models_leaves_no_card_idle_while_somebody_waits() -> None:
    roomy = dataclasses.replace(CARD, memory_gib=90.0)
    result = run(cards(2, roomy), traffic(150, rate=0.6), is_strict=True, latency_seconds=0.0)
    assert result.idle_while_waiting_seconds == 0.0
    assert result.loads == 6


def test_patience_spares_loads_and_time() -> None:
    roomy = dataclasses.replace(CARD, memory_gib=78.0)
    jobs = traffic(200, rate=0.5)
    patient = run(cards(2, roomy), jobs)
    hasty = run(cards(2, roomy), jobs, policy=OurPolicy(patience_seconds=0.0))
    assert patient.loads < 0.5 * hasty.loads
    assert patient.mean_wait < hasty.mean_wait


@st.composite
def kinds(draw: st.DrawFn) -> CardModel:
    known = draw(st.lists(st.sampled_from(MODELS), min_size=1, unique=True))
    return dataclasses.replace(
        CARD,
        memory_gib=draw(st.sampled_from([16.0, 34.0, 50.0, 90.0])),
        model_gib={model: CARD.model_gib[model] for model in known},
        job_seconds={model: SECONDS[model] * draw(st.sampled_from([1, 3])) for model in known},
        resources=draw(st.sampled_from([frozenset({"fp4"}), frozenset({"bf16"})])),
    )


@given(
    st.lists(kinds(), min_size=1, max_size=4),
    st.sampled_from([0.0, 0.3, 2.0]),
    st.integers(0, 99),
    st.sampled_from([0.0, 30.0]),
    st.booleans(),
)
@settings(deadline=None, max_examples=30)
def test_no_card_that_could_begin_idles_and_every_job_ends(
    fleet: list[CardModel], rate: float, seed: int, patience_seconds: float, dies: bool
) -> None:
    made = [SimCard(f"c{i}", f"n{i}", kind, frozenset()) for i, kind in enumerate(fleet)]
    known = {model for kind in fleet for model in kind.model_gib}
    able = [
        model
        for model in sorted(known)
        if any(kind.model_gib.get(model, 999.0) <= kind.memory_gib for kind in fleet)
    ]
    if not able:
        return
    result = run(
        made,
        traffic(25, rate, seed, able),
        policy=OurPolicy(patience_seconds=patience_seconds),
        latency_seconds=0.0,
        is_strict=True,
        failures=(Failure(card=0, at=7.0, back_at=30.0),) if dies else (),
    )
    assert result.lost == 0
    assert result.ready_while_waiting_seconds == 0.0
    if not patience_seconds:
        assert result.idle_while_waiting_seconds == 0.0


def test_report_is_of_the_moment_it_was_made() -> None:
    seen: list[ReplicaStats] = []

    class Listening(OurPolicy):
        def reported(self, card: SimCard, stats: ReplicaStats) -> None:
            seen.append(stats)
            super().reported(card, stats)

    run(cards(1), [SimJob(job="j", at=0.0, model="dev")], policy=Listening(), report_seconds=0.0)
    assert [stats.jobs for stats in seen] == [frozenset(), frozenset({"j"})]
    assert seen[1].finishing == frozenset({"j"})
