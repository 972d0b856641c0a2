"""The table of legal changes."""

import pytest

from utils.job import LEGAL_CHANGES, JobStatus


def test_legal_changes_name_every_status() -> None:
    assert set(LEGAL_CHANGES) == set(JobStatus)


@pytest.mark.parametrize("status", JobStatus)
def test_status_is_final_when_nothing_follows(status: JobStatus) -> None:
    assert status.is_final == (status in {"succeeded", "failed", "cancelled"})


def test_legal_changes_reach_every_end_from_the_line() -> None:
    reached = {JobStatus.QUEUED}
    while grown := {after for status in reached for after in LEGAL_CHANGES[status]} - reached:
        reached |= grown
    assert reached == set(JobStatus)
