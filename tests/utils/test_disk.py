"""Room for pictures."""

from pathlib import Path

from utils.disk import why_no_room


def test_room_where_there_is_enough(tmp_path: Path) -> None:
    assert why_no_room(tmp_path, 0) is None


def test_no_room_says_how_much_there_is_and_is_kept(tmp_path: Path) -> None:
    why = why_no_room(tmp_path, 10**9)
    assert why is not None
    assert "1000000000 MiB" in why and "FLUX_MIN_FREE_MIB" in why


def test_no_room_in_a_folder_that_is_gone(tmp_path: Path) -> None:
    why = why_no_room(tmp_path / "gone", 0)
    assert why is not None and "cannot be used" in why
