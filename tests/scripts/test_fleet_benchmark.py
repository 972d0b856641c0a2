from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from fleet.scaling import ScaleLimits
from fleet.simulator import OurPolicy, Policy, Result, SimCard, SimJob, World
from scripts.bench.fleet import ROUTERS, run, write
from scripts.bench.fleet_bound import least_loads
from scripts.bench.fleet_rivals import HerdForPictures, HerdInFull, Ray
from scripts.bench.fleet_scaling import ScaledPolicy
from scripts.bench.fleet_traces import THREE, Hardware, Trace, capacity, traffic
from tests.fleet_parts import CARD, cards


def simulate(policy: Policy, jobs: list[SimJob], count: int = 2) -> tuple[Result, list[SimCard]]:
    fleet = cards(count)
    return World(cards=fleet, jobs=jobs, policy=policy).run(), fleet


def test_herd_for_pictures_sends_to_the_idle_one_with_most_memory() -> None:
    jobs = [SimJob(job="a", at=0, model="klein"), SimJob(job="b", at=50, model="dev")]
    _, fleet = simulate(HerdForPictures(), jobs)
    assert [card.models for card in fleet] == [("klein",), ("dev",)]


def test_herd_for_pictures_does_not_know_what_is_loaded() -> None:
    jobs = [SimJob(job=f"{i}", at=50.0 * i, model="dev") for i in range(2)]
    result, _ = simulate(HerdForPictures(), jobs)
    assert result.loads == 2


def test_herd_in_full_stays_with_the_card_that_has_the_model() -> None:
    jobs = [SimJob(job=f"{i}", at=10.0 * i, model="schnell") for i in range(6)]
    result, _ = simulate(HerdInFull(), jobs)
    assert result.loads == 1


def test_herd_in_full_moves_what_waits_to_a_warm_runner_up() -> None:
    jobs = [SimJob(job=f"{i}", at=0.1 * i, model="dev") for i in range(20)]
    result, fleet = simulate(HerdInFull(), jobs)
    assert [card.models for card in fleet] == [("dev",), ("dev",)]
    assert result.lost == 0


def test_ray_takes_the_one_with_less_to_do_of_two() -> None:
    jobs = [SimJob(job=f"{i}", at=0.01 * i, model="dev") for i in range(4)]
    result, _ = simulate(Ray(multiplexed=False, max_ongoing=5), jobs)
    assert result.seconds == pytest.approx(6 + 2 * 5, abs=0.1)


def test_ray_gives_a_replica_no_more_than_it_takes() -> None:
    most = []

    class Watching(Ray):
        def came(self, job: SimJob) -> None:
            super().came(job)
            most.append(max(card.has for card in self.world.cards))

    jobs = [SimJob(job=f"{i}", at=0.01 * i, model="dev") for i in range(20)]
    result, _ = simulate(Watching(multiplexed=False, max_ongoing=3), jobs)
    assert (max(most), result.lost) == (3, 0)


def test_ray_multiplexed_goes_where_the_model_is() -> None:
    jobs = [SimJob(job=f"{i}", at=1.0 * i, model="schnell") for i in range(4)]
    result, _ = simulate(Ray(multiplexed=True, max_ongoing=5), jobs)
    assert result.loads == 1


@pytest.mark.parametrize(
    ("rival", "count"),
    [
        ("ollama-herd, pictures", 150),
        ("ollama-herd, seven signals", 500),
        ("Ray Serve", 150),
        ("Ray Serve, multiplexed", 150),
    ],
)
def test_ours_waits_less_than_the_rules_of_others(rival: str, count: int) -> None:
    hardware = Hardware()
    jobs = traffic(count, THREE, 0.5 * capacity([hardware.h100] * 2, THREE), seed=1)
    trace = Trace(name="", cards=(hardware.h100, hardware.h100), jobs=jobs)
    ours, theirs = run(trace, OurPolicy()), run(trace, ROUTERS[rival]())
    assert ours.mean_wait < theirs.mean_wait
    assert ours.p95_wait < theirs.p95_wait
    assert ours.loads < theirs.loads


def test_least_loads_of_models_that_share_a_card_in_turn() -> None:
    roomy = dataclasses.replace(CARD, memory_gib=90.0)
    apart = [SimJob(job=f"{i}", at=100.0 * i, model=name) for i, name in enumerate(CARD.model_gib)]
    assert least_loads(apart, roomy) == 3
    assert least_loads([apart[0], *_two(dev_at=(200.0, 300.0))], roomy) == 2
    assert least_loads([apart[0], *_two(dev_at=(200.0, 201.0))], roomy) == 3  # nobody may wait


def _two(dev_at: tuple[float, float]) -> list[SimJob]:
    return [SimJob(job=f"dev at {at}", at=at, model="dev") for at in dev_at]


def test_two_roomy_nodes_load_as_little_as_is_possible() -> None:
    hardware = Hardware()
    card = hardware.rtx5090
    jobs = traffic(120, THREE, 0.5 * capacity([card] * 2, THREE), 1, loras=0.0)
    trace = Trace(name="", cards=(card, card), jobs=jobs)
    assert run(trace, OurPolicy(), latency_seconds=0.0).loads <= 1.2 * least_loads(jobs, card)


def test_scaled_fleet_draws_everything_with_fewer_cards() -> None:
    policy = ScaledPolicy(
        ScaleLimits(least=1, most=4, jobs_per_replica=2.0, down_after_seconds=60.0), 20.0
    )
    jobs = [SimJob(job=f"{i}", at=0.3 * i + 300 * (i >= 60), model="schnell") for i in range(80)]
    result, fleet = simulate(policy, jobs, count=4)
    assert result.lost == 0
    assert policy.most > 1
    assert policy.card_seconds < 0.8 * 4 * result.seconds


def test_traffic_of_a_seed_is_the_same_each_time() -> None:
    assert traffic(50, THREE, 1.0, seed=3) == traffic(50, THREE, 1.0, seed=3)
    assert traffic(50, THREE, 1.0, seed=3) != traffic(50, THREE, 1.0, seed=4)


def test_section_of_the_page_is_replaced_and_others_stay(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Page\n\n## The fleet\n\nold\n\n## After\n\nkept\n")
    write(["## The fleet", "", "new"], page)
    assert page.read_text() == "# Page\n\n## The fleet\n\nnew\n\n## After\n\nkept\n"
    page.write_text("# Page\n")
    write(["## The fleet", "", "new"], page)
    assert page.read_text() == "# Page\n\n## The fleet\n\nnew\n"
