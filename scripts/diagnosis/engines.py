"""Which engine can run on this machine, and how nunchaku gets onto it; for the doctor."""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from typing import Any

from config.errors import ConfigurationError
from models.fp4 import nunchaku_support as nunchaku
from models.precision import known_precisions, profile_of
from scripts.diagnosis import machine
from scripts.diagnosis.machine import ROOT, Card, Cards, Finding, State, Torch


def used_cards(placement: Any, cards: Cards) -> list[Card]:
    """The GPUs that a service has workers on."""
    visible = ",".join(slot.visible_devices for slot in placement.slots).split(",")
    return [card for card in cards.cards if card.uuid in visible]


def why_not(engine: str, used: Sequence[Card], cards: Cards, torch: Torch) -> str | None:
    """Why an engine cannot run on the GPUs `used`, or on the CPU without any; None when it can."""
    if engine == "nunchaku":
        return why_not_nunchaku_hardware(used, cards) or why_no_nunchaku()
    reasons = (machine.why_torch_cannot_use(torch, card) for card in used)
    return torch.why_not or next(filter(None, reasons), None)


def why_not_nunchaku_hardware(used: Sequence[Card], cards: Cards) -> str | None:
    """Why nunchaku's kernels do not run on the GPUs `used`, whatever is installed."""
    if not used:
        return nunchaku.why_not_cpu(cards.why_none)
    for card in used:
        name = f"GPU {card.index} ({card.name})"
        if card.capability is None:
            return f"the driver does not say the compute capability of {name}"
        reason = nunchaku.why_not_gpu(card.capability, name)
        if reason:
            return reason
    return None


def why_no_nunchaku() -> str | None:
    """Why nunchaku is in no environment of this checkout; None when it is in one."""
    own = nunchaku.site_packages(ROOT / nunchaku.ENVIRONMENT)
    here = nunchaku.why_no_package()
    return nunchaku.why_no_package(own) if here and own else here


def check(engine: str) -> tuple[bool, str]:
    """Whether this machine can run an engine, installed or not yet, and why or why not."""
    from config.settings import load_settings
    from utils.gpu_manager import place_workers

    profiles = [profile_of(name) for name in known_precisions()]
    profile = next((each for each in profiles if engine in each.engines), None)
    if profile is None:
        there = ", ".join(name for each in profiles for name in each.engines)
        return False, f"there is no engine {engine!r}; there are {there}"
    cards = machine.look_at_cards()
    try:
        used = used_cards(place_workers(load_settings(profile.name).worker), cards)
    except ConfigurationError as error:
        return False, str(error)
    if engine != "nunchaku":
        reason = why_not(engine, used, cards, machine.look_at_torch())
        return reason is None, reason or f"{engine} runs here"
    reason = why_not_nunchaku_hardware(used, cards)
    if reason or why_no_nunchaku() is None:
        return reason is None, reason or "nunchaku runs here"
    return _can_install(cards)


def _can_install(cards: Cards) -> tuple[bool, str]:
    python = sys.version_info[:2]
    reason = nunchaku.why_no_wheel(python, platform.system(), platform.machine())
    if reason:
        return False, reason
    command = nunchaku.install_command(python, cards.driver_cuda)
    if nunchaku.is_old_driver(cards.driver_cuda):
        newest = ".".join(map(str, cards.driver_cuda))
        return False, (
            f"nunchaku is not installed, and this driver (CUDA {newest}) is too old for the builds of "
            f"{nunchaku.REQUIREMENTS}. Update the driver, or install other builds:\n{command}"
        )
    return True, f"nunchaku can run here once it is installed:\n{command}"


def nunchaku_findings(cards: Cards) -> list[Finding]:
    """How nunchaku gets onto this machine, to the letter."""
    python = sys.version_info[:2]
    reason = nunchaku.why_no_wheel(python, platform.system(), platform.machine())
    if reason:
        return [Finding(name="install", state=State.NO, text=reason)]
    command = nunchaku.install_command(python, cards.driver_cuda)
    cuda = "12.8" if nunchaku.is_old_driver(cards.driver_cuda) else "13.0"
    wheel = Finding(name="wheel", state=State.NOTE, text=nunchaku.wheel_url(python, cuda))
    unfit = [why_not_nunchaku_hardware([card], cards) for card in cards.cards]
    if None not in unfit:
        why = unfit[0] if unfit else why_not_nunchaku_hardware([], cards)
        text = f"not on this machine: {why}. Where a GPU suits it, with this Python:\n{command}"
        return [Finding(name="install", state=State.NO, text=text), wheel]
    reason = why_no_nunchaku()
    if reason is None:
        return [Finding(name="install", state=State.OK, text="done"), wheel]
    return [Finding(name="install", state=State.NOTE, text=f"{reason}; by hand:\n{command}"), wheel]
