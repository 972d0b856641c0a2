"""What a worker does with pictures that are not safe for work, before anyone sees them.

A picture is looked at when it is drawn and before it is written: a flagged one is stored blurred, or its
job fails, as FLUX_SAFETY_CHECKER says. Previews are looked at too, once one of a job was flagged all that
follow are blurred unseen, and there are fewer of them, so that looking never holds up the drawing.
"""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from config.errors import FluxError, ModelUnavailable
from models import safety
from models.safety import SafetyChecker, Weights

FLAG, BLOCK = "flag", "block"
# Of the time, what looking at previews may take.
PREVIEW_SHARE = 0.25


class NotSafe(FluxError):
    """A picture was flagged, and such are not given out."""

    code, status = "nsfw_blocked", 422


@dataclass(frozen=True, slots=True)
class Verdict:
    """The picture as it may be seen, and whether it was flagged; None: nobody looked."""

    picture: Any
    is_flagged: bool | None


class Inspection:
    """Looks at pictures with a checker that is read when the first one comes.

    Without weights it looks at nothing, or where a checker `is_needed`, lets nothing through.
    """

    def __init__(
        self,
        weights: Weights | None,
        mode: str,
        load: Callable[[Weights], SafetyChecker] = safety.load,
        *,
        is_needed: bool = False,
    ) -> None:
        self._weights = weights
        self._is_needed = is_needed or mode == BLOCK
        self._mode = mode
        self._load = load
        self._checker: SafetyChecker | None = None
        self._lock = threading.Lock()
        self._flagged: set[str] = set()  # jobs of which a preview was
        self._seconds = 0.0  # that a look takes

    @property
    def name(self) -> str | None:
        """The checker's name; None without one."""
        return None if self._weights is None else self._weights.name

    @property
    def preview_seconds(self) -> float:
        """At least so much time between two previews."""
        return self._seconds / PREVIEW_SHARE

    def prepare(self) -> None:
        """Read the checker, if there is one. Raises ModelUnavailable where it is needed and cannot be read."""
        self._require_weights()
        with self._lock:
            if self._weights is not None and self._checker is None:
                self._checker = self._load(self._weights)

    def judge(self, picture: Any) -> Verdict:
        """A drawn picture as it may be stored. Raises NotSafe for one that may not at all."""
        self._require_weights()
        if self._weights is None:
            return Verdict(picture, None)
        if not self._is_flagged(picture):
            return Verdict(picture, False)
        if self._mode == BLOCK:
            raise NotSafe(
                f"the picture was flagged as not safe for work by {self.name} and is not given out "
                "(FLUX_SAFETY_CHECKER is block); try another prompt or seed"
            )
        return Verdict(safety.blurred(picture), True)

    def _require_weights(self) -> None:
        if self._weights is None and self._is_needed:
            raise ModelUnavailable(
                f"no picture is given out unseen (FLUX_SAFETY_CHECKER is {self._mode}), and the weights of "
                "the safety checker are gone; `python -m scripts.download_models --safety-checker` "
                "fetches them, then start the service again"
            )

    def preview(self, job_id: str, jpeg: bytes) -> bytes:
        """A preview as it may be seen."""
        self._require_weights()
        if self._weights is None:
            return jpeg
        from PIL import Image

        with Image.open(io.BytesIO(jpeg), formats=("JPEG",)) as opened:
            picture = opened.convert("RGB")
        if job_id not in self._flagged:
            if not self._is_flagged(picture):
                return jpeg
            self._flagged.add(job_id)
        buffer = io.BytesIO()
        safety.blurred(picture).save(buffer, "JPEG", quality=80)
        return buffer.getvalue()

    def forget(self, job_ids: list[str]) -> None:
        """These jobs are over."""
        self._flagged.difference_update(job_ids)

    def _is_flagged(self, picture: Any) -> bool:
        self.prepare()
        assert self._checker is not None
        with self._lock:
            started = time.perf_counter()
            is_flagged = self._checker.is_flagged(picture)
            self._seconds = time.perf_counter() - started
        return is_flagged
