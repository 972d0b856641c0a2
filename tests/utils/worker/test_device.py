"""What a worker computes on, with stand-ins for torch: no GPU is needed."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

from utils import main_memory
from utils.worker import device
from utils.worker.device import Device, find

GIB = 2**30


def cuda(*cards: tuple[float, float], reserved: float = 0.0, allocated: float = 0.0) -> Any:
    """torch with cards of (total, free) GiB, of which this process has reserved some."""
    emptied: list[str] = []
    return SimpleNamespace(
        emptied=emptied,
        _C=SimpleNamespace(_cuda_clearCublasWorkspaces=lambda: emptied.append("workspaces")),
        cuda=SimpleNamespace(
            is_available=lambda: bool(cards),
            device_count=lambda: len(cards),
            device=lambda name: nullcontext(),
            empty_cache=lambda: emptied.append("cuda"),
            get_device_name=lambda name: f"NVIDIA card {name[-1]}",
            mem_get_info=lambda name: tuple(
                int(size * GIB) for size in reversed(cards[int(name[-1])])
            ),
            memory_reserved=lambda name: int(reserved * GIB),
            memory_allocated=lambda name: int(allocated * GIB),
        ),
        backends=SimpleNamespace(mps=SimpleNamespace(is_available=lambda: False)),
    )


def mps(recommended: float = 10.0, driver: float = 2.0, current: float = 1.5) -> Any:
    """torch on a Mac."""
    emptied: list[str] = []
    return SimpleNamespace(
        emptied=emptied,
        cuda=SimpleNamespace(is_available=lambda: False),
        backends=SimpleNamespace(mps=SimpleNamespace(is_available=lambda: True)),
        mps=SimpleNamespace(
            recommended_max_memory=lambda: int(recommended * GIB),
            driver_allocated_memory=lambda: int(driver * GIB),
            current_allocated_memory=lambda: int(current * GIB),
            empty_cache=lambda: emptied.append("mps"),
        ),
    )


@pytest.fixture
def torch_is(monkeypatch: pytest.MonkeyPatch) -> Any:
    def put(stand_in: Any) -> Any:
        monkeypatch.setattr(device, "_torch", lambda: stand_in)
        return stand_in

    return put


def test_worker_of_cards_computes_on_all_of_them(torch_is) -> None:
    torch_is(cuda((24, 20), (24, 23)))
    found = find("cuda", 2, None)
    assert (found.kind, found.names) == ("cuda", ("cuda:0", "cuda:1"))
    assert found.describe() == "NVIDIA card 0 + NVIDIA card 1"


def test_worker_without_torch_or_cards_computes_on_the_cpu(torch_is) -> None:
    for stand_in in (None, cuda()):
        torch_is(stand_in)
        found = find("cpu", 2, None)
        assert (found.kind, found.names, found.describe()) == ("cpu", ("cpu", "cpu"), "cpu + cpu")


def test_worker_on_a_mac_computes_on_its_gpu(torch_is) -> None:
    torch_is(mps())
    found = find("mps", 1, None)
    assert (found.kind, found.names, found.describe()) == ("mps", ("mps",), "mps")


@pytest.mark.parametrize("stand_in", [None, cuda()])
def test_worker_for_apples_gpu_whose_torch_sees_none_ends_and_says_so(torch_is, stand_in) -> None:
    torch_is(stand_in)
    with pytest.raises(SystemExit, match="sees no Apple GPU.*FLUX_DEVICE=cpu"):
        find("mps", 1, None)


def test_card_has_for_models_what_other_programs_leave(torch_is) -> None:
    """Free is 6 of 24 GiB, and 10 are ours: others hold 8."""
    torch_is(cuda((24, 6), reserved=10))
    limits = find("cuda", 1, None).limits(held_gib=9)
    assert (limits.total_gib, limits.available_gib) == (24, 16)
    assert limits.is_gpu and limits.can_offload and not limits.is_cpu


def test_cards_together_have_their_sum_and_weights_cannot_wait(torch_is) -> None:
    torch_is(cuda((24, 20), (16, 15)))
    limits = find("cuda", 2, None).limits(held_gib=0)
    assert (limits.total_gib, limits.available_gib) == (40, 35)
    assert not limits.can_offload


def test_cards_memory_is_told_as_reserved_and_measured_as_allocated(torch_is) -> None:
    torch_is(cuda((24, 20), reserved=3, allocated=2.5))
    found = find("cuda", 1, None)
    assert found.memory_mib() == 3072 and found.used_gib() == 2.5


def test_apples_gpu_has_what_macos_gives_it(torch_is, monkeypatch: pytest.MonkeyPatch) -> None:
    torch_is(mps(recommended=10))
    monkeypatch.setattr(main_memory, "total_gib", lambda: 16.0)
    monkeypatch.setattr(main_memory, "free_gib", lambda: 5.0)
    limits = find("mps", 1, None).limits(held_gib=2)
    assert (limits.total_gib, limits.available_gib) == (10, 7)
    assert not limits.is_gpu and not limits.can_offload and not limits.is_cpu


def test_apples_gpu_memory_is_read_from_its_driver(torch_is) -> None:
    torch_is(mps(driver=2, current=1.5))
    found = find("mps", 1, None)
    assert found.memory_mib() == 2048 and found.used_gib() == 1.5


def test_cpu_has_what_is_free_and_what_our_models_hold(
    torch_is, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch_is(None)
    monkeypatch.setattr(main_memory, "total_gib", lambda: 16.0)
    monkeypatch.setattr(main_memory, "free_gib", lambda: 5.0)
    limits = Device("cpu", ("cpu",), budget_gib=3.0).limits(held_gib=2)
    assert (limits.total_gib, limits.available_gib, limits.alone_gib) == (16, 7, 3)
    assert limits.is_cpu and limits.together_gib == 3


@pytest.mark.parametrize(
    ("stand_in", "kind", "emptied"),
    [(cuda((24, 20)), "cuda", ["workspaces", "cuda"]), (mps(), "mps", ["mps"])],
    ids=["cuda", "mps"],
)
def test_give_back_empties_the_devices_cache(
    torch_is, stand_in: Any, kind: str, emptied: list[str]
) -> None:
    torch_is(stand_in)
    find(kind, 1, None).give_back()
    assert stand_in.emptied == emptied
