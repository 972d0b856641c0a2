"""What is kept while it fits: the one used longest ago leaves first."""

from __future__ import annotations

from models.lora.kept import Kept


def test_full_forgets_what_was_used_longest_ago() -> None:
    kept: Kept[str] = Kept(max_bytes=10)
    kept.put("a", "A", 4)
    kept.put("b", "B", 4)
    assert kept.get("a") == "A"
    kept.put("c", "C", 4)
    assert [kept.get(key) for key in "abc"] == ["A", None, "C"]
    assert (kept.size_bytes, len(kept)) == (8, 2)


def test_value_larger_than_everything_is_not_kept_and_drives_nobody_out() -> None:
    kept: Kept[str] = Kept(max_bytes=10)
    kept.put("a", "A", 10)
    kept.put("b", "B", 11)
    assert (kept.get("a"), kept.get("b")) == ("A", None)


def test_same_key_again_counts_once() -> None:
    kept: Kept[str] = Kept(max_bytes=10)
    kept.put("a", "A", 6)
    kept.put("a", "other", 7)
    assert (kept.get("a"), kept.size_bytes) == ("other", 7)
    kept.clear()
    assert (kept.get("a"), kept.size_bytes, len(kept)) == (None, 0, 0)
