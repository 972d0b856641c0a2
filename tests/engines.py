"""Stand-in models, for faults that a real model does not have on demand.

A worker is given one of the loaders here in place of the real one (`tests/main_engine.py`).
`scripted` does what the first word of the prompt says; a prompt that begins with no such word
is drawn at once, in one colour that follows from prompt and seed.

    hold NAME      steps until the file NAME lies in models_dir; leaves at a step when cancelled
    hold-late NAME as hold, at the pictures that are not drawn with the job's first
    hang NAME      the same without steps: it sees no cancel
    watched NAME   as hold, and leaves the file NAME.seen when somebody has a preview made
    linger NAME    its last stage goes on until the file NAME lies in models_dir
    slow           50 ms a step
    stay NAME      the same, and waits at the fifth until the file NAME lies in models_dir
    raise          fails with a message nobody outside may read
    raise-late     draws the first picture and fails at the next one
    oserror        fails with an OSError that has nothing to do with the picture's file
    oom            the device has no room for more than 128 px, or 192 px frugally
    cuda           the CUDA context is lost
    kill           ends its process
    full           the disk has no room for the picture

A prompt with `striped` in it is drawn with black stripes, so that there is something to be seen, and one with
`grainy` in it with grain, of which an FP4 service has more. References change the colour.

`raise-once NAME`, `kill-once NAME` and so on do it unless the file NAME lies in models_dir, and
leave that file there.
"""

from __future__ import annotations

import hashlib
import io
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from config.catalog import ModelRow
from config.errors import ModelUnavailable
from models.lora.errors import LoraIncompatible
from models.types import (
    EXACT_BATCH_SIZE,
    Drawing,
    GenerationRequest,
    ImageModel,
    LoadOptions,
    LoraApplied,
    LoraRef,
    PreviewOf,
    Stage,
)
from utils import model_memory

if os.environ.get("TEST_ANYWHERE"):  # in the worker: no model needs memory
    model_memory.needs = lambda *_: (0.0, None)

SECRET = "internal detail 4711"
TICK_SECONDS = 0.02
STEP_SECONDS = 0.05
STAY_AT_STEP = 5
SMALL_PX = 128
FRUGAL_PX = 192
FULL_AFTER_BYTES = 64
GRAIN = {"bf16": 0.2, "fp4": 0.3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One picture that is asked for; `mark` is the file that the prompt names."""

    request: GenerationRequest
    seed: int
    mark: Path
    on_step: Callable[[int, int, PreviewOf], None]
    preview: PreviewOf
    frugal: bool

    def step(self) -> None:
        self.on_step(1, self.request.num_inference_steps, self.preview)


class Scripted:
    """Implements `models.types.ImageModel`."""

    engine = "scripted"
    compute = "none"
    batches_exactly = True

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def generate(
        self,
        drawings: Sequence[Drawing],
        *,
        on_stage: Callable[[Stage], None],
        on_step: Callable[[int, int, PreviewOf], None],
        frugal: bool = False,
    ) -> tuple[list[Any], dict[str, float]]:
        _limit_file_size(None)
        on_stage(Stage.ENCODING)
        on_stage(Stage.DENOISING)
        pictures = [_colour(drawing) for drawing in drawings]
        for drawing in drawings:
            word, _, name = drawing.request.prompt.partition(" ")
            call = Call(
                request=drawing.request,
                seed=drawing.seed,
                mark=self._folder / (name or word),
                on_step=on_step,
                preview=lambda index: _jpeg(pictures[index]),
                frugal=frugal,
            )
            if action := _action(word, call.mark):
                action(call)
        request = drawings[0].request
        for step in range(request.steps_to_run):
            is_slow = any(
                drawing.request.prompt.startswith(("slow", "stay ")) for drawing in drawings
            )
            time.sleep(STEP_SECONDS if is_slow else 0)
            on_step(step + 1, request.steps_to_run, lambda index: _jpeg(pictures[index]))
            while step + 1 == STAY_AT_STEP and self._stays(drawings):
                on_step(step + 1, request.steps_to_run, lambda index: _jpeg(pictures[index]))
                time.sleep(TICK_SECONDS)
        on_stage(Stage.DECODING)
        for drawing in drawings:
            if drawing.request.prompt.startswith("linger "):
                _wait_for(self._folder / drawing.request.prompt.removeprefix("linger "))
        return pictures, {"encode": 0.0, "denoise": 0.0, "decode": 0.0}

    def _stays(self, drawings: Sequence[Drawing]) -> bool:
        names = (drawing.request.prompt.partition("stay ") for drawing in drawings)
        return any(
            not before and name and not (self._folder / name).exists() for before, _, name in names
        )

    def use_loras(self, loras: Sequence[LoraRef]) -> tuple[LoraApplied, ...]:
        """Takes any, of which four keys fit; one named `misfit` does not fit."""
        for lora in loras:
            if lora.name == "misfit":
                raise LoraIncompatible(f"LoRA {lora.name}: the LoRA is for FLUX.2 Klein 4B")
        return tuple(
            LoraApplied(
                name=lora.name,
                sha256=lora.sha256,
                weight=lora.weight,
                matched_keys=4,
                unmatched_keys=0,
            )
            for lora in loras
        )

    def unload(self) -> None:
        pass


def _colour(drawing: Drawing) -> Image.Image:
    words = " ".join((drawing.request.prompt, str(drawing.seed), *drawing.request.reference_images))
    colour = hashlib.sha256(words.encode()).digest()[:3]
    size = (drawing.request.width, drawing.request.height)
    picture = Image.new("RGB", size, tuple(colour))
    if "striped" in drawing.request.prompt:
        for left in range(0, size[0], 16):
            picture.paste("black", (left, 0, left + 4, size[1]))
    if "grainy" in drawing.request.prompt:
        grain = Image.frombytes(
            "RGB", size, random.Random(drawing.seed).randbytes(3 * size[0] * size[1])
        )
        picture = Image.blend(picture, grain, GRAIN[os.environ.get("TEST_PRECISION", "bf16")])
    return picture


def _jpeg(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG")
    return buffer.getvalue()


def scripted(row: ModelRow, options: LoadOptions) -> ImageModel:
    options.models_dir.mkdir(parents=True, exist_ok=True)
    return Scripted(options.models_dir)


def scripted_or_mflux(row: ModelRow, options: LoadOptions) -> ImageModel:
    """mflux's models by whatever commands lie on PATH, as on a Mac; the others are scripted."""
    if not row.command:
        return scripted(row, options)
    from models.families import mflux, mflux_command
    from models.precision import profile_of

    mflux_command.is_apple_silicon = lambda: True
    return mflux.load(row, options, profile_of("bf16"))


def exits_while_loading(row: ModelRow, options: LoadOptions) -> ImageModel:
    os._exit(3)


def waits_while_loading(row: ModelRow, options: LoadOptions) -> ImageModel:
    """Is loaded as soon as the file `weights` lies in models_dir; one that is told nothing, as a long read is."""
    options.models_dir.mkdir(parents=True, exist_ok=True)
    _wait_for(options.models_dir / "weights")
    return scripted(row, options)


def tells_while_loading(row: ModelRow, options: LoadOptions) -> ImageModel:
    """The same, and says that a quarter is done."""
    options.on_progress("part 1 of 4", 0.25)
    return waits_while_loading(row, options)


def needs_weights(row: ModelRow, options: LoadOptions) -> ImageModel:
    """Fails as a missing model does until the file `weights` lies in models_dir."""
    if not (options.models_dir / "weights").exists():
        raise ModelUnavailable(f"model {row.id}: its files are not here; fetch them")
    return scripted(row, options)


def __getattr__(name: str) -> Any:
    """Looked up when a worker starts: `exits_at_start` ends it, `waits_at_start` waits for the file TEST_GATE."""
    if name == "exits_at_start":
        sys.exit(3)
    if name == "waits_at_start":
        _wait_for(Path(os.environ["TEST_GATE"]))
        return scripted
    raise AttributeError(name)


def _action(word: str, mark: Path) -> Callable[[Call], None] | None:
    """What the word asks for; the first time only for one that ends in `-once`."""
    once = word.endswith("-once")
    if once and mark.exists():
        return None
    action = _ACTIONS.get(word.removesuffix("-once"))
    if action is not None and once:
        mark.touch()
    return action


def _hold(call: Call) -> None:
    while not call.mark.exists():
        call.step()
        time.sleep(TICK_SECONDS)


def _hold_late(call: Call) -> None:
    if call.seed >= call.request.seed + EXACT_BATCH_SIZE:
        _hold(call)


def _hang(call: Call) -> None:
    _wait_for(call.mark)


def _wait_for(mark: Path) -> None:
    while not mark.exists():
        time.sleep(TICK_SECONDS)


def _watched(call: Call) -> None:
    def preview(index: int) -> bytes:
        call.mark.with_suffix(".seen").touch()
        return call.preview(index)

    while not call.mark.exists():
        call.on_step(1, call.request.num_inference_steps, preview)
        time.sleep(TICK_SECONDS)


def _raise(call: Call) -> None:
    raise RuntimeError(SECRET)


def _raise_late(call: Call) -> None:
    if call.seed > call.request.seed:
        raise RuntimeError(SECRET)


def _oserror(call: Call) -> None:
    raise OSError(SECRET)


def _oom(call: Call) -> None:
    import torch

    if call.request.width > (FRUGAL_PX if call.frugal else SMALL_PX):
        raise torch.OutOfMemoryError(SECRET)


def _cuda(call: Call) -> None:
    raise RuntimeError("CUDA error: device-side assert triggered")


def _kill(call: Call) -> None:
    call.step()
    os.kill(os.getpid(), signal.SIGKILL)


def _full(call: Call) -> None:
    _limit_file_size(FULL_AFTER_BYTES)


def _limit_file_size(limit_bytes: int | None) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard if limit_bytes is None else limit_bytes, hard))


_ACTIONS: dict[str, Callable[[Call], None]] = {
    "hold": _hold,
    "hold-late": _hold_late,
    "hang": _hang,
    "watched": _watched,
    "raise": _raise,
    "raise-late": _raise_late,
    "oserror": _oserror,
    "oom": _oom,
    "cuda": _cuda,
    "kill": _kill,
    "full": _full,
}
