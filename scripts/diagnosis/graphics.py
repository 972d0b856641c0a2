"""GPUs between what is in the machine, what the driver shows, and what the environment leaves of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from models.fp4.nunchaku_support import ARCHITECTURES
from scripts.diagnosis import machine
from scripts.diagnosis.machine import Card, Cards, Finding, State, Torch
from scripts.diagnosis.packages import ANEW

PCI = Path("/sys/bus/pci/devices")
_NVIDIA = "0x10de"
_DISPLAY_CLASSES = ("0x0300", "0x0302")  # of a screen's card, and of one without
OLDEST_DRIVERS = {12: "525", 13: "580"}  # of NVIDIA's for Linux, by the CUDA that they know


def findings(
    cards: Cards, torch: Torch, environ: Mapping[str, str] = os.environ, pci: Path = PCI
) -> list[Finding]:
    if not cards.cards:
        return [_without_any(cards, pci), *_visible(cards, environ)]
    return [*(_of_card(cards, torch, card) for card in cards.cards), *_visible(cards, environ)]


def _without_any(cards: Cards, pci: Path) -> Finding:
    there = nvidia_cards(pci)
    if not there:
        text = f"none ({cards.why_none}): the services run on the CPU"
        return Finding(name="GPU", state=State.NOTE, text=text)
    return Finding(
        name="GPU",
        state=State.WRONG,
        text=f"an NVIDIA card is in this machine (PCI {', '.join(there)}), and no driver shows it: {cards.why_none}. "
        "The services run on the CPU",
        fix="install NVIDIA's driver, or start the machine again after it was updated, until `nvidia-smi` shows the "
        "card; in a container, give it the card (docker run --gpus all)",
    )


def nvidia_cards(pci: Path) -> list[str]:
    """The PCI addresses of NVIDIA's cards, whatever drives them."""
    found = []
    try:
        for device in sorted(pci.iterdir()):
            vendor = (device / "vendor").read_text(encoding="ascii").strip()
            kind = (device / "class").read_text(encoding="ascii").strip()
            if vendor == _NVIDIA and kind.startswith(_DISPLAY_CLASSES):
                found.append(device.name)
    except OSError:
        return found  # no such system, or one that does not tell
    return found


def _of_card(cards: Cards, torch: Torch, card: Card) -> Finding:
    capability = ".".join(map(str, card.capability)) if card.capability else "not known"
    kind = ARCHITECTURES.get(card.capability) if card.capability else None
    reason = machine.why_torch_cannot_use(torch, card)
    free = "" if card.memory_free_mib is None else f" ({card.memory_free_mib / 1024:.1f} free)"
    text = (
        f"{card.name}, {card.memory_total_mib / 1024:.1f} GiB{free}, compute capability {capability}"
        + (f" ({kind.name})" if kind else "")
        + (f"; {reason}" if reason else "")
    )
    state = State.FAULT if reason else State.OK
    fix = f"{_remedy(cards, torch)}, or set FLUX_GPUS=none" if reason else ""
    return Finding(name=f"GPU {card.index}", state=state, text=text, fix=fix)


def _remedy(cards: Cards, torch: Torch) -> str:
    if torch.cuda is not None and cards.driver_cuda is not None:
        built_for = int(torch.cuda.split(".")[0])
        if cards.driver_cuda[0] < built_for:
            newest = ".".join(map(str, cards.driver_cuda))
            oldest = OLDEST_DRIVERS.get(built_for)
            which = f" ({oldest} or later)" if oldest else ""
            return (
                f"the driver knows CUDA {newest}, and this torch is built for {torch.cuda}: update the driver to one "
                f"that knows CUDA {built_for}{which}"
            )
    return f"make the environment anew on this machine: {ANEW}"


def _visible(cards: Cards, environ: Mapping[str, str]) -> list[Finding]:
    """What CUDA_VISIBLE_DEVICES leaves of the cards; nothing to say where it is not set."""
    name = "CUDA_VISIBLE_DEVICES"
    visible = environ.get(name)
    if visible is None:
        return []
    parts = [part.strip() for part in visible.split(",") if part.strip()]
    there = ", ".join(f"{card.index} ({card.name})" for card in cards.cards) or "none"
    absent = [part for part in parts if part != "-1" and not _names_one(part, cards)]
    if absent:
        return [
            Finding(
                name=name,
                state=State.WRONG,
                text=f"{visible!r} names {absent[0]}, which is not there, and CUDA takes none from there on; this "
                f"machine has: {there}",
                fix=f"unset {name}, or have it name cards of nvidia-smi; FLUX_GPUS chooses for the services",
            )
        ]
    if cards.cards and (not parts or "-1" in parts):
        text = f"{visible!r} hides every card: the services run on the CPU"
        fix = f"unset {name} to have the cards used"
        return [Finding(name=name, state=State.NOTE, text=text, fix=fix)]
    return [Finding(name=name, state=State.OK, text=f"{visible!r}; this machine has: {there}")]


def _names_one(part: str, cards: Cards) -> bool:
    return any(part == str(card.index) or card.uuid.startswith(part) for card in cards.cards)
