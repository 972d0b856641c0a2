"""FLUX and Z-Image by MLX on Apple Silicon: mflux's own commands, each run a child process.

mflux loads its weights in every run, so pictures that differ in their seed alone are one run. Steps are
read off its progress bars; between its lines we look whether anybody still waits. The process is held by
`command_guard.py`, so it ends with the job, and with the worker.

    what the command writes                      what is told
    nothing, or bars of downloads and weights    loading
    "  0%|    | 0/4 [00:00<?, ?it/s]"            denoising
    " 25%|##  | 1/4 [00:01<00:03, 1.0s/it]"      a step
    the last step of the last picture            decoding
"""

from __future__ import annotations

import logging
import os
import re
import select
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

from PIL import Image

from config.catalog import ModelRow
from config.errors import FluxError, ModelUnavailable, NotFound
from models.families import command_guard, mflux_command
from models.lora import keys
from models.lora.errors import BadLoraFile, LoraError, LoraIncompatible
from models.lora.header import read_header
from models.lora.shelf import sha256_of
from models.precision import PrecisionProfile
from models.types import (
    Drawing,
    GenerationRequest,
    LoadOptions,
    LoraApplied,
    LoraRef,
    OutOfMemory,
    PreviewOf,
    Stage,
)

log = logging.getLogger("models.mflux")

POLL_SECONDS = 0.2  # how soon a cancel is seen
TAIL_LINES = 40  # of what the command wrote, for the log
MESSAGE_CHARS = 300

_BAR = re.compile(r"\s*\d+%\|[^|]*\|\s*(\d+)/(\d+)\s\[")  # bars of downloads begin with a name
_ANY_BAR = re.compile(r"\d+%\|[^|]*\|")
_LORA = re.compile(r"Applying LoRA: ([0-9a-f]{64})\.safetensors")
_MATCHED = re.compile(r"Applied to (\d+) layers \((\d+)/(\d+) keys matched\)")
_UNMATCHED = re.compile(r"(\d+) unmatched keys in LoRA file")
_LORA_FAULT = re.compile(r"\bLoRA\b|\badapter\b|layers named by", re.I)
_STATISTICS = re.compile(r"Peak MLX memory")  # the last line of every run

_NO_MEMORY = re.compile(
    r"insufficient memory|out ?of ?memory|unable to allocate|allowed buffer size|MemoryError", re.I
)
_NO_ACCESS = re.compile(r"GatedRepo|\b40[13] Client Error|access to model .* is restricted", re.I)
_NO_FILES = re.compile(
    r"LocalEntryNotFound|OfflineMode|RepositoryNotFound|outgoing traffic has been disabled"
    r"|Connect(?:ion)?Error|Max retries exceeded|Failed to resolve|Temporary failure",
    re.I,
)
_SIGKILL_STATUS = 137  # as `command_guard` has it: on a Mac, mostly for want of memory


class Mflux:
    """Implements `models.types.ImageModel`; nothing is loaded between two calls of `generate`."""

    # Seeds are drawn one after the other, whoever else is drawn.
    batches_exactly = True

    def __init__(
        self, row: ModelRow, *, bits: int, models_dir: Path, loras_dir: Path | None = None
    ) -> None:
        self.engine = f"mflux-q{bits}" if bits else "mflux"
        self.compute = f"MLX, weights of {bits} bits" if bits else "MLX, BF16"
        self._row, self._bits = row, bits
        self._models_dir, self._loras_dir = models_dir, loras_dir
        self._loras: list[tuple[LoraRef, Path]] = []
        self._matched: dict[str, tuple[int, int]] = {}  # by content: tensors matched, and not

    def use_loras(self, loras: Sequence[LoraRef]) -> tuple[LoraApplied, ...]:
        """As `models.types.ImageModel` says, by the files' headers until a run has told the numbers."""
        acting = [(ref, self._open(ref)) for ref in loras]
        applied = []
        for ref, _ in acting:
            matched, unmatched = self._matched[ref.sha256]
            applied.append(
                LoraApplied(
                    name=ref.name,
                    sha256=ref.sha256,
                    weight=ref.weight,
                    matched_keys=matched,
                    unmatched_keys=unmatched,
                )
            )
        self._loras = [(ref, path) for ref, path in acting if ref.weight]
        return tuple(applied)

    def generate(
        self,
        drawings: Sequence[Drawing],
        *,
        on_stage: Callable[[Stage], None],
        on_step: Callable[[int, int, PreviewOf | None], None],
        frugal: bool = False,
    ) -> tuple[list[Any], dict[str, float]]:
        """Draw pictures, Pillow RGB images of `width` x `height` px, one run for each text and start."""
        on_stage(Stage.LOADING)
        runs = [list(group) for _, group in groupby(drawings, key=_run_key)]
        pictures = sum(len(_seeds(run)) for run in runs)
        told = _Told(drawings[0].request, pictures, on_stage, on_step)
        images: list[Any] = []
        for run in runs:
            images += self._run(run, told, frugal)
        return images, told.ms

    def unload(self) -> None:
        """There is nothing to let go of."""

    def _run(self, drawings: list[Drawing], told: _Told, frugal: bool) -> list[Any]:
        command = mflux_command.find(self._row.command[0])
        if command is None:
            raise ModelUnavailable(str(mflux_command.why_not_here(self._row)))
        request, seeds = drawings[0].request, _seeds(drawings)
        with tempfile.TemporaryDirectory(prefix="mflux-", ignore_cleanup_errors=True) as name:
            folder = Path(name)
            prompt = request.prompt_to_encode
            (folder / mflux_command.PROMPT).write_text(prompt, encoding="utf-8")
            if mflux_command.steps_kept(request):
                drawings[0].image.save(folder / mflux_command.START)
            words = mflux_command.arguments(
                self._row, request, seeds, self._loras, bits=self._bits, frugal=frugal
            )
            said = _Said()
            with _started([command, *words], folder, self._environment()) as process:
                for piece in _pieces(process):
                    if piece and not told.bar(piece):
                        said.take(piece)
                    told.look_around()
                status = process.wait()
            self._learn(said)
            if status:
                raise self._failure(said, status)
            images = {
                seed: self._open_picture(
                    folder / mflux_command.picture_of(seed, seeds), request, said
                )
                for seed in seeds
            }
        told.run_done(len(seeds))
        return [images[drawing.seed] for drawing in drawings]

    def _environment(self) -> dict[str, str]:
        theirs = {k: v for k, v in os.environ.items() if not k.startswith(("FLUX_", "SD_"))}
        environment = {**theirs, "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"}
        if not os.environ.get("HF_HOME"):
            environment["HF_HUB_CACHE"] = str(self._models_dir)
        # The service's worker has them off; here they are the sign that a download goes on.
        environment.pop("HF_HUB_DISABLE_PROGRESS_BARS", None)
        return environment

    def _open(self, ref: LoraRef) -> Path:
        """The LoRA's file, looked at once. Raises NotFound, LoraError."""
        path = None if self._loras_dir is None else self._loras_dir / f"{ref.sha256}.safetensors"
        if path is None or not path.is_file():
            raise NotFound(
                f"LoRA {ref.name}: its file is not on this machine any more; upload it again"
            )
        if ref.sha256 not in self._matched:
            try:
                if sha256_of(path) != ref.sha256:
                    raise BadLoraFile(
                        "its file was changed where it lies; delete and upload it again"
                    )
                self._matched[ref.sha256] = _expected_matches(path)
            except LoraError as error:
                raise type(error)(f"LoRA {ref.name}: {error.message}") from error
        return path

    def _learn(self, said: _Said) -> None:
        """What mflux itself has matched; raises LoraIncompatible for a LoRA that changed nothing."""
        names = {ref.sha256: ref.name for ref, _ in self._loras}
        for sha256, (layers, matched, total) in said.loras.items():
            if sha256 not in names:
                continue
            if layers == 0:
                raise LoraIncompatible(
                    f"LoRA {names[sha256]}: mflux finds no layer of {self._row.id} for any of its "
                    f"{total} tensors"
                )
            self._matched[sha256] = (matched, total - matched)

    def _open_picture(self, path: Path, request: GenerationRequest, said: _Said) -> Any:
        if not path.is_file():
            # A run that is stopped, for example for an empty battery, says so and ends well.
            log.error("mflux left no picture: %s", said.tail, extra={"action": "mflux_no_picture"})
            raise FluxError(f"mflux drew no picture: {said.last or 'it said nothing'}")
        with Image.open(path) as picture:
            image = picture.convert("RGB")
        if image.size != (request.width, request.height):
            raise FluxError(
                f"mflux drew {image.width}x{image.height} px in place of "
                f"{request.width}x{request.height}; update it: uv tool upgrade mflux"
            )
        return image

    def _failure(self, said: _Said, status: int) -> Exception:
        log.error(
            "mflux failed with exit status %d: %s",
            status,
            said.tail,
            extra={"action": "mflux_failed", "model": self._row.id},
        )
        if status == _SIGKILL_STATUS or _NO_MEMORY.search(said.tail):
            return OutOfMemory(said.last)
        if _NO_ACCESS.search(said.tail):
            return ModelUnavailable(
                f"model {self._row.id}: the Hub refuses {self._row.source}: accept its licence there and "
                "set HF_TOKEN for the service"
            )
        if _NO_FILES.search(said.tail):
            return ModelUnavailable(
                f"model {self._row.id}: {self._row.source} is not on this machine and could not be "
                f"fetched: {said.last}"
            )
        if self._loras and status == 1 and _LORA_FAULT.search(said.last):
            return LoraIncompatible(f"mflux cannot apply the LoRAs: {self._with_names(said.last)}")
        if said.last.startswith("mflux") and "error: unrecognized arguments" in said.last:
            return ModelUnavailable(f"{said.last}; update it: uv tool upgrade mflux")
        return FluxError(f"mflux ended with exit status {status}: {said.last or 'it said nothing'}")

    def _with_names(self, text: str) -> str:
        """`text` with LoRAs called what people call them, in place of their files."""
        for ref, path in self._loras:
            text = text.replace(str(path), ref.name).replace(path.name, ref.name)
        return text


def load(row: ModelRow, options: LoadOptions, profile: PrecisionProfile) -> Mflux:
    """Nothing is read yet. Raises ModelUnavailable where mflux cannot run, saying why."""
    reason = mflux_command.why_not_here(row)
    if reason is not None:
        raise ModelUnavailable(reason)
    return Mflux(
        row,
        bits=options.mflux_quantize,
        models_dir=options.models_dir,
        loras_dir=options.loras_dir,
    )


class _Told:
    """What those who wait are told, from one or several runs of `pictures` pictures in all."""

    def __init__(
        self,
        request: GenerationRequest,
        pictures: int,
        on_stage: Callable[[Stage], None],
        on_step: Callable[[int, int, PreviewOf | None], None],
    ) -> None:
        self._steps, self._pictures = request.steps_to_run, pictures
        self._on_stage, self._on_step = on_stage, on_step
        self._stage = Stage.LOADING
        self._finished = 0  # pictures
        self._in_run = 0  # pictures of the present run whose bar has ended
        self._done = 0  # steps of the present picture
        self._reported = 0
        self._lap = time.perf_counter()
        self.ms = {"load": 0.0, "denoise": 0.0, "decode": 0.0}

    def look_around(self) -> None:
        """Raises Cancelled when nobody waits any more."""
        self._on_stage(self._stage)

    def bar(self, line: str) -> bool:
        """Whether a line is a bar of the sampler's; a step is told."""
        match = _BAR.match(line)
        if match is None or int(match[2]) != self._steps:
            return False
        if self._stage is Stage.DECODING:  # a bar may be written once more when it is closed
            return True
        done = int(match[1])
        if done < self._done:  # the next seed's bar
            self._in_run += 1
        self._done = done
        self._enter(Stage.DENOISING)
        self._report()
        if done == self._steps and self._before + 1 == self._pictures:
            self._enter(Stage.DECODING)
        return True

    def run_done(self, count: int) -> None:
        """A run has ended well with so many pictures."""
        self._finished += count
        self._in_run = self._done = 0
        if self._finished < self._pictures:
            self._enter(Stage.LOADING)
        else:
            self._report()  # a bar may leave out its last steps
            self._enter(Stage.DECODING)
            self._add()

    @property
    def _before(self) -> int:
        return self._finished + self._in_run

    def _report(self) -> None:
        """All pictures are told to be as far as the sum of their steps is: they are drawn in turn."""
        step = (self._before * self._steps + self._done) // self._pictures
        if step > self._reported:
            self._reported = step
            self._on_step(step, self._steps, None)

    def _enter(self, stage: Stage) -> None:
        if stage is not self._stage:
            self._add()
            self._stage = stage
            self._on_stage(stage)

    def _add(self) -> None:
        names = {Stage.LOADING: "load", Stage.DENOISING: "denoise", Stage.DECODING: "decode"}
        now = time.perf_counter()
        self.ms[names[self._stage]] += (now - self._lap) * 1000
        self._lap = now


class _Said:
    """The lines a command wrote that are no bars, and what they tell about LoRAs."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=TAIL_LINES)
        self._lora = ""
        self.loras: dict[str, tuple[int, int, int]] = {}  # layers, tensors matched, tensors

    def take(self, line: str) -> None:
        if not line.strip() or _ANY_BAR.search(line) or _STATISTICS.search(line):
            return
        self._lines.append(line.rstrip())
        if "⚠️" in line:  # for example of a LoRA that rounding has taken the most of
            log.warning("mflux says: %s", line.strip(), extra={"action": "mflux_warning"})
        if match := _LORA.search(line):
            self._lora = match[1]
        elif self._lora and (match := _MATCHED.search(line)):
            self.loras[self._lora] = (int(match[1]), int(match[2]), int(match[3]))
        elif self._lora not in self.loras and (match := _UNMATCHED.search(line)):
            self.loras[self._lora] = (0, 0, int(match[1]))  # nothing else is said then

    @property
    def tail(self) -> str:
        return "\n".join(self._lines)

    @property
    def last(self) -> str:
        line = self._lines[-1].strip() if self._lines else ""
        return "".join(c if c.isprintable() else " " for c in line)[:MESSAGE_CHARS]


@contextmanager
def _started(
    command: list[str], folder: Path, environment: dict[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """A command under its guard, which has ended when this is left."""
    grace = command_guard.GRACE_SECONDS
    guard = [sys.executable, "-I", "-S", command_guard.__file__, str(folder), str(grace)]
    process = subprocess.Popen(
        [*guard, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.close()  # the guard ends what still runs
        try:
            process.wait(grace + 5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def _pieces(process: subprocess.Popen[bytes]) -> Iterator[str]:
    """Lines as they come, bars written over each other included, and "" when none came for a while."""
    assert process.stdout is not None
    stream, rest = process.stdout.fileno(), b""
    while True:
        ended = process.poll() is not None
        if not select.select([stream], [], [], 0 if ended else POLL_SECONDS)[0]:
            if ended:
                break  # who still holds the pipe is not the command
            yield ""
            continue
        data = os.read(stream, 65536)
        if not data:
            break
        *lines, rest = re.split(rb"[\r\n]+", rest + data)
        for line in lines:
            yield line.decode(errors="replace")
    if rest:
        yield rest.decode(errors="replace")


def _run_key(drawing: Drawing) -> tuple[str, int]:
    return drawing.request.prompt_to_encode, id(drawing.image)


def _seeds(drawings: Sequence[Drawing]) -> list[int]:
    """The seeds of a run; what two jobs ask for alike is drawn once."""
    return list(dict.fromkeys(drawing.seed for drawing in drawings))


def _expected_matches(path: Path) -> tuple[int, int]:
    """Tensors that should find a layer, and those that should not: mflux leaves text encoders as they are."""
    header = read_header(path)
    modules, unknown = keys.group(header.tensors)
    text = (keys.Style.CLIP, keys.Style.T5)
    left_out = sum(
        len(parts) for module, parts in modules.items() if keys.place(module).style in text
    )
    matched = sum(map(len, modules.values())) - left_out
    if matched == 0:
        raise LoraIncompatible("mflux applies LoRAs to the transformer, and this one is for others")
    return matched, left_out + len(unknown)
