"""What is promised from what was measured."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.pace import FIRST_GUESS_SECONDS, GAIN, MEASURED_JOBS, TRY_AGAIN_AFTER, WEIGHT, Mean, Pace

KIND, OTHER = "512 px", "1024 px"
POSITIVE = st.floats(0.001, 1e6)


@given(st.lists(POSITIVE, min_size=1))
def test_mean_of_any_values_stays_between_them(values: list[float]) -> None:
    mean = Mean()
    for value in values:
        mean.add(value)
    assert mean.value is not None
    assert min(values) * 0.999 <= mean.value <= max(values) * 1.001


def test_mean_follows_the_newest_value_by_its_weight() -> None:
    mean = Mean()
    mean.add(100.0)
    mean.add(200.0)
    assert mean.value == pytest.approx(100 + WEIGHT * 100)


def test_pace_before_any_job_guesses() -> None:
    pace = Pace()
    assert pace.job_seconds is None
    assert pace.wait_seconds(4, 2) == FIRST_GUESS_SECONDS * 2


def test_pace_wait_is_the_mean_shared_by_the_workers() -> None:
    pace = Pace()
    for seconds in (2.0, 4.0):
        pace.job_took(seconds)
    assert pace.wait_seconds(6, 2) == 9.0


def test_pace_only_the_last_jobs_count() -> None:
    pace = Pace()
    pace.job_took(1000.0)
    for _ in range(MEASURED_JOBS):
        pace.job_took(1.0)
    assert pace.job_seconds == 1.0


def test_pace_eta_before_a_step_was_measured_is_unknown() -> None:
    pace = Pace()
    pace.rest_took(KIND, 50.0)
    pace.step_took(OTHER, 10.0)
    assert pace.eta_ms(KIND, 3, 1) is None


def test_pace_eta_without_a_finished_picture_is_the_steps() -> None:
    pace = Pace()
    pace.step_took(KIND, 10.0)
    assert pace.eta_ms(KIND, 3, 2) == 30.0


def test_pace_eta_adds_the_rest_of_every_picture() -> None:
    pace = Pace()
    pace.step_took(KIND, 10.0)
    pace.rest_took(KIND, 7.0)
    assert pace.eta_ms(KIND, 3, 2) == 44.0


def test_pace_batch_before_one_was_alone_does_not_pay() -> None:
    pace = Pace()
    pace.batch_took(KIND, 4, 10.0)
    assert not pace.batch_pays(KIND)


def test_pace_batch_that_was_never_tried_pays() -> None:
    pace = Pace()
    pace.batch_took(KIND, 1, 10.0)
    assert pace.batch_pays(KIND) and not pace.batch_pays(OTHER)


@pytest.mark.parametrize(
    ("per_picture", "pays"), [(10.0 / GAIN, True), (9.9, False), (20.0, False)]
)
def test_pace_batch_pays_when_it_wins_by_enough(per_picture: float, pays: bool) -> None:
    pace = Pace()
    pace.batch_took(KIND, 1, 10.0)
    pace.batch_took(KIND, 4, 4 * per_picture)
    assert pace.batch_pays(KIND) is pays


def test_pace_batch_that_did_not_pay_is_tried_again_now_and_then() -> None:
    pace = Pace()
    pace.batch_took(KIND, 1, 10.0)
    pace.batch_took(KIND, 2, 40.0)
    answers = [pace.batch_pays(KIND) for _ in range(2 * TRY_AGAIN_AFTER)]
    assert [i + 1 for i, pays in enumerate(answers) if pays] == [
        TRY_AGAIN_AFTER,
        2 * TRY_AGAIN_AFTER,
    ]


def test_pace_batch_that_becomes_fast_pays_again() -> None:
    pace = Pace()
    pace.batch_took(KIND, 1, 10.0)
    pace.batch_took(KIND, 4, 80.0)
    for _ in range(20):
        pace.batch_took(KIND, 4, 20.0)
    assert pace.batch_pays(KIND)
