"""Pictures drawn together on a CPU have the bytes they have alone.

Most is asked of the latents, which are decoded one at a time: equal latents are equal pictures, and decoding is
most of the work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch

from models.families.exact_batches import rows_alone
from models.types import Cancelled, Drawing, PreviewOf
from tests.models.flux1_drawing import EMBEDDED, draw, drawing, load, pixels, threads

# Texts from none to more than the encoder takes: each is padded to the same length.
TEXTS = (
    ("a red balloon on the left over green hills at noon", "fog"),
    ("", "at night, in a desert, under many stars"),
    ("three white sailboats on the sea at sunset, " + "highly detailed, " * 20, ""),
    ("a blue fish", "a red fish"),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with threads(1):
        yield load(EMBEDDED, tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def alone(model: Any) -> Callable[[Drawing], bytes]:
    """The latents of one that is drawn by itself, each drawn once."""
    return cache(lambda one: latents(model, one)[0])


def latents(model: Any, *several: Drawing) -> list[bytes]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "_decode", lambda row, request: row)
        return [row.numpy().tobytes() for row in draw(model, *several)]


def drawings(number: int, size: tuple[int, int], *, guided: bool, steps: int = 1) -> list[Drawing]:
    return [
        drawing(
            prompt,
            seed=seed,
            negative_prompt=negative if guided else None,
            width=size[0],
            height=size[1],
            num_inference_steps=steps,
        )
        for seed, (prompt, negative) in enumerate(TEXTS[:number])
    ]


@pytest.mark.parametrize("guided", [False, True], ids=["plain", "guided"])
@pytest.mark.parametrize(
    ("number", "size", "steps"),
    [
        (2, (128, 128), 2),
        (3, (128, 128), 2),
        (4, (128, 128), 2),
        (3, (144, 176), 2),
        (2, (256, 256), 1),
        (4, (256, 256), 1),
        (3, (256, 384), 1),
    ],
)
def test_batch_pictures_are_those_drawn_alone(
    model: Any,
    alone: Callable[[Drawing], bytes],
    number: int,
    size: tuple[int, int],
    steps: int,
    guided: bool,
) -> None:
    several = drawings(number, size, guided=guided, steps=steps)
    assert latents(model, *several) == [alone(one) for one in several]
    assert len({alone(one) for one in several}) == number


def test_batch_of_the_largest_pictures_are_those_drawn_alone(
    model: Any, alone: Callable[[Drawing], bytes]
) -> None:
    several = drawings(2, (512, 512), guided=False)
    assert latents(model, *several) == [alone(one) for one in several]


@pytest.mark.parametrize("number_of_threads", [2, 3])
def test_batch_is_exact_whatever_the_number_of_threads(model: Any, number_of_threads: int) -> None:
    several = drawings(3, (128, 176), guided=True, steps=2)
    with threads(number_of_threads):
        assert latents(model, *several) == [latents(model, one)[0] for one in several]


def test_batch_of_one_request_with_consecutive_seeds(model: Any) -> None:
    several = [drawing(seed=seed) for seed in (7, 8, 9)]
    assert pixels(model, *several) == [pixels(model, one)[0] for one in several]


def test_batch_where_some_have_a_negative_prompt_that_does_not_act(model: Any) -> None:
    """`true_cfg_scale` 1 turns it off, so that the two agree in `batch_key`."""
    several = [drawing(), drawing(negative_prompt="hills", true_cfg_scale=1.0, seed=2)]
    assert pixels(model, *several) == [pixels(model, one)[0] for one in several]


def test_batch_on_a_cpu_is_said_to_be_exact(model: Any) -> None:
    assert model.batches_exactly is True


@pytest.mark.parametrize("change", [{"width": 256}, {"num_inference_steps": 2}])
def test_batch_of_requests_that_do_not_agree_is_refused(model: Any, change: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="batch_key"):
        draw(model, drawing(), drawing(**change))


def test_batch_of_nothing_is_refused(model: Any) -> None:
    with pytest.raises(ValueError, match="at least one"):
        model.generate([], on_stage=lambda stage: None, on_step=lambda *step: None)


def test_batch_that_is_left_changes_no_layer(model: Any) -> None:
    def leave(_step: int, _steps: int, _preview: PreviewOf) -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        draw(model, drawing(), drawing(seed=2), on_step=leave)
    assert not any("forward" in part.__dict__ for part in model._image.transformer.modules())


class Doubling(torch.nn.Module):
    """A linear layer that is none of torch's, as a quantised one is."""

    in_features = 3

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        self.shapes.append(tuple(rows.shape))
        return rows * 2


@pytest.mark.parametrize(
    ("shape", "seen"),
    [
        ((4, 3), [(1, 3)] * 4),
        ((1, 3), [(1, 3)]),
        ((4, 5, 3), [(4, 5, 3)]),
    ],
)
def test_rows_alone_splits_vectors_and_nothing_else(
    shape: tuple[int, ...], seen: list[tuple[int, ...]]
) -> None:
    layer = Doubling()
    values = torch.rand(shape)
    with rows_alone(torch.nn.Sequential(layer)):
        assert torch.equal(layer(values), values * 2)
    assert layer.shapes == seen


def test_rows_alone_gives_back_each_layers_forward() -> None:
    own, replaced = Doubling(), Doubling()
    replaced.forward = stand_in = own.forward  # as an offloading hook does
    with rows_alone(torch.nn.Sequential(own, replaced)):
        assert replaced.forward is not stand_in
    assert "forward" not in own.__dict__
    assert replaced.forward is stand_in
