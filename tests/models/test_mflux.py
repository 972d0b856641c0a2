"""mflux's commands as a model: what they are told, what is read off their output, and how they end."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from config.catalog import load_catalog
from config.errors import FluxError, ModelUnavailable, NotFound
from config.settings import ROOT
from models.families import command_guard, mflux, mflux_command
from models.lora.errors import BadLoraFile, LoraIncompatible
from models.precision import profile_of
from models.types import (
    Cancelled,
    Drawing,
    GenerationRequest,
    LoadOptions,
    LoraRef,
    OutOfMemory,
    OutputFormat,
    Stage,
)
from tests import lora_files, mflux_stand_in

CATALOG = load_catalog()
REQUEST = GenerationRequest(
    prompt="a red balloon",
    negative_prompt=None,
    model="mflux-schnell",
    backend="mflux",
    width=64,
    height=48,
    num_inference_steps=4,
    guidance_scale=0.0,
    true_cfg_scale=1.0,
    seed=5,
    num_images=1,
    output_format=OutputFormat.PNG,
    output_quality=95,
    tags=(),
)


@pytest.fixture(autouse=True)
def mac(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Mac with the commands installed, and a folder of its own for what is temporary."""
    monkeypatch.setattr(mflux_command, "is_apple_silicon", lambda: True)
    mflux_stand_in.install(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))


Load = Callable[..., mflux.Mflux]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def load(model_id: str = "mflux-schnell", **changes: Any) -> mflux.Mflux:
        options = LoadOptions(
            devices=("cpu",),
            models_dir=tmp_path / "models",
            allow_download=False,
            loras_dir=tmp_path / "loras",
            **changes,
        )
        return mflux.load(CATALOG[model_id], options, profile_of("bf16"))

    return load


class Listener:
    """Hears what a drawing tells; cancels when `leave()` says so."""

    def __init__(self, leave: Callable[[Listener], bool] = lambda listener: False) -> None:
        self.stages: list[Stage] = []
        self.steps: list[tuple[int, int]] = []
        self._leave = leave

    def on_stage(self, stage: Stage) -> None:
        if not self.stages or self.stages[-1] is not stage:
            self.stages.append(stage)
        if self._leave(self):
            raise Cancelled

    def on_step(self, step: int, steps: int, preview: Any) -> None:
        assert preview is None
        self.steps.append((step, steps))


def drawing(prompt: str = REQUEST.prompt, *, seed: int = 5, image: Any = None, **changes: Any):
    return Drawing(request=replace(REQUEST, prompt=prompt, **changes), seed=seed, image=image)


def draw(model: mflux.Mflux, *drawings: Drawing, **options: Any) -> tuple[list[Any], Listener]:
    listener = options.pop("listener", Listener())
    images, _ = model.generate(
        drawings, on_stage=listener.on_stage, on_step=listener.on_step, **options
    )
    return images, listener


def command_line(model_id: str, request: GenerationRequest = REQUEST, **changes: Any) -> str:
    options = {"bits": 0, "frugal": False} | changes
    return " ".join(mflux_command.arguments(CATALOG[model_id], request, [5], [], **options))


# What the command is told


def test_arguments_are_those_of_the_request() -> None:
    assert command_line("mflux-schnell") == (
        "--model schnell --prompt-file prompt.txt --output picture.png --seed 5 --width 64 --height 48 "
        "--steps 4"
    )


def test_arguments_guidance_is_told_where_it_acts() -> None:
    request = replace(REQUEST, guidance_scale=3.5)
    assert "--guidance 3.500000" in command_line("mflux-dev", request)
    assert "--guidance" not in command_line("mflux-z-image-turbo", request)


def test_arguments_bits_and_little_memory_are_told() -> None:
    assert command_line("mflux-klein-4b", bits=4, frugal=True).endswith("--quantize 4 --low-ram")


def test_arguments_strength_leaves_as_many_steps_as_the_request_counts() -> None:
    for steps in (1, 2, 3, 4, 7, 9, 28, 50, 100):
        for strength in (0.0, 0.1, 1 / 3, 0.5, 0.6, 0.75, 0.9, 1.0):
            request = replace(REQUEST, num_inference_steps=steps, strength=strength)
            words = command_line("mflux-schnell", request).split()
            first = 0
            if "--image-strength" in words:  # as mflux counts
                told = float(words[words.index("--image-strength") + 1])
                first = max(1, int(steps * told))
            assert steps - first == request.steps_to_run


def test_arguments_weights_of_loras_are_never_written_with_an_exponent() -> None:
    lora = (LoraRef(name="a", sha256="0" * 64, weight=-0.00001), Path("/loras/a.safetensors"))
    words = mflux_command.arguments(
        CATALOG["mflux-schnell"], REQUEST, [5], [lora], bits=0, frugal=False
    )
    assert words[-4:] == ["--lora-paths", "/loras/a.safetensors", "--lora-scales", "-0.000010"]


@pytest.mark.parametrize("row", [r for r in CATALOG if r.family == "mflux"], ids=lambda row: row.id)
def test_every_row_draws_with_its_command(load: Load, row: Any) -> None:
    images, _ = draw(load(row.id), drawing(seed=9))
    assert images[0].getpixel((0, 0)) == (9, len(REQUEST.prompt), 7)


@pytest.mark.parametrize("prompt", ["-", "--steps 9", "{seed}", "zwei\nZeilen", "ein Häuschen 🏠"])
def test_generate_prompt_comes_as_it_is(load: Load, prompt: str) -> None:
    images, _ = draw(load(), drawing(prompt))
    assert images[0].getpixel((0, 0))[1] == len(prompt)


# What is read off its output


def test_generate_picture_has_the_requests_size_and_steps_are_told(load: Load) -> None:
    images, listener = draw(load(), drawing())
    assert [(image.mode, image.size) for image in images] == [("RGB", (64, 48))]
    assert listener.steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert listener.stages == [Stage.LOADING, Stage.DENOISING, Stage.DECODING]


def test_generate_bars_of_downloads_are_loading(load: Load) -> None:
    # As many files as steps: only the name before the bar tells them apart.
    _, listener = draw(load(), drawing("fetch", num_inference_steps=3))
    assert listener.steps == [(1, 3), (2, 3), (3, 3)]


def test_generate_without_bars_tells_the_steps_at_the_end(load: Load) -> None:
    _, listener = draw(load(), drawing("quiet"))
    assert listener.steps == [(4, 4)]


def test_generate_begins_with_a_picture_at_the_step_of_its_strength(load: Load) -> None:
    start = Image.new("RGB", (64, 48), (1, 200, 3))
    images, listener = draw(load(), drawing(image=start, strength=0.5))
    assert images[0].getpixel((0, 0)) == (1, 200, 3)
    assert listener.steps == [(1, 2), (2, 2)]


def test_generate_of_full_strength_does_not_look_at_the_picture(load: Load) -> None:
    start = Image.new("RGB", (64, 48), (1, 200, 3))
    images, _ = draw(load(), drawing(image=start, strength=1.0))
    assert images[0].getpixel((0, 0)) == (5, len(REQUEST.prompt), 7)


def test_generate_seeds_of_a_text_are_one_run_and_others_their_own(load: Load) -> None:
    drawings = [drawing(seed=1), drawing(seed=2), drawing("another text", seed=3)]
    images, listener = draw(load(), *drawings)
    assert [image.getpixel((0, 0))[:2] for image in images] == [(1, 13), (2, 13), (3, 12)]
    assert listener.steps == [(step, 4) for step in (1, 2, 3, 4)]
    assert listener.stages.count(Stage.LOADING) == 2  # runs


def test_generate_equal_seeds_are_drawn_once_for_all(load: Load) -> None:
    images, listener = draw(load(), drawing(seed=4), drawing(seed=4))
    assert [image.getpixel((0, 0))[0] for image in images] == [4, 4]
    assert listener.steps == [(step, 4) for step in (1, 2, 3, 4)]


def test_generate_times_loading_and_steps(load: Load) -> None:
    listener = Listener()
    _, ms = load().generate([drawing()], on_stage=listener.on_stage, on_step=listener.on_step)
    assert set(ms) == {"load", "denoise", "decode"} and ms["load"] > 0 and ms["denoise"] > 0


# How it fails


@pytest.mark.parametrize(
    ("prompt", "kind", "words"),
    [
        ("crash", FluxError, "mflux ended with exit status 1: ValueError: the tensors do not fit"),
        ("gated", ModelUnavailable, "accept its licence there and set HF_TOKEN"),
        ("offline", ModelUnavailable, "is not on this machine and could not be fetched"),
        ("memory", OutOfMemory, "Insufficient Memory"),
        ("killed", OutOfMemory, ""),
        ("battery", FluxError, "drew no picture: Battery below 5% threshold: 3%"),
        ("small", FluxError, "drew 32x24 px in place of 64x48"),
    ],
)
def test_generate_failure_says_what_the_command_said(
    load: Load, tmp_path: Path, prompt: str, kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind) as failure:
        draw(load(), drawing(prompt))
    assert words in str(failure.value)
    assert not list((tmp_path / "temporary").iterdir())


def test_generate_out_of_memory_is_drawn_with_less(load: Load) -> None:
    images, _ = draw(load(), drawing("memory"), frugal=True)
    assert len(images) == 1


def test_generate_command_too_old_for_an_option_says_to_update(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load()
    arguments = mflux_command.arguments
    monkeypatch.setattr(
        mflux_command, "arguments", lambda *args, **kwargs: [*arguments(*args, **kwargs), "--newer"]
    )
    with pytest.raises(ModelUnavailable, match=r"unrecognized arguments: --newer; update it"):
        draw(model, drawing())


def test_generate_leaves_nothing_running_when_the_command_leaves_a_process(
    load: Load, tmp_path: Path
) -> None:
    images, _ = draw(load(), drawing(f"leave {tmp_path / 'child'}"))
    assert len(images) == 1
    wait_for_end(int((tmp_path / "child").read_text()))


# Cancelling


def commands_alive() -> list[list[str]]:
    """What this process started with mflux's names or as their guard; other tests have services of theirs."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            found.append(child.cmdline())
    return [
        words
        for words in found
        if any(Path(word).name.startswith(("mflux-", "command_guard")) for word in words)
    ]


def test_generate_cancelled_while_it_loads_ends_the_command(load: Load, tmp_path: Path) -> None:
    looks = iter(range(100))
    with pytest.raises(Cancelled):
        draw(
            load(),
            drawing(f"slow {tmp_path / 'never'}"),
            listener=Listener(lambda _: next(looks) > 1),
        )
    assert not commands_alive()
    assert not list((tmp_path / "temporary").iterdir())


def test_generate_cancelled_ends_the_command_and_its_children_though_they_are_deaf(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child, seen = tmp_path / "child", []
    monkeypatch.setattr(command_guard, "GRACE_SECONDS", 0.2)

    def is_cancelled(_: object) -> bool:
        seen.extend(commands_alive())
        return child.exists()

    with pytest.raises(Cancelled):
        draw(load(), drawing(f"family {child}"), listener=Listener(is_cancelled))
    wait_for_end(int(child.read_text()))
    assert seen and not commands_alive()
    assert not list((tmp_path / "temporary").iterdir())


def test_generate_after_a_cancelled_one_draws(load: Load, tmp_path: Path) -> None:
    model = load()
    with pytest.raises(Cancelled):
        draw(model, drawing(), listener=Listener(lambda listener: bool(listener.steps)))
    assert len(draw(model, drawing())[0]) == 1


OWNER = """
import sys
from pathlib import Path
from models.families import mflux, mflux_command
from tests.models import test_mflux
mflux_command.is_apple_silicon = lambda: True
model = mflux.Mflux(test_mflux.CATALOG["mflux-schnell"], bits=0, models_dir=Path(sys.argv[1]))
test_mflux.draw(model, test_mflux.drawing(sys.argv[2]))
"""


def test_guard_whose_owner_died_ends_the_command_and_removes_its_folder(tmp_path: Path) -> None:
    child, temporary = tmp_path / "child", tmp_path / "temporary"
    words = [sys.executable, "-c", OWNER, str(tmp_path), f"family {child}"]
    owner = subprocess.Popen(words, cwd=ROOT, env=os.environ | {"TMPDIR": str(temporary)})
    while not child.exists():
        assert owner.poll() is None
        time.sleep(0.02)
    others = psutil.Process(owner.pid).children(recursive=True)
    owner.kill()
    owner.wait()
    _, alive = psutil.wait_procs(others, timeout=120)
    assert len(others) == 3 and not alive  # guard, command, and the command's child
    assert not list(temporary.iterdir())


def wait_for_end(process_id: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(process_id).wait(timeout=120)


# LoRAs


def lora(tmp_path: Path, modules: dict[str, tuple[int, int]], **changes: Any) -> LoraRef:
    """A file where a worker has its LoRAs; `changes` are of its bytes or its reference."""
    data = changes.pop("data", lora_files.lora(0.5, modules))
    (tmp_path / "loras").mkdir(exist_ok=True)
    sha256 = changes.pop("sha256", hashlib.sha256(data).hexdigest())
    (tmp_path / "loras" / f"{sha256}.safetensors").write_bytes(data)
    return LoraRef(name="mine", sha256=sha256, weight=changes.pop("weight", 0.7))


def matched(model: mflux.Mflux, *refs: LoraRef) -> list[tuple[int, int]]:
    return [(one.matched_keys, one.unmatched_keys) for one in model.use_loras(refs)]


CLIP = {"lora_te1_text_model_encoder_layers_0_mlp_fc1": (3072, 768)}
STRANGER = {"lora_unet_single_blocks_0_stranger": (8, 8)}


def test_use_loras_counts_tensors_of_text_encoders_as_unmatched(load: Load, tmp_path: Path) -> None:
    assert matched(load(), lora(tmp_path, lora_files.FLUX1 | CLIP)) == [(2, 2)]


def test_use_loras_counts_what_the_command_has_matched_once_it_ran(
    load: Load, tmp_path: Path
) -> None:
    model, ref = load(), lora(tmp_path, lora_files.FLUX1 | STRANGER)
    assert matched(model, ref) == [(4, 0)]
    draw(model, drawing(loras=(ref,)))
    assert matched(model, ref) == [(2, 2)]


def test_generate_lora_that_changes_no_layer_fails(load: Load, tmp_path: Path) -> None:
    model, ref = load(), lora(tmp_path, STRANGER)
    model.use_loras([ref])
    with pytest.raises(LoraIncompatible, match="LoRA mine: mflux finds no layer of mflux-schnell"):
        draw(model, drawing())


def test_generate_lora_that_the_command_refuses_fails_by_its_name(
    load: Load, tmp_path: Path
) -> None:
    model, ref = load(), lora(tmp_path, {"lora_unet_single_blocks_0_misfit": (8, 8)})
    model.use_loras([ref])
    with pytest.raises(LoraIncompatible, match="layers named by mine could not be applied"):
        draw(model, drawing())


def test_generate_lora_of_weight_0_is_not_told_to_the_command(load: Load, tmp_path: Path) -> None:
    model, ref = load(), lora(tmp_path, STRANGER, weight=0.0)
    model.use_loras([ref])
    assert len(draw(model, drawing())[0]) == 1


def test_use_loras_without_any_draws_without_those_before(load: Load, tmp_path: Path) -> None:
    model, ref = load(), lora(tmp_path, STRANGER)
    model.use_loras([ref])
    assert model.use_loras([]) == ()
    assert len(draw(model, drawing())[0]) == 1


def test_use_loras_of_text_encoders_alone_is_refused(load: Load, tmp_path: Path) -> None:
    with pytest.raises(LoraIncompatible, match="LoRA mine: .* the transformer"):
        load().use_loras([lora(tmp_path, CLIP)])


def test_use_loras_file_that_is_gone_or_changed_is_refused(load: Load, tmp_path: Path) -> None:
    gone = LoraRef(name="gone", sha256="1" * 64, weight=1.0)
    with pytest.raises(NotFound, match="LoRA gone: its file is not on this machine"):
        load().use_loras([gone])
    with pytest.raises(BadLoraFile, match="LoRA mine: its file was changed"):
        load().use_loras([lora(tmp_path, lora_files.FLUX1, sha256="2" * 64)])


# Loading


def test_load_says_what_it_computes_with(load: Load) -> None:
    model = load(mflux_quantize=4)
    assert (model.engine, model.compute) == ("mflux-q4", "MLX, weights of 4 bits")
    assert load().engine == "mflux"


def test_load_without_the_commands_says_how_to_install_them(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ModelUnavailable, match=r"mflux-generate of mflux.*uv tool install mflux"):
        load()


def test_find_command_where_uv_puts_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setenv("HOME", str(tmp_path))
    mflux_stand_in.install(tmp_path / ".local" / "bin")
    assert mflux_command.find("mflux-generate") == str(tmp_path / ".local/bin/mflux-generate")


def test_why_not_here_elsewhere_names_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    reason = mflux_command.why_not_here(CATALOG["mflux-z-image-turbo"])
    assert reason is not None and "needs Apple Silicon" in reason and "Linux" in reason


def test_mflux_needs_no_torch() -> None:
    words = "import sys, models.families.mflux; print('torch' in sys.modules)"
    told = subprocess.run([sys.executable, "-c", words], cwd=ROOT, capture_output=True, text=True)
    assert told.stdout.strip() == "False", told.stderr


def test_quantised_catalog_tells_the_memory_of_so_many_bits() -> None:
    full, four = CATALOG["mflux-schnell"], mflux_command.quantised(CATALOG, 4)
    assert mflux_command.quantised(CATALOG, 0)["mflux-schnell"] == full
    assert four["mflux-schnell"].memory_gib["bf16"] == 11.0 < full.memory_gib["bf16"]
    assert four["flux-schnell"] == CATALOG["flux-schnell"] and four.ids == CATALOG.ids
