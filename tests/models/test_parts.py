"""Parts that models have alike: in memory once, each model's LoRAs its own, gone with the last model."""

from __future__ import annotations

import gc
import shutil
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from config.catalog import ModelRow
from models import bf16_flux_model, fp4_flux_model
from models.fp4 import lowrank, prompts
from models.parts import Parts, keys_of
from models.types import LoadOptions
from tests.models.flux1_drawing import threads
from tests.models.tiny_drawing import Tiny
from tests.tiny_models import tiny_model

Rows = dict[str, ModelRow]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Rows:
    """Two models with the same text encoders and autoencoder, and other transformers."""
    folder = tmp_path_factory.mktemp("rows")
    made = {
        row_id: tiny_model(row_id, folder / row_id)
        for row_id in ("flux-krea-dev", "flux-kontext-dev")
    }
    for part in ("text_encoder", "text_encoder_2", "vae"):
        shutil.rmtree(folder / "flux-kontext-dev" / part)
        shutil.copytree(folder / "flux-krea-dev" / part, folder / "flux-kontext-dev" / part)
    return made


@pytest.fixture
def options(tmp_path: Path) -> LoadOptions:
    return LoadOptions(devices=("cpu",), models_dir=tmp_path, allow_download=False, parts=Parts())


def load(row: ModelRow, options: LoadOptions) -> Tiny:
    with threads(1):
        return Tiny(row, Path(row.source), bf16_flux_model.load(row, options))


def both(rows: Rows, options: LoadOptions) -> list[Tiny]:
    return [load(row, options) for row in rows.values()]


def tensors(module: torch.nn.Module) -> set[int]:
    return {tensor.data_ptr() for tensor in (*module.parameters(), *module.buffers())}


def shared(tiny: Tiny) -> list[torch.nn.Module]:
    model = tiny.model
    return [model._text.text_encoder, model._text.text_encoder_2, model._image.vae]


def test_models_have_the_same_tensors_in_modules_of_their_own(
    rows: Rows, options: LoadOptions
) -> None:
    one, other = both(rows, options)
    for ours, theirs in zip(shared(one), shared(other), strict=True):
        assert tensors(ours) == tensors(theirs) and ours is not theirs
        assert not set(map(id, ours.modules())) & set(map(id, theirs.modules()))
    assert tensors(one.model._image.transformer).isdisjoint(tensors(other.model._image.transformer))


def test_what_is_lent_is_not_read_again(
    rows: Rows, options: LoadOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import T5EncoderModel

    first = load(rows["flux-krea-dev"], options)
    monkeypatch.setattr(T5EncoderModel, "from_pretrained", None)
    load(rows["flux-kontext-dev"], options)
    assert first.draw()


def test_pictures_are_those_of_models_that_share_nothing(rows: Rows, options: LoadOptions) -> None:
    alone = [load(row, replace(options, parts=None)).draw() for row in rows.values()]
    together = [tiny.draw() for tiny in both(rows, options)]
    assert [picture.tobytes() for picture in together] == [p.tobytes() for p in alone]


def test_layer_put_into_one_model_is_in_no_other(rows: Rows, options: LoadOptions) -> None:
    """As LoRAs do it; also what is lent later is as it was read."""
    one, other = both(rows, options)
    before = other.draw().tobytes()
    block = one.model._text.text_encoder_2.encoder.block[0]
    block.layer[0].SelfAttention.q = torch.nn.Identity()
    later = load(rows["flux-kontext-dev"], options)
    assert other.draw().tobytes() == later.draw().tobytes() == before


def test_model_that_leaves_takes_nothing_from_another(rows: Rows, options: LoadOptions) -> None:
    one, other = both(rows, options)
    before = other.draw().tobytes()
    one.model.unload()
    gc.collect()
    assert other.draw().tobytes() == before


def test_last_model_takes_the_parts_with_it(rows: Rows, options: LoadOptions) -> None:
    loaded = both(rows, options)
    alive = [weakref.ref(part) for tiny in loaded for part in shared(tiny)]
    alive += [weakref.ref(next(part.parameters())) for part in shared(loaded[0])]
    for tiny in loaded:
        tiny.model.unload()
    gc.collect()
    assert [reference() for reference in alive if reference() is not None] == []


def test_switching_to_and_fro_keeps_no_more(rows: Rows, options: LoadOptions) -> None:
    """One stays while the other comes and goes: the same tensors, however often."""
    stays = load(rows["flux-krea-dev"], options)
    known = set()
    for _ in range(5):
        comes = load(rows["flux-kontext-dev"], options)
        known |= tensors(comes.model._image.vae) | tensors(comes.model._text.text_encoder_2)
        comes.model.unload()
        del comes
        gc.collect()
    assert known == tensors(stays.model._image.vae) | tensors(stays.model._text.text_encoder_2)
    assert len(options.parts._as_read) == 3


def changed_weights(folder: Path) -> None:
    file = folder / "vae" / "diffusion_pytorch_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def changed_config(folder: Path) -> None:
    config = folder / "vae" / "config.json"
    config.write_text(config.read_text().replace('"scaling_factor": 0.4', '"scaling_factor": 0.5'))


@pytest.mark.parametrize("change", [changed_weights, changed_config])
def test_part_of_other_content_is_another(rows: Rows, tmp_path: Path, change: Any) -> None:
    source = Path(rows["flux-krea-dev"].source)
    copied = shutil.copytree(source, tmp_path / "copy")

    def key(folder: Path, dtype: torch.dtype = torch.float32, device: str = "cpu") -> str:
        return keys_of(folder, ["vae"], dtype, lambda name: device)["vae"]

    assert key(copied) == key(source)
    assert key(source) != key(source, torch.bfloat16)
    assert key(source) != key(source, device="cuda:0")
    change(copied)
    assert key(copied) != key(source)


def test_part_that_is_not_whole_has_no_key(rows: Rows, tmp_path: Path) -> None:
    copied = shutil.copytree(Path(rows["flux-krea-dev"].source), tmp_path / "copy")
    (copied / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    assert keys_of(copied, ["vae", "nothing"], torch.float32, lambda name: "cpu") == {}


def test_four_bits_share_what_stays_in_sixteen(
    rows: Rows, options: LoadOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lowrank, "ROUNDS", 1)
    monkeypatch.setattr(prompts, "PROMPTS", tuple(f"{number} cats" for number in range(8)))
    with threads(1):
        loaded = [
            Tiny(row, Path(row.source), fp4_flux_model.load(row, replace(options, engine="nvfp4")))
            for row in rows.values()
        ]
    for ours, theirs in zip(*map(shared, loaded), strict=True):
        assert tensors(ours) == tensors(theirs)
    alone = fp4_flux_model.load(rows["flux-krea-dev"], replace(options, engine="nvfp4", parts=None))
    expected = Tiny(rows["flux-krea-dev"], Path(), alone).draw()
    assert loaded[0].draw().tobytes() == expected.tobytes()
