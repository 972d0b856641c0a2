"""Pictures that another thread decodes while the model draws the next ones: the same bytes, on a CPU of several threads."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from models.families import frugal
from models.types import DecodesApart, Develop, Drawing
from tests.models.flux1_drawing import EMBEDDED, drawing, load, pixels, threads

SMALL = {"width": 128, "height": 128, "num_inference_steps": 1}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with threads(2):
        yield load(EMBEDDED, tmp_path_factory.mktemp("models"))


def sketched(model: Any, *drawings: Drawing) -> list[Develop]:
    calls, _ = model.sketch(
        drawings, on_stage=lambda stage: None, on_step=lambda step, steps, preview: None
    )
    return calls


def test_pictures_decoded_beside_the_next_drawing_have_the_bytes_they_have_alone(
    model: Any,
) -> None:
    each = [drawing(seed=seed, **SMALL) for seed in range(4)]
    alone = [pixels(model, one)[0] for one in each]
    with ThreadPoolExecutor(1) as lane:
        waiting = [lane.submit(call) for one in each for call in sketched(model, one)]
        assert [one.result().tobytes() for one in waiting] == alone


def test_pictures_sketched_together_are_those_drawn_alone(model: Any) -> None:
    each = [drawing(seed=seed, **SMALL) for seed in range(3)]
    together = [call().tobytes() for call in sketched(model, *each)]
    assert together == [pixels(model, one)[0] for one in each]


def test_sketch_is_decoded_with_the_threads_it_was_drawn_with(model: Any) -> None:
    """The thread that decodes counts its own, and begins with as many as the machine has."""
    counts = []
    (call,) = sketched(model, drawing(**SMALL))
    decode = model._decode

    def counting(*args: Any) -> Any:
        counts.append(torch.get_num_threads())
        return decode(*args)

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(1) as lane:
        patch.setattr(model, "_decode", counting)
        lane.submit(torch.set_num_threads, 1).result()
        lane.submit(call).result()
    assert counts == [2]


def test_sketch_decoded_in_tiles_leaves_those_after_it_whole(model: Any) -> None:
    one = drawing(width=256, height=256, num_inference_steps=1)
    whole = pixels(model, one)[0]
    (call,) = sketched(model, one)
    with frugal.tiled(model._image.vae):
        tiles = model._image.vae.use_tiling, pixels(model, one)[0]
    assert call(frugal=True).tobytes() == tiles[1] and tiles[0]
    assert call().tobytes() == whole


def test_model_with_one_thread_decodes_itself(model: Any) -> None:
    assert isinstance(model, DecodesApart) and model.decodes_apart
    with threads(1):
        assert not model.decodes_apart
