"""LoRAs of FLUX.2 Klein, in each naming: every layer is found, and the picture is diffusers' own."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from diffusers import Flux2KleinPipeline
from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_flux2_lora_to_diffusers
from PIL import Image
from safetensors.torch import save_file

from config.catalog import load_catalog
from models import bf16_flux_model, fp4_flux_model
from models.fp4 import lowrank, prompts
from models.lora.base_model import Family
from models.lora.convert import convert
from models.lora.errors import LoraError
from models.lora.inspect import inspect, require
from models.types import LoadOptions, LoraRef
from tests.models.flux1_drawing import draw, threads
from tests.models.tiny_drawing import Tiny, generator
from tests.tiny_models import tiny_model

WIDTH, RANK = 64, 4
MLP = 3 * WIDTH
State = dict[str, torch.Tensor]

# BFL's names of one double and one single block, and of what there is once: outputs, inputs.
DOUBLE = {
    "img_attn.qkv": (3 * WIDTH, WIDTH), "img_attn.proj": (WIDTH, WIDTH),
    "txt_attn.qkv": (3 * WIDTH, WIDTH), "txt_attn.proj": (WIDTH, WIDTH),
    "img_mlp.0": (2 * MLP, WIDTH), "img_mlp.2": (WIDTH, MLP),
    "txt_mlp.0": (2 * MLP, WIDTH), "txt_mlp.2": (WIDTH, MLP),
}  # fmt: skip
SINGLE = {"linear1": (3 * WIDTH + 2 * MLP, WIDTH), "linear2": (WIDTH, WIDTH + MLP)}
ONCE = {
    "img_in": (WIDTH, 128), "txt_in": (WIDTH, 96), "time_in.in_layer": (WIDTH, 32),
    "time_in.out_layer": (WIDTH, WIDTH), "final_layer.linear": (128, WIDTH),
    "final_layer.adaLN_modulation.1": (2 * WIDTH, WIDTH),
    "single_stream_modulation.lin": (3 * WIDTH, WIDTH),
    "double_stream_modulation_img.lin": (6 * WIDTH, WIDTH),
    "double_stream_modulation_txt.lin": (6 * WIDTH, WIDTH),
}  # fmt: skip


def by_bfl() -> State:
    """A LoRA of every layer, as AI-Toolkit writes it."""
    random = torch.Generator().manual_seed(9)
    layers = {f"double_blocks.0.{name}": shape for name, shape in DOUBLE.items()} | ONCE
    for number in range(2):
        layers |= {f"single_blocks.{number}.{name}": shape for name, shape in SINGLE.items()}
    state = {}
    for name, (rows, columns) in layers.items():
        down = torch.randn(RANK, columns, generator=random) / columns**0.5
        state[f"diffusion_model.{name}.lora_A.weight"] = down
        state[f"diffusion_model.{name}.lora_B.weight"] = (
            torch.randn(rows, RANK, generator=random) / 4
        )
    return state


def by_kohya() -> State:
    """The same with underscores and an alpha."""
    state: State = {}
    for name, tensor in by_bfl().items():
        module, _, part = name.removeprefix("diffusion_model.").rpartition(".lora_")
        module = f"lora_unet_{module.replace('.', '_')}"
        end = "lora_down" if part.startswith("A") else "lora_up"
        state[f"{module}.{end}.weight"] = tensor
        state[f"{module}.alpha"] = torch.tensor(float(RANK))
    return state


def by_diffusers() -> State:
    return dict(_convert_non_diffusers_flux2_lora_to_diffusers(by_bfl()))


NAMINGS: list[Callable[[], State]] = [by_bfl, by_kohya, by_diffusers]


def put(folder: Path, state: State) -> LoraRef:
    """A file of a worker's folder of LoRAs."""
    file = folder / "new"
    save_file({name: tensor.clone() for name, tensor in state.items()}, file)
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    file.rename(folder / f"{sha256}.safetensors")
    return LoraRef(name="style", sha256=sha256, weight=0.8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("loras")


@pytest.fixture(scope="module")
def options(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> LoadOptions:
    models_dir = tmp_path_factory.mktemp("models")
    return LoadOptions(
        devices=("cpu",), models_dir=models_dir, allow_download=False, loras_dir=folder
    )


@pytest.fixture(scope="module")
def klein(tmp_path_factory: pytest.TempPathFactory, options: LoadOptions) -> Iterator[Tiny]:
    source = tmp_path_factory.mktemp("klein")
    row = tiny_model("flux2-klein-4b", source)
    with threads(1):
        yield Tiny(row, source, bf16_flux_model.load(row, options))


def drawn_with(tiny: Tiny, *refs: LoraRef) -> Image.Image:
    tiny.model.use_loras(refs)
    try:
        [picture] = draw(tiny.model, tiny.drawing(loras=refs))
        return picture
    finally:
        tiny.model.use_loras([])


@pytest.mark.parametrize("naming", NAMINGS)
def test_every_layer_is_found_in_each_naming(
    klein: Tiny, folder: Path, naming: Callable[[], State]
) -> None:
    [applied] = klein.model.use_loras([put(folder, naming())])
    klein.model.use_loras([])
    assert applied.unmatched_keys == 0 and applied.matched_keys == len(naming())


@pytest.mark.parametrize("naming", NAMINGS[:2])
def test_deltas_are_those_of_diffusers_converter(folder: Path, naming: Callable[[], State]) -> None:
    found = convert(folder / f"{put(folder, naming()).sha256}.safetensors", Family.FLUX2).layers
    wanted = by_diffusers()
    assert {f"{name}.lora_A.weight" for name in found} | {
        f"{name}.lora_B.weight" for name in found
    } == set(wanted)
    for name, factors in found.items():
        delta = wanted[f"{name}.lora_B.weight"] @ wanted[f"{name}.lora_A.weight"]
        torch.testing.assert_close(factors.delta(), delta)


def test_picture_with_a_lora_is_diffusers_own(klein: Tiny, folder: Path) -> None:
    pipeline: Any = klein.pipeline(Flux2KleinPipeline)
    pipeline.load_lora_weights(by_bfl(), adapter_name="style")
    pipeline.set_adapters(["style"], [0.8])
    theirs = pipeline(
        prompt="a cat on a mat", width=96, height=64, num_inference_steps=2, guidance_scale=1.0,
        generator=generator(), max_sequence_length=32,
    ).images[0]  # fmt: skip
    ours = drawn_with(klein, put(folder, by_bfl()))
    difference = numpy.abs(numpy.array(ours).astype(int) - numpy.array(theirs))
    assert difference.max() <= 1
    assert ours.tobytes() != klein.draw().tobytes()


def test_lora_leaves_no_trace(klein: Tiny, folder: Path) -> None:
    before = klein.draw().tobytes()
    drawn_with(klein, put(folder, by_bfl()))
    assert klein.draw().tobytes() == before


def test_four_bits_draw_with_it_too(
    klein: Tiny, options: LoadOptions, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lowrank, "ROUNDS", 1)
    monkeypatch.setattr(prompts, "PROMPTS", tuple(f"{number} cats" for number in range(8)))
    four = fp4_flux_model.load(klein.row, dataclasses.replace(options, engine="nvfp4"))
    [applied] = four.use_loras([put(folder, by_bfl())])
    four.use_loras([])
    tiny = Tiny(klein.row, klein.folder, four)
    assert applied.unmatched_keys == 0
    assert drawn_with(tiny, put(folder, by_bfl())).tobytes() != tiny.draw().tobytes()


def test_lora_of_flux1_is_refused_by_name(klein: Tiny, folder: Path) -> None:
    name = "transformer.single_transformer_blocks.0.proj_mlp"
    state = {
        f"{name}.lora_A.weight": torch.ones(4, WIDTH),
        f"{name}.lora_B.weight": torch.ones(256, 4),
    }
    with pytest.raises(LoraError, match="style: the LoRA is for FLUX.1; this model is FLUX.2"):
        klein.model.use_loras([put(folder, state)])


def test_lora_of_another_size_is_refused_before_a_worker_has_it(folder: Path) -> None:
    info = inspect(folder / f"{put(folder, by_bfl()).sha256}.safetensors")
    assert (info.base.family, info.base.hidden_size) == (Family.FLUX2, WIDTH)
    with pytest.raises(LoraError, match="hidden size 64; this model has 3072"):
        require(info, Family.FLUX2, load_catalog()["flux2-klein-4b"].hidden_size)
