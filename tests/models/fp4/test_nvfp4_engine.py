"""The engine: where a four-bit copy comes from, that it is the right one, and that it draws."""

from __future__ import annotations

import dataclasses
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline
from safetensors import SafetensorError

from config.catalog import ModelRow
from config.errors import ModelUnavailable
from config.settings import ROOT
from models.fingerprint import file_sha256
from models.fp4 import checkpoint, layers, nvfp4_engine, prompts, quantize
from models.fp4.checkpoint import MANIFEST, Manifest
from models.fp4.compute import Dequantized, Fp8
from models.fp4.linear import fp4_layers
from models.types import LoadOptions
from tests.models.fp4.conftest import EMBEDDED, PROMPTS, TINY

pytestmark = pytest.mark.usefixtures("quick_fit")


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "PROMPTS", PROMPTS)


def draw(pipeline: Any, seed: int = 3) -> torch.Tensor:
    return pipeline(
        "a red balloon",
        width=128,
        height=128,
        num_inference_steps=2,
        max_sequence_length=16,
        generator=torch.Generator().manual_seed(seed),
        output_type="pt",
    ).images


def test_first_use_of_a_hub_model_makes_the_copy_and_later_uses_take_it(
    in_hub_cache: Callable[[ModelRow], Path], options: LoadOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = in_hub_cache(TINY)
    told: list[tuple[str, float]] = []
    loud = dataclasses.replace(options, on_progress=lambda *what: told.append(what))
    model = nvfp4_engine.load(TINY, loud)
    assert model.engine == "nvfp4" and "FP32" in model.compute
    assert "quantising the transformer" in {what for what, _ in told}
    cached = options.models_dir / "fp4" / "tiny"
    blobs = {link.resolve().name for link in (snapshot / "transformer").glob("*.safetensors")}
    made_from = Manifest.read(cached).source["files"]
    assert {made_from[name]["sha256"] for name in made_from if "transformer" in name} == blobs

    monkeypatch.setattr(nvfp4_engine, "quantize_folder", None)  # called again, it would fail
    first, _ = nvfp4_engine.load_pipeline(nvfp4_engine.find_or_make(TINY, options), TINY, options)
    shutil.rmtree(snapshot / "transformer")  # 24 GB of the real model; somebody needed the room
    assert nvfp4_engine.find_or_make(TINY, options) == cached
    shutil.rmtree(options.models_dir / f"models--{TINY.source.replace('/', '--')}")
    again, _ = nvfp4_engine.load_pipeline(nvfp4_engine.find_or_make(TINY, options), TINY, options)
    first.set_progress_bar_config(disable=True)
    again.set_progress_bar_config(disable=True)
    assert torch.equal(draw(first), draw(again)), "the copy stands alone"


def test_a_copy_of_other_weights_is_made_again(
    in_hub_cache: Callable[[ModelRow], Path], options: LoadOptions
) -> None:
    snapshot = in_hub_cache(TINY)
    cached = nvfp4_engine.find_or_make(TINY, options)
    before = Manifest.read(cached).source
    shutil.rmtree(options.models_dir / f"models--{TINY.source.replace('/', '--')}")
    in_hub_cache(TINY)
    link = next(iter(sorted((snapshot / "transformer").glob("*.safetensors"))))
    data = bytearray(link.read_bytes())
    data[-2] ^= 1
    link.unlink()
    blob = snapshot.parent.parent / "blobs" / "new"
    blob.write_bytes(data)
    blob = blob.rename(blob.with_name(file_sha256(blob)))
    link.symlink_to(blob)
    assert Manifest.read(nvfp4_engine.find_or_make(TINY, options)).source != before


def test_two_that_need_the_copy_at_once_make_it_once(
    in_hub_cache: Callable[[ModelRow], Path], options: LoadOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_hub_cache(TINY)
    made: list[Path] = []
    original = quantize.quantize_folder

    def counted(job: quantize.Job) -> Manifest:
        made.append(job.out)
        return original(job)

    monkeypatch.setattr(nvfp4_engine, "quantize_folder", counted)
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(nvfp4_engine.find_or_make(TINY, options)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(made) == 1 and found == [options.models_dir / "fp4" / "tiny"] * 2


def test_a_model_that_is_not_here_says_what_to_do(options: LoadOptions) -> None:
    with pytest.raises(ModelUnavailable, match="tiny.*FLUX_ALLOW_DOWNLOAD") as caught:
        nvfp4_engine.load(TINY, options)
    assert str(options.models_dir) not in caught.value.message
    assert not (options.models_dir / "fp4").exists()


def test_a_copy_that_cannot_be_made_is_no_surprise(tiny_copy: Path, options: LoadOptions) -> None:
    shutil.rmtree(tiny_copy / "scheduler")
    row = TINY.model_copy(update={"source": str(tiny_copy)})
    with pytest.raises(ModelUnavailable, match="tiny: its four-bit weights could not be made"):
        nvfp4_engine.load(row, options)
    assert not (options.models_dir / "fp4" / "tiny").exists()


@pytest.mark.parametrize("part", ["transformer", "text_encoder_2"])
def test_a_model_without_its_configuration_is_named(
    tiny_copy: Path, options: LoadOptions, part: str
) -> None:
    (tiny_copy / part / "config.json").unlink()
    row = TINY.model_copy(update={"source": str(tiny_copy)})
    with pytest.raises(ModelUnavailable, match=f"tiny-flux/{part}/config.json is missing"):
        nvfp4_engine.load(row, options)
    assert not (options.models_dir / "fp4" / "tiny").exists()


def test_a_full_disk_is_said_without_this_machines_folders_and_the_next_try_goes_on(
    tiny_source: Path, tiny_fp4: Path, options: LoadOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = TINY.model_copy(update={"source": str(tiny_source)})
    save_file, kept = checkpoint.save_file, []

    def full(tensors: dict[str, torch.Tensor], path: Path) -> None:
        if "single" in path.name:
            path.write_bytes(b"the first bytes")
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        kept.append(path.name)
        save_file(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(
        ModelUnavailable, match="could not be made.*No space left.*goes on"
    ) as caught:
        nvfp4_engine.load(row, options)
    assert "transformer/single_transformer_blocks.0.safetensors" in caught.value.message
    assert str(options.models_dir) not in caught.value.message
    folder = options.models_dir / "fp4"
    assert [path.name for path in folder.iterdir()] == ["tiny.partial"]
    assert not list(folder.rglob("*.tmp")) and len(kept) > 1

    again: list[str] = []
    monkeypatch.setattr(
        checkpoint, "save_file", lambda t, path: (again.append(path.name), save_file(t, path))
    )
    nvfp4_engine.load(row, options)
    assert not set(again) & set(kept), "what was finished is kept"
    assert [path.name for path in folder.iterdir()] == ["tiny"]


def test_a_models_folder_that_cannot_be_written_is_named_by_its_setting(
    tiny_source: Path, options: LoadOptions
) -> None:
    options.models_dir.write_text("a file where the folder should be")
    row = TINY.model_copy(update={"source": str(tiny_source)})
    with pytest.raises(ModelUnavailable, match="FLUX_MODELS_DIR") as caught:
        nvfp4_engine.load(row, options)
    assert str(options.models_dir) not in caught.value.message


def test_another_family_is_refused_with_words(options: LoadOptions) -> None:
    row = TINY.model_copy(update={"family": "z_image"})
    with pytest.raises(ModelUnavailable, match="flux1.*not z_image"):
        nvfp4_engine.load(row, options)


def test_a_damaged_copy_is_an_error_and_no_reason_to_load_something_else(
    tiny_fp4: Path, tiny_source: Path, options: LoadOptions
) -> None:
    row = TINY.model_copy(update={"source": str(tiny_source)})
    cached = shutil.copytree(tiny_fp4, options.models_dir / "fp4" / "tiny")
    file = next((cached / "transformer").glob("single*.safetensors"))
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ModelUnavailable, match=f"{file.name}.*cut short"):
        nvfp4_engine.load(row, options)


def test_the_shipped_copy_is_taken_for_the_weights_it_was_made_from(options: LoadOptions) -> None:
    assert nvfp4_engine.find_or_make(EMBEDDED, options) == ROOT / "models" / "embedded-fp4"
    assert not options.models_dir.exists(), "nothing is written for a model that ships"


def test_a_shipped_copy_of_other_weights_is_not_used(
    tiny_fp4: Path, tiny_source: Path, tmp_path: Path, options: LoadOptions
) -> None:
    source = shutil.copytree(tiny_source, tmp_path / "small")
    shipped = shutil.copytree(tiny_fp4, tmp_path / "small-fp4")
    row = TINY.model_copy(update={"source": str(source)})
    assert nvfp4_engine.find_or_make(row, options) == shipped
    manifest = json.loads((shipped / MANIFEST).read_text())
    next(iter(manifest["source"]["files"].values()))["sha256"] = "0" * 64
    (shipped / MANIFEST).write_text(json.dumps(manifest))
    found = nvfp4_engine.find_or_make(row, options)
    assert found == options.models_dir / "fp4" / "tiny"
    assert (found / "prompts.txt").read_text() == (shipped / "prompts.txt").read_text()


@torch.no_grad()
def test_t5_in_four_bits_encodes_nearly_what_t5_does(
    tiny_fp4: Path, tiny_source: Path, options: LoadOptions
) -> None:
    pipeline, _ = nvfp4_engine.load_pipeline(tiny_fp4, TINY, options)
    whole = FluxPipeline.from_pretrained(tiny_source, dtype=torch.float32)
    assert len(fp4_layers(pipeline.text_encoder_2)) == 14
    for text in (PROMPTS[0], "a house on the left at night"):
        got, wanted = (
            p.encode_prompt(text, None, max_sequence_length=16)[0] for p in (pipeline, whole)
        )
        assert float((got - wanted).norm() / wanted.norm()) < 0.1


def test_equal_seeds_draw_equal_bits_on_every_path(tiny_fp4: Path, options: LoadOptions) -> None:
    pipeline, _ = nvfp4_engine.load_pipeline(tiny_fp4, TINY, options)
    pipeline.set_progress_bar_config(disable=True)
    pictures = []
    for path in (
        Dequantized(keep=True, dtype=torch.float32),
        Dequantized(keep=False, dtype=torch.float32),
        Fp8(convert_once=False),
    ):
        for layer in fp4_layers(pipeline.transformer).values():
            layer.use(path)
        pictures.append(draw(pipeline))
        assert torch.equal(draw(pipeline), pictures[-1])
    for other in pictures[1:]:
        assert float((other - pictures[0]).abs().mean()) < 0.02


def test_the_prompts_for_real_models_are_many_and_different() -> None:
    from importlib import reload

    texts = reload(prompts).PROMPTS
    assert len(set(texts)) == len(texts) == 64


def test_ranks_and_reasons_of_layers() -> None:
    assert [layers.default_rank(width) for width in (3072, 192, 32)] == [32, 23, 3]
    assert layers.is_modulation("transformer_blocks.0.norm1_context.linear")
    assert layers.is_modulation("norm_out.linear")
    assert not layers.is_modulation("transformer_blocks.0.ff.net.2")
    assert layers.why_kept("x_embedder") and layers.why_kept("proj_out")
    assert layers.why_kept("single_transformer_blocks.3.proj_out") is None
