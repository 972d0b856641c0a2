"""Four bits of the other FLUX models: calibrated as diffusers draws, and they draw."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import Flux2KleinPipeline

from config.catalog import load_catalog
from config.errors import ModelUnavailable
from models import fp4_flux_model
from models.fp4 import calibration, lowrank, nvfp4_engine, offload, prompts
from models.fp4.checkpoint import Manifest
from models.fp4.kinds import KINDS, kind_of
from models.fp4.linear import fp4_layers
from models.fp4.streamed_klein import StreamedKlein, encode_prompts
from models.fp4.streaming import StreamedFill
from models.types import LoadOptions
from tests.models.fp4.conftest import PROMPTS, one_thread
from tests.models.tiny_drawing import Tiny, gradient
from tests.tiny_models import tiny_model

CPU = torch.device("cpu")
ROWS = ("flux2-klein-4b", "flux-kontext-dev", "flux-fill-dev")


def load_four_bits(row_id: str, folder: Path) -> Tiny:
    row = tiny_model(row_id, folder / "source")
    options = LoadOptions(
        devices=("cpu",), models_dir=folder / "models", allow_download=False, engine="nvfp4"
    )
    return Tiny(row, folder / "source", fp4_flux_model.load(row, options))


@pytest.fixture(scope="module")
def tinies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Tiny]]:
    """Each row's tiny model, its four bits made as on first use."""
    with pytest.MonkeyPatch.context() as patch, one_thread():
        patch.setattr(lowrank, "ROUNDS", 1)
        patch.setattr(prompts, "PROMPTS", PROMPTS)
        yield {row_id: load_four_bits(row_id, tmp_path_factory.mktemp("four")) for row_id in ROWS}


@pytest.fixture(scope="module")
def klein(tinies: dict[str, Tiny]) -> Tiny:
    return tinies["flux2-klein-4b"]


@pytest.mark.parametrize("row_id", ROWS)
def test_every_layer_of_the_blocks_has_four_bits(tinies: dict[str, Tiny], row_id: str) -> None:
    transformer = tinies[row_id].model._image.transformer
    linear = {
        name
        for name, module in transformer.named_modules()
        if isinstance(module, torch.nn.Linear) and "blocks." in name
    }
    assert not linear and any("single_" in name for name in fp4_layers(transformer))


@pytest.mark.parametrize("row_id", ROWS)
def test_four_bits_draw_nearly_what_sixteen_do(tinies: dict[str, Tiny], row_id: str) -> None:
    """The velocity of one step: the autoencoder of random weights would make much of little."""
    tiny = tinies[row_id]
    model, pipeline = tiny.model, tiny.pipeline(tiny.model.pipeline_class(tiny.row))
    seen: list[torch.Tensor] = []

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    inputs: dict[str, Any] = {}

    def take(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        inputs.update(kwargs)

    transformer = model._image.transformer
    hooks = [
        transformer.register_forward_pre_hook(take, with_kwargs=True),
        transformer.register_forward_hook(keep),
    ]
    begun = {"image": gradient(), "mask": gradient().convert("L")} if tiny.row.requires else {}
    tiny.draw(num_inference_steps=1, **begun)
    for hook in hooks:
        hook.remove()
    with torch.no_grad():
        wanted = pipeline.transformer(**inputs)[0]
    error = (seen[0] - wanted).norm() / wanted.norm()
    assert 0 < error < 0.3


def test_klein_in_four_bits_takes_references_and_a_picture(klein: Tiny) -> None:
    plain = klein.draw().tobytes()
    assert klein.draw(references=(gradient(),)).tobytes() != plain
    assert klein.draw(image=gradient(), strength=0.5).tobytes() != plain


def test_klein_text_encoder_and_modulations_stay_in_16_bit(klein: Tiny) -> None:
    manifest = Manifest.read(klein.folder.parent / "models" / "fp4" / klein.row.id)
    assert set(manifest.components) == {"transformer"}
    kept = manifest.components["transformer"].kept_16bit
    assert {"single_stream_modulation.linear", "x_embedder"} <= set(kept)


@torch.no_grad()
def test_klein_text_encoder_that_waits_encodes_the_same(klein: Tiny) -> None:
    options = LoadOptions(
        devices=("cpu",), models_dir=klein.folder.parent / "models", allow_download=False
    )
    copy = nvfp4_engine.find_or_make(klein.row, options)
    pipeline, _ = nvfp4_engine.load_pipeline(copy, klein.row, options)

    def encode() -> torch.Tensor:
        return pipeline.encode_prompt("a star", max_sequence_length=32)[0]

    before = encode()
    offload.stream_text_encoder(pipeline.text_encoder, CPU)
    for _ in range(2):
        assert torch.equal(encode(), before)


@torch.no_grad()
def test_klein_calibration_passes_through_the_latents_that_the_pipeline_does(klein: Tiny) -> None:
    prompt, pooled = encode_prompts(
        klein.folder, klein.row, PROMPTS[:2], CPU, torch.float32, lambda done: None
    )
    flux = StreamedKlein(klein.folder, CPU, torch.float32)
    paths = calibration.draw_paths(flux, klein.row, klein.folder, prompt, pooled, lambda done: None)
    pipeline = klein.pipeline(Flux2KleinPipeline)
    seen: list[torch.Tensor] = []
    pipeline(
        prompt=list(PROMPTS[:2]),
        width=64,
        height=64,
        num_inference_steps=klein.row.num_inference_steps,
        guidance_scale=1.0,
        max_sequence_length=klein.row.max_sequence_length,
        generator=[torch.Generator().manual_seed(calibration.SEED + n) for n in range(2)],
        callback_on_step_end=lambda _p, _s, _t, values: seen.append(values["latents"]) or {},
    )
    wanted, _ = pipeline.encode_prompt(list(PROMPTS[:2]), max_sequence_length=32)
    torch.testing.assert_close(prompt, wanted)
    torch.testing.assert_close(paths.latents[1], seen[0], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_fill_is_calibrated_with_all_of_the_picture_free(tinies: dict[str, Tiny]) -> None:
    fill = tinies["flux-fill-dev"]
    flux = StreamedFill(fill.folder, CPU, torch.float32)
    beside = flux._all_free(16)
    assert beside.shape == (1, 16, 64 + 256)
    assert (beside[..., 64:] == 1).all() and beside[..., :64].abs().sum() > 0


def test_a_folder_of_another_kind_is_named(klein: Tiny, tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match="config.json is of a Flux2Transformer2DModel"):
        StreamedFill.empty(klein.folder)


def test_a_family_that_gets_no_four_bits_is_named() -> None:
    row = load_catalog()["embedded"].model_copy(update={"family": "other"})
    with pytest.raises(ModelUnavailable, match="four bits are for flux1.*not other"):
        kind_of(row)


def test_every_family_of_a_row_with_four_bits_has_a_kind_or_loads_itself() -> None:
    for row in load_catalog():
        if "fp4" in row.memory_gib and row.device == "gpu":
            assert row.family in KINDS
