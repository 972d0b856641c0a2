"""One service, looked at from outside: whether it can draw with its default model, and why not."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from config.errors import ConfigurationError
from models.fp4 import nunchaku_support
from models.hub import on_disk
from models.precision import PrecisionProfile
from scripts.diagnosis import databases, engines, environment, machine, running
from scripts.diagnosis.machine import ROOT, Cards, Finding, State, Torch

INCOMPLETE = "is incomplete"  # in the words of models/hub/on_disk.py


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """With what a service draws, or every reason why it cannot, each with what to do."""

    precision: str
    default_model: str = ""
    reasons: tuple[str, ...] = ()

    @property
    def can_draw(self) -> bool:
        return not self.reasons


class Checkup:
    """A service's settings, engines, models, folders and port."""

    def __init__(self, profile: PrecisionProfile, cards: Cards, torch: Torch) -> None:
        self.profile = profile
        self.findings: list[Finding] = []
        self._cards = cards
        self._torch = torch
        self._plan: Any = None
        if profile.loader is None:
            self._fault("service", profile.not_built)
            return
        try:
            self._look()
        except Exception as error:  # whatever else is broken is a line of the report, too
            self._fault("service", f"it cannot be looked at: {type(error).__name__}: {error}")

    def verdict(self, faults_of_machine: Sequence[Finding]) -> Verdict:
        faults = [
            finding
            for finding in [*faults_of_machine, *self.findings]
            if finding.state is State.FAULT
        ]
        default = self._plan.default if self._plan else None
        return Verdict(
            precision=self.profile.name,
            default_model=f"{default.id}: {default.reason}" if default else "",
            reasons=tuple(
                f"{fault.name}: {fault.text}" + (f"; {fault.fix}" if fault.fix else "")
                for fault in faults
            ),
        )

    def _add(self, *findings: Finding) -> None:
        self.findings += findings

    def _fault(self, name: str, text: str, fix: str = "") -> None:
        self._add(Finding(name=name, state=State.FAULT, text=text, fix=fix))

    def _look(self) -> None:
        settings = self._read_settings()
        if settings is None:
            return
        self._look_at_engines(settings.models.engine)
        has_default = self._look_at_models(settings.models)
        storage, server = settings.storage, settings.server
        kept = machine.look_at_folder("models", settings.models.models_dir)
        if has_default and kept.state is State.FAULT:
            kept = replace(kept, state=State.NOTE)  # nothing has to be fetched into it
        self._add(
            machine.look_at_folder("pictures", storage.output_dir, storage.min_free_mib),
            machine.look_at_folder("jobs", storage.data_dir),
            machine.look_at_folder("LoRAs", storage.lora_dir),
            *self._look_at_logs(settings.log),
            kept,
            *databases.look_at(storage.data_dir, self.profile.name),
            machine.look_at_port(
                "port", server.host, server.port, script=ROOT / f"main_{self.profile.name}.py"
            ),
            *running.look_at(self.profile.name, server.host, server.port, storage.data_dir),
        )

    def _look_at_logs(self, log: Any) -> list[Finding]:
        if not log.log_to_file:
            return []
        found = machine.look_at_folder("logs", log.log_dir)
        # Without them a service draws all the same.
        return [replace(found, state=State.WRONG) if found.state is State.FAULT else found]

    def _read_settings(self) -> Any | None:
        """The settings, and the plan that the service itself makes of them.

        Where they are wrong, that is a fault, and the rest is looked at by the defaults.
        """
        try:
            from config.settings import load_settings

            settings = self._make_plan(load_settings(self.profile.name))
        except ImportError as error:
            self._fault("settings", f"a package is missing: {error}", "run scripts/setup_env.sh")
            return None
        except (ConfigurationError, OSError, ValueError) as error:
            fix = "correct it in the environment, .env or config/; what follows is by the defaults"
            self._fault("settings", str(error), fix)
            try:
                return self._make_plan(load_settings(self.profile.name, {}))
            except (ConfigurationError, OSError, ValueError):  # it is in the service's own TOML
                nothing = {"FLUX_CONFIG": os.devnull}
                return self._make_plan(load_settings(self.profile.name, nothing))
        self._add(Finding(name="settings", state=State.OK, text="complete and allowed"))
        return settings

    def _make_plan(self, settings: Any) -> Any:
        from api.services import make_plan

        self._plan = make_plan(settings, self.profile)
        return settings

    def _look_at_engines(self, wanted: str) -> None:
        used = engines.used_cards(self._plan.placement, self._cards)
        reasons = {
            name: engines.why_not(name, used, self._cards, self._torch)
            for name in self.profile.engines
        }
        for name, reason in reasons.items():
            is_needed = wanted == name or len(reasons) == 1
            state = State.OK if reason is None else State.FAULT if is_needed else State.NO
            where = ""
            if name == "nunchaku" and reason is None and nunchaku_support.why_no_package():
                where = f", in {nunchaku_support.ENVIRONMENT}: start_fp4_api.sh --engine nunchaku"
            self._add(
                Finding(name=f"engine {name}", state=state, text=reason or f"runs here{where}")
            )
        if len(reasons) > 1 and wanted == "auto" and None not in reasons.values():
            self._fault("engine", "none runs here", "see the reasons above")

    def _look_at_models(self, settings: Any) -> bool:
        """A line for each model of the catalog; returns whether the default one is here."""
        from models.fp4 import nunchaku_engine

        hub = on_disk.hub_folder(settings.models_dir)
        has_default = False
        for row in self._plan.catalog:
            is_default = row.id == self._plan.default.id
            why_not = self._plan.resolver.why_not_here(row)
            name = f"model {row.id}{' (default)' if is_default else ''}"
            if row.cloud is not None:
                state = State.OK if why_not is None else State.FAULT if is_default else State.NO
                text = why_not or "drawn by BFL's cloud"
                self._add(Finding(name=name, state=state, text=text))
                has_default |= is_default and why_not is None
                continue
            is_there, where = on_disk.look_at(row, hub)
            copy = on_disk.copy_of(row, self.profile.name, settings.models_dir)
            # A copy of what comes with the project is not whole without the original.
            is_ours = on_disk.comes_with_the_project(row)
            is_there = is_there or (copy is not None and not is_ours)
            has_default |= is_default and is_there
            if settings.engine == "nunchaku":
                why_not = why_not or nunchaku_engine.why_no_checkpoint(row)
            state, text, fix = State.OK, f"{copy.text}; {where}" if copy else where, ""
            if why_not is not None:
                state, text = State.FAULT, f"{why_not} ({text})"
            elif copy is not None and copy.fault and settings.engine != "nunchaku":
                state, text = State.FAULT, copy.fault
            elif not is_there:
                state, more = _fetching(row, settings)
                text = f"{text}; {more}"
                if environment.lacks_token(row.gated, settings.hf_token):
                    state, text = State.FAULT, f"{text}, and is gated: to be had with a token alone"
                    fix = (
                        f"accept the licence at https://huggingface.co/{row.source}, make a token there, and set "
                        "FLUX_HF_TOKEN in .env"
                    )
            if state is State.FAULT and not is_default:
                state = State.NO
            if INCOMPLETE in where and not is_ours:
                # Not what was never fetched: somebody began to, or a file was cut off since.
                state = State.FAULT if state is State.FAULT else State.WRONG
                fix = fix or f"./flux models download {row.id} fetches what is missing"
            self._add(Finding(name=name, state=state, text=text, fix=fix))
        return has_default


def _fetching(row: Any, settings: Any) -> tuple[State, str]:
    """What becomes of a model that is not on this machine."""
    if on_disk.comes_with_the_project(row):
        return State.FAULT, "it comes with the project: get the checkout's files again"
    if not settings.allow_download:
        return State.FAULT, "downloads are off (FLUX_ALLOW_DOWNLOAD)"
    # 16-bit weights take as much room in memory as on disk.
    needed = max(row.memory_gib.values())
    free = machine.free_gib(settings.models_dir)
    if free is not None and free < needed:
        return State.FAULT, f"to fetch it takes about {needed:.0f} GiB, and {free:.0f} GiB are free"
    return State.NOTE, f"is fetched at the first use, about {needed:.0f} GiB"
