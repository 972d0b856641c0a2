"""Which models this machine has the files of, where none may be fetched.

Every request asks, and a look opens each file of weights, so what was seen is believed for a while: of a
model that is not here some seconds, so that it can be asked for soon after it has come, without a restart.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from config.catalog import ModelRow
from config.settings import ModelSettings
from models.hub import on_disk
from models.precision import PrecisionProfile

BELIEVED_SECONDS = 3.0  # that a model is not here
WHOLE_SECONDS = 60.0  # that it is; a worker that finds it gone says so

# By a model's repository and by part: the repositories that must be there in its place.
StandIns = Mapping[str, Mapping[str, tuple[str, ...]]]


@dataclass(frozen=True, slots=True)
class _Look:
    until: float  # monotonic seconds
    reason: str | None


class ModelFiles:
    """What a service of a profile has not and may not fetch. Settings and environment are read once."""

    def __init__(
        self,
        models: ModelSettings,
        profile: PrecisionProfile,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._models_dir = models.models_dir
        self._hub = on_disk.hub_folder(models.models_dir)
        self._profile = profile
        self._monotonic = monotonic
        self._looks: dict[str, _Look] = {}
        self._why_off = None
        if not models.allow_download:
            self._why_off = "downloads are off (FLUX_ALLOW_DOWNLOAD)"
        elif on_disk.is_offline():
            self._why_off = "HF_HUB_OFFLINE is set"
        # Read only where downloads are off.
        self._stand_ins = _stand_ins_of(profile) if self._why_off else {}

    def why_not(self, row: ModelRow) -> str | None:
        """Why a worker would not find the model's files; None where it would, or may fetch them."""
        if self._why_off is None or row.cloud is not None:
            return None
        now, look = self._monotonic(), self._looks.get(row.id)
        if look is None or now > look.until:
            reason = self._look_at(row)
            until = now + (BELIEVED_SECONDS if reason else WHOLE_SECONDS)
            look = self._looks[row.id] = _Look(until, reason)
        return look.reason

    def _look_at(self, row: ModelRow) -> str | None:
        try:
            missing = on_disk.lacks(
                row, self._hub, self._profile.name, self._models_dir, self._from_elsewhere(row)
            )
        except OSError as error:
            missing = [f"its folder cannot be read: {error.strerror}"]
        if not missing:
            return None
        what = f"{row.id} is not on this machine ({', '.join(missing)})"
        if on_disk.comes_with_the_project(row):
            return f"{what}, and it comes with the project: get the checkout's files again"
        how = f"`python -m scripts.download_models {row.id}` fetches it"
        if on_disk.is_offline():
            how += " where the Hub can be asked (unset HF_HUB_OFFLINE for that)"
        return f"{what}, and {self._why_off}; {how}"

    def _from_elsewhere(self, row: ModelRow) -> tuple[str, ...]:
        """The parts that other repositories stand for, where those are here."""
        parts = self._stand_ins.get(row.source, {})
        return tuple(
            part
            for part, repositories in parts.items()
            if all(on_disk.snapshot_of(self._hub, each) is not None for each in repositories)
        )


def _stand_ins_of(profile: PrecisionProfile) -> StandIns:
    if not profile.stand_ins:
        return {}
    module, _, function = profile.stand_ins.partition(":")
    return getattr(importlib.import_module(module), function)()
