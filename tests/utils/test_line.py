"""The line in memory against a plain sorted list."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from utils.line import Lane, Line

OWNERS = ("", "a", "b")
STEPS = st.lists(
    st.tuples(st.sampled_from(("add", "remove")), st.integers(1, 12), st.sampled_from(OWNERS)),
    max_size=60,
)


def filled(*seqs: int) -> Line:
    line = Line()
    line.fill((seq, f"job{seq}", "") for seq in seqs)
    return line


@given(STEPS)
def test_line_after_any_changes_equals_a_sorted_list(steps: list[tuple[str, int, str]]) -> None:
    line, model = Line(), {}
    for what, seq, owner in steps:
        if what == "add":
            line.add(seq, f"job{seq}", owner)
            model.setdefault(seq, owner)
        else:
            line.remove(seq)
            model.pop(seq, None)
        assert len(line) == len(model)
        for place, waiting in enumerate(sorted(model), 1):
            assert line.position(waiting) == place
        for name in OWNERS:
            assert line.count_of(name) == list(model.values()).count(name)


def test_line_job_that_comes_back_has_its_old_place() -> None:
    line = filled(1, 2, 3)
    line.remove(2)
    line.add(2, "job2", "")
    assert [line.position(seq) for seq in (1, 2, 3)] == [1, 2, 3]


def test_line_job_added_twice_counts_once() -> None:
    line = filled(1)
    line.add(1, "job1", "")
    assert (len(line), line.count_of("")) == (1, 1)


def test_line_filled_in_any_order_is_sorted() -> None:
    line = filled(9, 2, 5)
    assert [line.position(seq) for seq in (2, 5, 9)] == [1, 2, 3]


def test_line_owner_who_never_came_counts_zero() -> None:
    assert filled(1).count_of("nobody") == 0


@given(STEPS, st.integers(0, 12), st.sampled_from((None, *OWNERS)))
def test_line_oldest_are_the_first_of_an_owner(
    steps: list[tuple[str, int, str]], limit: int, owner: str | None
) -> None:
    line, model = Line(), {}
    for what, seq, whose in steps:
        if what == "add":
            lane = Lane.CLOUD if seq % 2 else Lane.LOCAL
            line.add(seq, f"job{seq}", whose, lane)
            model.setdefault(seq, whose)
        else:
            line.remove(seq)
            model.pop(seq, None)
    seen = [(seq, f"job{seq}") for seq in sorted(model) if owner in (None, model[seq])]
    assert line.oldest(limit, owner) == seen[:limit]
