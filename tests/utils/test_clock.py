"""Times, ids and seeds."""

from datetime import UTC, datetime, timedelta, timezone

from utils.clock import Chance, new_job_id, new_seed, rfc3339


def test_rfc3339_is_utc_with_milliseconds() -> None:
    moment = datetime(2026, 1, 31, 13, 0, 0, 123_456, timezone(timedelta(hours=1)))
    assert rfc3339(moment) == "2026-01-31T12:00:00.123Z"


def test_rfc3339_sorts_as_text() -> None:
    start = datetime(2026, 12, 31, 23, 59, 59, 998_000, UTC)
    texts = [rfc3339(start + timedelta(milliseconds=i)) for i in range(5)]
    assert texts == sorted(texts)


def test_job_ids_are_distinct_and_plain() -> None:
    ids = {new_job_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(len(job_id) == 26 and set(job_id) <= set("0123456789abcdef") for job_id in ids)


def test_seeds_fit_every_tool_and_differ() -> None:
    seeds = {new_seed() for _ in range(100)}
    assert len(seeds) > 90 and all(0 <= seed < 2**32 for seed in seeds)


def test_chance_is_injected() -> None:
    chance = Chance(seed=lambda: 5, job_id=lambda: "a")
    assert (chance.seed(), chance.job_id()) == (5, "a")
