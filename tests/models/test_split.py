"""One model over several devices: text encoders on the first, the rest on the last.

The meta device stands in for a second card: it computes shapes, and refuses tensors from elsewhere
where they are copied into main memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from models.preview import PreviewMap
from models.types import PreviewOf
from tests.models.flux1_drawing import EMBEDDED, REQUEST, draw, drawing, load, pixels, threads

META = torch.device("meta")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    with threads(1):
        yield


@pytest.fixture
def split(tmp_path: Path) -> Any:
    model = load(EMBEDDED, tmp_path, "cpu", "meta")
    # Fitting needs real weights.
    model._preview_map = PreviewMap(
        weight=torch.zeros(3, 16, device=META), bias=torch.zeros(3, 1, 1, device=META)
    )
    return model


def test_split_puts_the_text_encoders_first_and_the_rest_last(split: Any) -> None:
    text, image = split._text, split._image
    assert {text.text_encoder.device.type, text.text_encoder_2.device.type} == {"cpu"}
    assert {image.transformer.device.type, image.vae.device.type} == {"meta"}


def test_split_over_three_devices_leaves_the_middle_one_free(tmp_path: Path) -> None:
    model = load(EMBEDDED, tmp_path, "cpu", "cuda:7", "meta")
    assert (model._text_device.type, model._device.type) == ("cpu", "meta")


def test_split_pipelines_know_only_their_own_parts(split: Any) -> None:
    assert split._text.transformer is None and split._text.vae is None
    assert split._image.text_encoder is None and split._image.text_encoder_2 is None
    assert split._image._execution_device == META


def test_split_takes_embeddings_and_noise_to_the_transformer(
    split: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything the transformer gets in a whole drawing is on its device."""
    seen: dict[str, str] = {}

    def look(_module: Any, _args: Any, kwargs: dict[str, Any]) -> None:
        tensors = {key: value for key, value in kwargs.items() if torch.is_tensor(value)}
        seen.update({key: value.device.type for key, value in tensors.items()})

    decoded: list[str] = []
    monkeypatch.setattr(split, "_decode", lambda latents, _: decoded.append(latents.device.type))
    steps: list[int] = []

    def on_step(step: int, _steps: int, _preview: PreviewOf) -> None:
        steps.append(step)

    guided = [drawing(seed=seed, negative_prompt="fog") for seed in (1, 2)]
    with split._image.transformer.register_forward_pre_hook(look, with_kwargs=True):
        draw(split, *guided, on_step=on_step)
    tensors = {"hidden_states", "timestep", "pooled_projections", "encoder_hidden_states"}
    assert set(seen) == tensors | {"txt_ids", "img_ids"}
    assert set(seen.values()) == {"meta"}
    assert decoded == ["meta", "meta"]
    assert steps == [1, 2, 3] == list(range(1, REQUEST.num_inference_steps + 1))


def test_split_keeps_embeddings_in_main_memory(split: Any) -> None:
    assert {tensor.device.type for tensor in split._embeddings("a red balloon")} == {"cpu"}


def test_split_over_the_same_device_twice_changes_no_bit(tmp_path: Path) -> None:
    guided = drawing(negative_prompt="fog")
    once, twice = load(EMBEDDED, tmp_path, "cpu"), load(EMBEDDED, tmp_path, "cpu", "cpu")
    assert pixels(twice, guided) == pixels(once, guided)


def test_split_whose_transformer_is_not_on_a_cpu_promises_no_exact_batches(split: Any) -> None:
    assert split.batches_exactly is False
