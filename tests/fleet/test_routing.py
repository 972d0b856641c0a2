from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fleet.preference import Tier, rank
from fleet.replica import Profile, ReplicaStats
from fleet.routing import PASSES, Router
from fleet.wanted import Wanted
from tests.fleet_parts import SIZES, Clock, begun, pairs, stats, wanted

# Who gets a job


def test_idle_card_with_the_model_is_before_one_with_room() -> None:
    router = Router()
    router.report(stats("a"))
    router.report(stats("b", ["dev"]))
    router.wait(wanted(1, "dev"))
    (decision,) = begun(router)
    assert (decision.replica, decision.tier, decision.loads) == ("b", Tier.MODEL, False)
    assert decision.reason == "idle, has dev loaded"


def test_idle_card_with_the_loras_is_before_one_with_the_model_alone() -> None:
    router = Router()
    router.report(stats("a", ["dev"]))
    router.report(stats("b", ["dev"], lora_sets=frozenset({("dev", "sketch")})))
    router.wait(wanted(1, "dev", lora_set="sketch"))
    (decision,) = begun(router)
    assert (decision.replica, decision.tier) == ("b", Tier.LORAS)


def test_idle_card_with_room_is_before_one_where_a_model_leaves() -> None:
    router = Router()
    router.report(stats("a", ["schnell"]))
    router.report(stats("b"))
    router.wait(wanted(1, "dev"))
    (decision,) = begun(router)
    assert (decision.replica, decision.tier, decision.evicts) == ("b", Tier.FITS, ())


def test_idle_card_with_room_is_before_a_busy_one_with_the_model() -> None:
    router = Router()
    router.report(stats("a", ["dev"], jobs=frozenset({"somebody's"})))
    router.report(stats("b"))
    router.wait(wanted(1, "dev"))
    assert pairs(begun(router)) == [("job1", "b")]


def test_idle_card_where_a_model_leaves_takes_what_nobody_has() -> None:
    router = Router()
    router.report(stats("a", ["schnell"]))
    router.wait(wanted(1, "dev"))
    (decision,) = begun(router)
    assert (decision.tier, decision.evicts) == (Tier.MAKES_ROOM, ("schnell",))
    assert decision.reason == "idle, schnell leaves for dev"


def test_model_that_leaves_is_the_one_with_a_copy_elsewhere() -> None:
    router = Router(patience_seconds=0)
    router.report(stats("a", ["schnell"]))
    router.report(stats("b", ["klein", "klein"][:1], memory_gib=34.0))
    router.report(stats("c", ["schnell"]))
    for seq, model in enumerate(["schnell", "klein"]):
        router.wait(wanted(seq, model))
        for decision in begun(router):
            router.ended(decision.job)
    router.wait(wanted(9, "dev"))
    (decision,) = begun(router)
    assert decision.evicts == ("schnell",)


def test_fastest_of_equal_cards_is_taken() -> None:
    router = Router()
    router.report(stats("a", ["dev"], job_seconds={"dev": 9.0}))
    router.report(stats("b", ["dev"], job_seconds={"dev": 3.0}))
    router.wait(wanted(1, "dev"))
    assert pairs(begun(router)) == [("job1", "b")]


def test_noise_of_measured_times_decides_nothing() -> None:
    router = Router()
    router.report(stats("a", ["dev"], job_seconds={"dev": 5.01}))
    router.report(stats("b", ["dev"], job_seconds={"dev": 5.0}))
    router.wait(wanted(1, "dev"))
    assert pairs(begun(router)) == [("job1", "a")]


def test_card_with_a_busy_processor_is_after_its_equal() -> None:
    router = Router()
    router.report(stats("a", ["dev"], load=0.9))
    router.report(stats("b", ["dev"], load=0.1))
    router.wait(wanted(1, "dev"))
    assert pairs(begun(router)) == [("job1", "b")]


def test_job_goes_where_its_resources_and_tags_are() -> None:
    router = Router()
    router.report(stats("a", ["dev"], resources=frozenset({"bf16"})))
    router.report(stats("b", resources=frozenset({"fp4", "bf16"}), tags=frozenset({"studio"})))
    router.wait(wanted(1, "dev", resources=frozenset({"fp4"}), tags=frozenset({"studio"})))
    assert pairs(begun(router)) == [("job1", "b")]


def test_job_that_nobody_can_run_waits_and_is_told_why() -> None:
    router = Router()
    router.report(stats("a", resources=frozenset({"bf16"})))
    job = wanted(1, "dev", resources=frozenset({"fp4"}))
    router.wait(job)
    assert begun(router) == []
    words = "no replica can run dev with fp4; what replicas run: dev, klein, schnell"
    assert router.why_not(job) == words
    assert router.explain("job1") == words


def test_model_larger_than_a_card_is_not_given_to_it() -> None:
    router = Router()
    router.report(stats("a", memory_gib=24.0))
    router.wait(wanted(1, "dev"))
    router.wait(wanted(2, "klein"))
    assert pairs(begun(router)) == [("job2", "a")]


def test_no_replica_at_all_is_said() -> None:
    assert Router().why_not(wanted(1, "dev")) == "no replica can run dev; no replica has reported"


# A line


def test_card_takes_the_oldest_whose_model_it_has() -> None:
    router = Router()
    router.report(stats("a", ["dev"]))
    for seq, model in enumerate(["dev", "klein", "dev", "dev"]):
        router.wait(wanted(seq, model))
    assert pairs(begun(router)) == [("job0", "a")]
    router.ended("job0")
    assert pairs(begun(router)) == [("job2", "a")]


def test_job_that_was_passed_as_often_as_is_allowed_is_next() -> None:
    router = Router(passes=3)
    router.report(stats("a", ["schnell"], memory_gib=34.0))
    router.wait(wanted(0, "schnell"))
    begun(router)
    router.wait(wanted(1, "klein"))
    order = ["job0"]
    for seq in range(2, 20):
        router.wait(wanted(seq, "schnell"))
        router.ended(order[-1])
        order += [decision.job for decision in begun(router)]
    assert order[:6] == ["job0", "job2", "job3", "job4", "job1", "job5"]


def test_who_waited_behind_many_may_be_passed_by_as_many_more() -> None:
    router = Router(passes=1)
    router.report(stats("a", ["schnell"], memory_gib=34.0))
    for seq in range(5):
        router.wait(wanted(seq, "schnell"))
    router.wait(wanted(5, "klein"))
    for seq in range(6, 30):
        router.wait(wanted(seq, "schnell"))
    order = [decision.job for decision in begun(router)]
    while order[-1] != "job5":
        router.ended(order[-1])
        order += [decision.job for decision in begun(router)]
    # Five were before it; six may pass it, and one card gives way a little before it must.
    assert len(order) == 5 + 5 + 1


def test_who_has_its_loras_at_hand_is_taken_before_a_change_of_loras() -> None:
    router = Router()
    router.report(stats("a", ["dev"], lora_sets=frozenset({("dev", "sketch")})))
    for seq, lora_set in enumerate(["sketch", "sepia", "sketch"]):
        router.wait(wanted(seq, "dev", lora_set=lora_set))
    order = [decision.job for decision in begun(router)]
    while len(router.waiting):
        router.ended(order[-1])
        order += [decision.job for decision in begun(router)]
    assert order == ["job0", "job2", "job1"]


def test_change_of_loras_is_put_off_for_a_quarter_of_the_passes() -> None:
    router = Router(passes=8)
    router.report(stats("a", ["dev"], lora_sets=frozenset({("dev", "sketch")})))
    router.wait(wanted(0, "dev", lora_set="sketch"))
    order = [decision.job for decision in begun(router)]
    router.wait(wanted(1, "dev", lora_set="sepia"))
    for seq in range(2, 12):
        router.wait(wanted(seq, "dev", lora_set="sketch"))
    while len(router.waiting):
        router.ended(order[-1])
        order += [decision.job for decision in begun(router)]
    assert order.index("job1") == 3


def test_model_is_loaded_for_which_most_wait_by_cards() -> None:
    router = Router(patience_seconds=0)
    router.report(stats("a", ["klein"], memory_gib=34.0, jobs=frozenset({"x"})))
    router.report(stats("b", ["dev"], memory_gib=34.0, jobs=frozenset({"y"})))
    for seq, model in enumerate(["dev", "schnell", "schnell", "klein"]):
        router.wait(wanted(seq, model))
    assert begun(router) == []
    router.report(stats("a", [], memory_gib=34.0))
    assert pairs(begun(router)) == [("job1", "a")]  # nobody has it; dev is on a card


def test_card_that_owes_somebody_a_turn_is_not_taken_by_a_job_of_another_card() -> None:
    router = Router(passes=1, patience_seconds=0)
    both = frozenset({"bf16", "fp4"})
    router.report(stats("a", ["klein"], jobs=frozenset({"x"})))
    router.report(stats("b", ["dev"], resources=both))
    router.wait(wanted(1, "dev"))
    begun(router)
    router.wait(wanted(2, "schnell", resources=frozenset({"fp4"})))
    router.wait(wanted(3, "dev"))
    router.ended("job1")
    assert pairs(begun(router)) == [("job3", "b")]  # which has passed the second as often as it may
    router.wait(wanted(4, "dev"))
    router.report(stats("a", ["klein"]))
    router.ended("job3")
    assert sorted(pairs(begun(router))) == [("job2", "b"), ("job4", "a")]


def test_withdrawn_job_is_not_given_out() -> None:
    router = Router()
    router.wait(wanted(1, "dev"))
    router.wait(wanted(2, "dev"))
    router.withdraw("job1")
    router.report(stats("a"))
    assert pairs(begun(router)) == [("job2", "a")]


def test_job_that_comes_back_takes_its_old_place() -> None:
    router = Router()
    router.report(stats("a", ["dev"]))
    for seq in (1, 2, 3):
        router.wait(wanted(seq, "dev"))
    begun(router)
    router.ended("job1")
    router.wait(wanted(1, "dev"))
    assert router.waiting.position("job1") == 1
    assert pairs(begun(router)) == [("job1", "a")]


def test_job_that_has_not_ended_cannot_wait() -> None:
    router = Router()
    router.report(stats("a"))
    router.wait(wanted(1, "dev"))
    begun(router)
    with pytest.raises(ValueError, match="job1: it is on a and has not ended"):
        router.wait(wanted(1, "dev"))


# Reports that are old, replicas that go


def test_job_on_its_way_counts_though_a_report_does_not_know_it() -> None:
    router = Router()
    router.report(stats("a", ["dev"]))
    router.wait(wanted(1, "dev"))
    router.wait(wanted(2, "dev"))
    assert pairs(begun(router)) == [("job1", "a")]
    router.report(stats("a", ["dev"]))  # sent before the job arrived
    assert begun(router) == []


def test_job_that_ended_does_not_count_though_a_report_has_it() -> None:
    router = Router()
    router.report(stats("a", ["dev"]))
    router.wait(wanted(1, "dev"))
    begun(router)
    router.wait(wanted(2, "dev"))
    router.ended("job1")
    router.report(stats("a", ["dev"], jobs=frozenset({"job1"})))
    assert pairs(begun(router)) == [("job2", "a")]


def test_model_of_a_job_on_its_way_counts_as_loaded() -> None:
    router = Router()
    router.report(stats("a", ["schnell"]))
    router.wait(wanted(1, "dev"))
    begun(router)
    router.report(stats("a", ["schnell"]))
    (row,) = router.snapshot()
    assert row["models"] == ["dev"]
    router.ended("job1")
    (row,) = router.snapshot()
    assert row["models"] == ["dev"]


def test_report_that_heard_of_the_job_is_believed() -> None:
    router = Router()
    router.report(stats("a", ["schnell"]))
    router.wait(wanted(1, "dev"))
    begun(router)
    router.ended("job1")
    router.report(stats("a", [], heard="job1"))  # it failed to load, and has nothing now
    (row,) = router.snapshot()
    assert row["models"] == []


def test_card_that_is_finishing_takes_one_into_its_hand() -> None:
    router = Router()
    router.report(stats("a", ["dev"]))
    for seq in (1, 2, 3):
        router.wait(wanted(seq, "dev"))
    begun(router)
    router.report(
        stats("a", ["dev"], jobs=frozenset({"job1"}), finishing=frozenset({"job1"}), heard="job1")
    )
    (decision,) = begun(router)
    assert (decision.job, decision.tier) == ("job2", Tier.BUSY)
    router.ended("job1")  # the last report is older than this
    assert begun(router) == []


def test_card_that_is_finishing_loads_nothing_early() -> None:
    router = Router()
    router.report(stats("a", ["dev"], jobs=frozenset({"x"}), finishing=frozenset({"x"})))
    router.wait(wanted(1, "schnell"))
    assert begun(router) == []
    router.report(stats("a", ["dev"]))
    assert pairs(begun(router)) == [("job1", "a")]


@pytest.mark.parametrize("how", ["its own word", "ours", "silence"])
def test_card_that_drains_gets_nothing(how: str) -> None:
    router = Router()
    router.report(stats("a", is_draining=how == "its own word"))
    if how == "ours":
        router.set_aside("a")
    if how == "silence":
        router.silent("a")
    router.wait(wanted(1, "dev"))
    assert begun(router) == []
    assert router.explain("job1") == "all that could run it are draining or silent"
    if how == "ours":
        router.set_aside("a", False)
    else:
        router.report(stats("a"))
    assert pairs(begun(router)) == [("job1", "a")]


def test_replica_that_drains_is_idle_when_its_last_job_has_ended() -> None:
    router = Router()
    router.report(stats("a"))
    router.wait(wanted(1, "dev"))
    begun(router)
    router.set_aside("a")
    assert not router.is_idle("a")
    router.ended("job1")
    assert router.is_idle("a")


def test_jobs_of_a_replica_that_is_gone_are_given_elsewhere() -> None:
    router = Router()
    router.report(stats("a", ["dev"]))
    router.report(stats("b"))
    router.wait(wanted(1, "dev"))
    assert pairs(begun(router)) == [("job1", "a")]
    assert router.forget("a") == ("job1",)
    router.wait(wanted(1, "dev"))
    assert pairs(begun(router)) == [("job1", "b")]


def test_avoided_replica_is_taken_when_nobody_else_can() -> None:
    router = Router()
    router.report(stats("a", ["dev"]))
    router.report(stats("b", jobs=frozenset({"x"})))
    router.wait(wanted(1, "dev", avoid=frozenset({"a"})))
    assert begun(router) == []
    router.forget("b")
    assert pairs(begun(router)) == [("job1", "a")]


def test_what_is_not_known_is_no_error() -> None:
    router = Router()
    router.ended("x")
    router.withdraw("x")
    router.set_aside("x")
    router.silent("x")
    assert router.forget("x") == ()
    assert router.explain("x") == "x is not known"


# Patience


def test_job_waits_for_a_card_that_will_sooner_be_free() -> None:
    clock = Clock()
    router = Router(clock=clock)
    router.report(stats("a", ["dev"]))
    router.report(stats("b", ["schnell"]))
    for seq, model in enumerate(["schnell", "dev", "schnell"]):
        router.wait(wanted(seq, model))
    begun(router)
    router.wait(wanted(3, "schnell"))
    router.ended("job1")  # the card with dev is idle, the other one is done in a second or two
    assert begun(router) == []
    router.ended("job0")
    assert pairs(begun(router)) == [("job2", "b")]


def test_job_does_not_wait_for_a_card_that_is_late() -> None:
    clock = Clock()
    router = Router(clock=clock)
    router.report(stats("a", ["dev"]))
    router.report(stats("b", ["schnell"]))
    router.wait(wanted(0, "schnell"))
    begun(router)
    router.wait(wanted(1, "schnell"))
    assert begun(router) == []
    assert clock.now < router.wakes_at <= clock.now + 2
    clock.now = router.wakes_at
    (decision,) = begun(router)
    assert (decision.replica, decision.evicts) == ("a", ("dev",))
    assert router.wakes_at == math.inf


def test_more_than_the_busy_card_can_take_soon_are_spread() -> None:
    router = Router(clock=Clock())
    router.report(stats("a", ["dev"]))
    router.report(stats("b", ["schnell"]))
    for seq in range(30):
        router.wait(wanted(seq, "schnell"))
    assert pairs(begun(router)) == [("job0", "b"), ("job1", "a")]


def test_without_patience_an_idle_card_takes_what_waits() -> None:
    router = Router(patience_seconds=0)
    router.report(stats("a", ["dev"]))
    router.report(stats("b", ["schnell"]))
    for seq in range(2):
        router.wait(wanted(seq, "schnell"))
    assert pairs(begun(router)) == [("job0", "b"), ("job1", "a")]


def test_without_measured_times_an_idle_card_takes_what_waits() -> None:
    router = Router()
    router.report(stats("a", ["dev"], load_seconds={}))
    router.report(stats("b", ["schnell"], load_seconds={}))
    for seq in range(2):
        router.wait(wanted(seq, "schnell"))
    assert pairs(begun(router)) == [("job0", "b"), ("job1", "a")]


def test_times_of_nothing_are_no_reason_to_wait() -> None:
    router = Router(clock=Clock())
    router.report(stats("a", ["dev"], job_seconds={"schnell": 0.0}))
    router.report(stats("b", ["schnell"], job_seconds={"schnell": 0.0}))
    for seq in range(2):
        router.wait(wanted(seq, "schnell"))
    assert pairs(begun(router)) == [("job0", "b"), ("job1", "a")]


def test_models_that_leave_a_busy_card_are_forgotten_by_nobody() -> None:
    router = Router(clock=Clock())
    router.report(stats("a", ["dev"], jobs=frozenset({"x"})))
    router.report(stats("a", ["unknown here"], jobs=frozenset({"x"})))
    router.wait(wanted(1, "dev"))
    assert begun(router) == []
    router.report(stats("a", ["unknown here"]))
    assert pairs(begun(router)) == [("job1", "a")]


def test_memory_that_changes_with_every_report_leaves_nothing_behind() -> None:
    router = Router()
    for place in range(50):
        router.report(stats("a", ["dev"], memory_gib=40.0 + place / 100))
    assert len(router._present) == 1
    router.forget("a")
    assert not router._present
    assert not router._idle._lists and not router._idle._groups


# What holds for every fleet

MODELS = sorted(SIZES)
memory = st.sampled_from([16.0, 34.0, 50.0, 90.0])
resources = st.frozensets(st.sampled_from(["fp4", "bf16"]), max_size=1)


@st.composite
def fleets(draw: st.DrawFn) -> list[ReplicaStats]:
    reports = []
    for place in range(draw(st.integers(1, 5))):
        gib = draw(memory)
        known = draw(st.lists(st.sampled_from(MODELS), min_size=1, unique=True))
        kept: tuple[str, ...] = ()
        profile = Profile.of(stats("x", memory_gib=gib))
        for model in draw(st.lists(st.sampled_from(known), max_size=4)):
            if SIZES[model] <= gib:
                kept = profile.loaded_after(model, kept)
        pairs = [(model, name) for model in kept for name in ("sepia", "sketch")]
        reports.append(
            stats(
                f"r{place}",
                kept,
                memory_gib=gib,
                model_gib={model: SIZES[model] for model in known},
                resources=draw(st.sampled_from([frozenset({"bf16"}), frozenset({"bf16", "fp4"})])),
                lora_sets=(
                    frozenset(draw(st.lists(st.sampled_from(pairs)))) if pairs else frozenset()
                ),
                load=draw(st.sampled_from([0.0, 0.5])),
                job_seconds={model: draw(st.sampled_from([1.0, 4.0])) for model in known},
            )
        )
    return reports


@st.composite
def jobs(draw: st.DrawFn, seq: int = 0) -> Wanted:
    return wanted(
        seq,
        draw(st.sampled_from(MODELS)),
        lora_set=draw(st.sampled_from(["", "sepia", "sketch"])),
        resources=draw(resources),
    )


@given(fleets(), jobs())
@settings(deadline=None, max_examples=60)
def test_index_finds_what_ranking_all_finds(reports: list[ReplicaStats], job: Wanted) -> None:
    router = Router(clock=Clock())
    for report in reports:
        router.report(report)
    router.wait(job)
    ranked = rank(job, reports, demand=lambda model: 1 / 300 if model == job.model else 0.0)
    decision = router.next()
    assert (decision and decision.replica) == (ranked[0].replica if ranked else None)
    if decision is not None:
        assert (decision.tier, decision.reason) == (ranked[0].tier, ranked[0].reason)


class Watched:
    """A router whose every step is checked against what is promised."""

    def __init__(self, reports: list[ReplicaStats], passes: int, patience_seconds: float) -> None:
        self.clock = Clock()
        self.router = Router(passes, patience_seconds, self.clock)
        self.patience_seconds = patience_seconds
        self.passes = passes
        self.reports = {report.replica: report for report in reports}
        self.running: dict[str, tuple[str, Wanted]] = {}
        self.waiting: dict[str, Wanted] = {}
        self.came: dict[str, float] = {}
        self.allowed: dict[str, int] = {}
        self.passed: dict[str, int] = {}
        for report in reports:
            self.router.report(report)

    def able(self, job: Wanted) -> list[ReplicaStats]:
        return [each for each in self.reports.values() if Profile.of(each).can_run(job)]

    def wait(self, job: Wanted) -> None:
        self.allowed[job.job] = self.passes * max(1, len(self.able(job))) + len(self.waiting)
        self.waiting[job.job] = job
        self.came[job.job] = self.clock.now
        self.passed[job.job] = 0
        self.router.wait(job)
        self.settle()

    def end(self, job: str) -> None:
        del self.running[job]
        self.router.ended(job)
        self.settle()

    def settle(self) -> None:
        while (decision := self.router.next()) is not None:
            job = self.waiting.pop(decision.job)
            assert decision.replica not in {replica for replica, _ in self.running.values()}
            assert decision.replica in {each.replica for each in self.able(job)}
            self.running[job.job] = (decision.replica, job)
            card = self.reports[decision.replica]
            for other in self.waiting.values():
                if other.seq < job.seq and Profile.of(card).can_run(other):
                    self.passed[other.job] += 1
                    # Who is passed too often has an older one of its kind before it.
                    kind = [each for each in self.waiting.values() if each.needs == other.needs]
                    older = [self.allowed[each.job] for each in kind if each.seq <= other.seq]
                    assert self.passed[other.job] <= max(older)
        busy = {replica for replica, _ in self.running.values()}
        models = {row["replica"]: tuple(row["models"]) for row in self.router.snapshot()}
        for job in self.waiting.values():
            for card in self.able(job):
                if card.replica not in busy:
                    assert Profile.of(card).leaving(job.model, models[card.replica])
                    assert self.clock.now < self.came[job.job] + self.patience_seconds

    def wake(self) -> None:
        if self.router.wakes_at < math.inf:
            self.clock.now = self.router.wakes_at
            self.settle()


@given(
    fleets(),
    st.sampled_from([1, 3]),
    st.sampled_from([0.0, 15.0]),
    st.lists(st.tuples(st.sampled_from(["come", "come", "end", "later", "wake"]), jobs())),
)
@settings(deadline=None, max_examples=100)
def test_nobody_waits_beside_a_card_that_could_begin_nor_for_ever(
    reports: list[ReplicaStats],
    passes: int,
    patience_seconds: float,
    story: list[tuple[str, Wanted]],
) -> None:
    watched = Watched(reports, passes, patience_seconds)
    for seq, (what, job) in enumerate(story):
        if what == "come":
            watched.wait(wanted(seq, job.model, lora_set=job.lora_set, resources=job.resources))
        elif what == "end" and watched.running:
            watched.end(min(watched.running))
        elif what == "later":
            watched.clock.now += 1.0
            watched.settle()
        else:
            watched.wake()
    able = [job for job in watched.waiting.values() if watched.able(job)]
    for _ in range(len(able) + len(watched.running)):
        watched.wake()
        if watched.running:
            watched.end(min(watched.running))
    assert not [job for job in watched.waiting.values() if watched.able(job)]


def test_default_passes_are_what_the_documents_say() -> None:
    assert PASSES == 8
