"""The BF16 loader and the pipeline under it: what is loaded, what is missing, how a drawing is left."""

from __future__ import annotations

import gc
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor

from config.catalog import load_catalog
from config.errors import ModelUnavailable
from config.settings import ROOT
from models import bf16_flux_model
from models.families import family_of
from models.families.embedding_cache import EmbeddingCache
from models.families.frugal import disable_offloading, enable_offloading, tiled
from models.families.pipeline_model import PipelineModel
from models.types import Cancelled, Drawing, PreviewOf, Stage
from tests.models.flux1_drawing import EMBEDDED, REQUEST, draw, drawing, load, pixels, threads

CPU = torch.device("cpu")


def small(prompt: str = REQUEST.prompt, **changes: Any) -> Drawing:
    """Where the size shows nothing."""
    return drawing(prompt, **{"width": 64, "height": 80} | changes)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with threads(1):
        yield load(EMBEDDED, tmp_path_factory.mktemp("models"))


def test_load_computes_in_fp32_on_a_cpu_and_bf16_on_a_gpu() -> None:
    assert bf16_flux_model.compute_dtype(CPU) is torch.float32
    assert bf16_flux_model.compute_dtype(torch.device("cuda")) is torch.bfloat16


@pytest.mark.parametrize(
    ("family", "is_new_macos", "expected"),
    [
        ("flux1", True, torch.bfloat16),
        ("flux1", False, torch.float32),
        ("stable-diffusion", True, torch.float32),
        ("sdxl", True, torch.float32),
        ("z-image", True, torch.bfloat16),
    ],
)
def test_apples_gpu_computes_in_bf16_or_fp32_and_never_in_fp16(
    monkeypatch: pytest.MonkeyPatch, family: str, is_new_macos: bool, expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: is_new_macos)
    row = EMBEDDED.model_copy(update={"family": family})
    model = family_of(row).MODEL
    assert bf16_flux_model.compute_dtype(torch.device("mps"), model) is expected


@pytest.mark.parametrize(
    ("devices", "gib", "expected"),
    [
        (("cuda:0",), 24, True),
        (("cuda:0",), 80, False),
        (("cuda:0", "cuda:1"), 24, False),
        (("cpu",), 24, False),
    ],
)
def test_weights_wait_in_main_memory_where_one_card_is_too_small(
    monkeypatch: pytest.MonkeyPatch, devices: tuple[str, ...], gib: int, expected: bool
) -> None:
    card = SimpleNamespace(total_memory=gib * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    row = load_catalog()["flux-schnell"]
    assert bf16_flux_model.must_offload(row, devices) is expected


def test_load_writes_nothing_for_a_model_that_ships(tmp_path: Path) -> None:
    load(EMBEDDED, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_load_of_a_model_that_is_not_here_says_what_to_do(tmp_path: Path) -> None:
    row = EMBEDDED.model_copy(update={"id": "other", "source": "nobody/nothing"})
    with pytest.raises(ModelUnavailable, match="other.*FLUX_ALLOW_DOWNLOAD") as caught:
        load(row, tmp_path)
    assert str(tmp_path) not in caught.value.message


@pytest.mark.parametrize(
    "part", ["model_index.json", "transformer/diffusion_pytorch_model.safetensors", "vae"]
)
def test_load_of_a_model_with_a_part_missing_tells_no_path(tmp_path: Path, part: str) -> None:
    """The message goes to clients."""
    folder = tmp_path / "model"
    shutil.copytree(ROOT / EMBEDDED.source, folder)
    missing = folder / part
    shutil.rmtree(missing) if missing.is_dir() else missing.unlink()
    row = EMBEDDED.model_copy(update={"source": str(folder)})
    with pytest.raises(ModelUnavailable, match="embedded") as caught:
        load(row, tmp_path)
    assert str(tmp_path) not in caught.value.message.replace(row.source, "")


def test_load_of_damaged_weights_is_no_surprise(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(ROOT / EMBEDDED.source, folder)
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelUnavailable, match="embedded"):
        load(EMBEDDED.model_copy(update={"source": str(folder)}), tmp_path)


def test_load_of_damaged_json_names_the_file(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(ROOT / EMBEDDED.source, folder)
    tokenizer = folder / "tokenizer_2" / "tokenizer.json"
    tokenizer.write_bytes(tokenizer.read_bytes()[:1000])
    with pytest.raises(ModelUnavailable, match="tokenizer_2/tokenizer.json is damaged; fetch"):
        load(EMBEDDED.model_copy(update={"source": str(folder)}), tmp_path)


def test_load_takes_no_pickle(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(ROOT / EMBEDDED.source, folder)
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights.unlink()
    torch.save({}, weights.with_suffix(".bin"))
    with pytest.raises(ModelUnavailable):
        load(EMBEDDED.model_copy(update={"source": str(folder)}), tmp_path)


def test_generate_draws_the_size_asked_for(model: Any) -> None:
    (image,) = draw(model)
    assert (image.size, image.mode) == ((128, 160), "RGB")


def test_generate_tells_how_long_each_stage_took(model: Any) -> None:
    _, ms = model.generate([drawing()], on_stage=lambda stage: None, on_step=lambda *step: None)
    assert set(ms) == {"encode", "denoise", "decode"} and all(value > 0 for value in ms.values())


def test_generate_reports_stages_in_order_and_every_step(model: Any) -> None:
    seen: list[Any] = []
    draw(
        model,
        on_stage=seen.append,
        on_step=lambda step, steps, preview: seen.append((step, steps)),
    )
    assert seen == [
        Stage.ENCODING, Stage.DENOISING, (1, 3), (2, 3), (3, 3), Stage.DECODING,
    ]  # fmt: skip


def test_generate_leaves_between_two_steps_and_draws_again(model: Any) -> None:
    whole = pixels(model, small())
    steps: list[int] = []

    def leave(step: int, _steps: int, _preview: PreviewOf) -> None:
        steps.append(step)
        if step == 2:
            raise Cancelled

    with pytest.raises(Cancelled):
        draw(model, small(), on_step=leave)
    assert steps == [1, 2]
    assert pixels(model, small()) == whole


@pytest.mark.parametrize("stage", [Stage.ENCODING, Stage.DENOISING, Stage.DECODING])
def test_generate_leaves_at_any_stage(model: Any, stage: Stage) -> None:
    def leave(begun: Stage) -> None:
        if begun is stage:
            raise Cancelled

    with pytest.raises(Cancelled):
        draw(model, small(), on_stage=leave)


def test_generate_after_a_guided_drawing_is_unguided_again(model: Any) -> None:
    """Nothing of a request may stay in the pipeline."""
    plain = pixels(model, small())
    assert pixels(model, small(negative_prompt="hills", true_cfg_scale=5.0)) != plain
    assert pixels(model, small()) == plain


def test_generate_with_largest_and_smallest_seed(model: Any) -> None:
    assert pixels(model, small(seed=0)) != pixels(model, small(seed=2**53 - 1))


def test_generate_of_a_known_text_asks_no_encoder(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    guided = small("a text seen before", negative_prompt="another", true_cfg_scale=2.0)
    before = pixels(model, guided)
    monkeypatch.setattr(model._text, "encode_prompt", None)
    assert pixels(model, guided) == before
    with pytest.raises(TypeError):
        draw(model, small("a text not seen before"))


def test_embedding_cache_full_forgets_the_text_used_longest_ago() -> None:
    encoded: list[str] = []

    def encode(text: str) -> tuple[torch.Tensor, torch.Tensor]:
        encoded.append(text)
        return torch.zeros(1, 8, 3), torch.zeros(1, 2)  # 104 bytes

    cache = EmbeddingCache(encode, max_bytes=250)
    for text in ("a", "b", "a", "c", "a", "b"):
        cache(text)
    assert encoded == ["a", "b", "c", "b"]
    assert cache.size_bytes == 208


def test_embedding_cache_smaller_than_one_text_still_gives_it() -> None:
    cache = EmbeddingCache(lambda text: (torch.ones(1, 8, 3), torch.ones(1, 2)), max_bytes=10)
    assert cache("a")[0].sum() == 24
    assert cache.size_bytes == 0


def test_frugal_decodes_in_tiles_and_looks_almost_the_same(model: Any) -> None:
    request = drawing(width=256, height=256, num_inference_steps=1)
    plain, frugal = draw(model, request)[0], draw(model, request, frugal=True)[0]
    difference = numpy.subtract(plain, frugal, dtype=float)
    assert 0 < (difference**2).mean() < 65  # 30 dB: tiles of their own norms, blended


def test_frugal_tile_is_half_of_what_the_autoencoder_is_made_for(model: Any) -> None:
    seen: set[tuple[int, ...]] = set()
    decoder = model._image.vae.decoder
    with decoder.register_forward_pre_hook(
        lambda module, inputs: seen.add(tuple(inputs[0].shape[-2:]))
    ):
        draw(model, drawing(width=256, height=256, num_inference_steps=1), frugal=True)
    assert max(seen) == (16, 16) and EMBEDDED.default_width == 256


def test_frugal_drawing_leaves_the_model_as_it_was(model: Any) -> None:
    big = drawing(width=256, height=256, num_inference_steps=1)
    before = pixels(model, big)
    draw(model, big, frugal=True)
    assert pixels(model, big) == before


def test_frugal_drawing_after_memory_ran_out_in_the_middle(model: Any) -> None:
    plain, frugal = pixels(model), pixels(model, frugal=True)

    def run_out(step: int, _steps: int, _preview: PreviewOf) -> None:
        if step == 2:
            raise torch.OutOfMemoryError

    for sparing in (False, True):
        with pytest.raises(torch.OutOfMemoryError):
            draw(model, on_step=run_out, frugal=sparing)
    assert pixels(model, frugal=True) == frugal
    assert pixels(model) == plain


def test_tiled_gives_back_the_autoencoders_settings_after_a_failure(model: Any) -> None:
    vae = model._image.vae
    before = (vae.use_tiling, vae.tile_sample_min_size, vae.tile_latent_min_size)
    with pytest.raises(MemoryError), tiled(vae):
        assert vae.use_tiling
        raise MemoryError
    assert (vae.use_tiling, vae.tile_sample_min_size, vae.tile_latent_min_size) == before


def test_offloading_computes_the_same_and_leaves_no_hook(tmp_path: Path) -> None:
    """From the CPU to the CPU: every hook is at work, only nothing moves."""
    offloaded = load(EMBEDDED, tmp_path)
    before = pixels(offloaded, small())
    weighty = offloaded._weighty()
    enable_offloading(*weighty, prefetch=False)
    offloaded._embeddings = EmbeddingCache(offloaded._encode_text)
    assert any("forward" in part.__dict__ for part in offloaded._image.transformer.modules())
    assert pixels(offloaded, small()) == before
    disable_offloading(*weighty)
    for module in (weighty[0], *weighty[1]):
        assert not any("forward" in part.__dict__ for part in module.modules())
    assert pixels(offloaded, small()) == before


def test_unload_leaves_nothing_behind(tmp_path: Path) -> None:
    loaded = load(EMBEDDED, tmp_path)
    previews: list[PreviewOf] = []
    two = (small("one", negative_prompt="two"), small("three", negative_prompt="four", seed=2))
    draw(loaded, *two, on_step=lambda step, steps, preview: previews.append(preview))
    draw(loaded, *two, frugal=True)
    enable_offloading(*loaded._weighty(), prefetch=False)
    held = [loaded._image, loaded._text, loaded._image.transformer, loaded._image.vae]
    held += [loaded._text.text_encoder, loaded._text.text_encoder_2, loaded._embeddings]
    held += [next(loaded._image.transformer.parameters()), loaded._embeddings("one")[0]]
    alive = [weakref.ref(thing) for thing in held]
    del held
    loaded.unload()
    gc.collect()
    assert [reference() for reference in alive if reference() is not None] == []
    assert previews[-1](1).startswith(b"\xff\xd8")  # a preview outlives the model it is of


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_picture_is_rounded_to_the_bytes_that_diffusers_rounds_to(dtype: torch.dtype) -> None:
    bits = torch.arange(2**15, dtype=torch.int16)  # every positive number of 16 bits
    halves = bits.view(torch.bfloat16 if dtype is torch.bfloat16 else torch.float16)
    values = halves[halves <= 1.5].to(dtype)
    if dtype is torch.float32:  # those between two bytes too
        values = torch.cat([values, (torch.arange(-520, 520) / 255).to(dtype)])
    values = torch.cat([values, -values])
    across = torch.nn.functional.pad(values, (0, -len(values) % 96)).reshape(1, 3, -1, 32)
    processor = VaeImageProcessor()
    vae = SimpleNamespace(dtype=dtype, decode=lambda latents, return_dict: (latents,))
    model = SimpleNamespace(_image=SimpleNamespace(vae=vae, image_processor=processor))
    drawn = PipelineModel._picture(model, across, REQUEST)
    wanted = processor.postprocess(across, output_type="pil")[0]
    assert (drawn.mode, drawn.size) == (wanted.mode, wanted.size)
    assert drawn.tobytes() == wanted.tobytes()
