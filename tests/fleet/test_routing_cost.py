from __future__ import annotations

import random
import statistics
import time

import pytest

from fleet.routing import Router
from tests.fleet_parts import Clock, stats, wanted

MODELS = [f"model{place}" for place in range(10)]


@pytest.mark.timing
def test_decision_among_a_thousand_replicas_takes_less_than_a_millisecond() -> None:
    source = random.Random(1)
    clock = Clock()
    router = Router(clock=clock)
    for place in range(1000):
        router.report(
            stats(
                f"r{place:04}",
                source.sample(MODELS, 3),
                model_gib=dict.fromkeys(MODELS, 8.0),
                memory_gib=float(source.choice([24, 31])),
                job_seconds={model: source.uniform(1, 5) for model in MODELS},
                load_seconds=dict.fromkeys(MODELS, 2.0),
            )
        )
    seconds, running = [], []
    for seq in range(4000):
        clock.now += 0.002
        router.wait(wanted(seq, source.choice(MODELS)))
        if len(running) > 900:  # nearly all are busy from here on
            router.ended(running.pop(source.randrange(len(running))))
        begun = time.thread_time()
        decision = router.next()
        seconds.append(time.thread_time() - begun)
        if decision is not None:
            running.append(decision.job)
    assert len(running) > 900
    assert statistics.mean(seconds) < 0.001
    assert sorted(seconds)[int(0.99 * len(seconds))] < 0.003
