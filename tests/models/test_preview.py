"""Previews show the picture that is coming."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy
import pytest
import torch
from PIL import Image

from models import preview
from models.types import Drawing, PreviewOf
from tests.models.flux1_drawing import EMBEDDED, draw, drawing, load, threads

DRAWINGS = {
    "square": drawing(
        "a red balloon on the left over green hills at noon",
        width=256,
        height=256,
        num_inference_steps=4,
    ),
    "wide": drawing(
        "three white sailboats on the sea at sunset",
        seed=2,
        width=384,
        height=256,
        num_inference_steps=4,
    ),
    "guided": drawing(
        "a red house over a wheat field at dawn",
        negative_prompt="night",
        width=256,
        height=192,
        num_inference_steps=4,
    ),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with threads(1):
        yield load(EMBEDDED, tmp_path_factory.mktemp("models"))


def draw_with_previews(model: Any, *drawings: Drawing) -> tuple[list[Any], list[list[bytes]]]:
    """The pictures, and by step the previews of each."""
    steps: list[list[bytes]] = []

    def on_step(_step: int, _steps: int, preview: PreviewOf) -> None:
        steps.append([preview(index) for index in range(len(drawings))])

    return draw(model, *drawings, on_step=on_step), steps


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def coarse(image: Image.Image) -> numpy.ndarray:
    """(h, w, 3): what a latent can hold of an image, one colour for 8 x 8 px."""
    size = (image.width // 8, image.height // 8)
    return numpy.asarray(image.resize(size, Image.Resampling.BOX), dtype=float)


def psnr(one: numpy.ndarray, other: numpy.ndarray) -> float:
    return 10 * math.log10(255**2 / ((one - other) ** 2).mean())


def alike(one: numpy.ndarray, other: numpy.ndarray) -> float:
    """Correlation of the two, 1 for equal up to brightness and contrast."""
    return numpy.corrcoef(one.ravel(), other.ravel())[0, 1]


@pytest.mark.parametrize("name", DRAWINGS)
def test_preview_shows_the_picture_from_the_first_step_and_better_at_the_last(
    model: Any, name: str
) -> None:
    (image,), steps = draw_with_previews(model, DRAWINGS[name])
    size = opened(steps[0][0]).size
    picture = coarse(image.resize(size))
    one_colour = psnr(picture, picture.mean(axis=(0, 1)))
    previews = [coarse(opened(data)) for (data,) in steps]
    # Guidance overshoots at the first step: the model's own prediction there is too bright.
    assert alike(picture, previews[0]) > 0.7
    assert alike(picture, previews[-1]) > 0.9
    assert psnr(picture, previews[-1]) > max(21, one_colour + 5)


def test_preview_is_a_few_kilobytes_of_jpeg(model: Any) -> None:
    _, steps = draw_with_previews(model, DRAWINGS["square"])
    assert [opened(data).format for (data,) in steps] == ["JPEG"] * 4
    assert all(1_000 < len(data) < 10_000 for (data,) in steps)


def test_preview_of_each_picture_in_a_batch_is_its_own(model: Any) -> None:
    several = (drawing(), drawing("a blue house on the sea at night", seed=2))
    _, together = draw_with_previews(model, *several)
    alone = [draw_with_previews(model, one)[1] for one in several]
    assert together == [[first[0], second[0]] for first, second in zip(*alone, strict=True)]
    assert together[-1][0] != together[-1][1]


def test_preview_made_later_in_another_thread_is_of_its_own_step(model: Any) -> None:
    _, at_once = draw_with_previews(model, drawing())
    later: list[Future[bytes]] = []
    with ThreadPoolExecutor(1) as pool:
        draw(model, on_step=lambda step, steps, preview: later.append(pool.submit(preview, 0)))
    assert [future.result() for future in later] == [data for (data,) in at_once]


def test_preview_nobody_asks_for_is_not_made(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    monkeypatch.setattr(preview, "_jpeg", lambda *_: made.append(1))
    draw(model)
    assert made == []


@pytest.fixture
def grey_map() -> preview.PreviewMap:
    """The first channel is the brightness, 0 to 1."""
    weight = torch.zeros(3, 16)
    weight[:, 0] = 255
    return preview.PreviewMap(weight=weight, bias=torch.zeros(3, 1, 1))


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        ((128, 128), (128, 128)),
        ((512, 256), (256, 128)),
        ((1024, 1024), (256, 256)),
        ((512, 1024), (128, 256)),
        ((4096, 4096), (256, 256)),
        ((4096, 16), (256, 1)),
    ],
)
def test_preview_size_is_the_pictures_up_to_256(
    grey_map: preview.PreviewMap, picture: tuple[int, int], expected: tuple[int, int]
) -> None:
    latents = torch.rand(1, 16, picture[1] // 8, picture[0] // 8)
    sigmas = torch.tensor([1.0, 0.5])
    data = grey_map.after_step(latents, latents, *sigmas, size=picture)(0)
    assert opened(data).size == expected


@pytest.mark.parametrize(("sigma", "sigma_next"), [(1.0, 0.75), (0.75, 0.1), (0.5, 0.0)])
def test_preview_is_without_the_noise_that_is_still_in_the_latents(
    grey_map: preview.PreviewMap, sigma: float, sigma_next: float
) -> None:
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn((1, 16, 32, 32), generator=generator)
    clean = torch.linspace(0, 1, 32).expand(1, 16, 32, 32)
    before, after = ((1 - level) * clean + level * noise for level in (sigma, sigma_next))
    data = grey_map.after_step(
        before, after, torch.tensor(sigma), torch.tensor(sigma_next), (256, 256)
    )(0)
    shown = coarse(opened(data))[..., 0]
    assert numpy.abs(shown - clean[0, 0].numpy() * 255).max() < 8


def test_fit_of_the_same_autoencoder_is_the_same(model: Any) -> None:
    first, second = preview.fit(model._image.vae), preview.fit(model._image.vae)
    assert torch.equal(first.weight, second.weight) and torch.equal(first.bias, second.bias)


@pytest.mark.parametrize("colour", [(220, 30, 30), (30, 160, 60), (40, 60, 200), (240, 240, 240)])
def test_fit_finds_the_colour_of_an_even_picture(model: Any, colour: tuple[int, ...]) -> None:
    vae = model._image.vae
    even = (torch.tensor(colour) / 127.5 - 1).view(1, 3, 1, 1).expand(1, 3, 128, 128)
    with torch.no_grad():
        encoded = vae.encode(even).latent_dist.mode()
    latents = (encoded - vae.config.shift_factor) * vae.config.scaling_factor
    after = preview.fit(vae).after_step(latents, latents, *torch.tensor([1.0, 0.0]), (128, 128))
    shown = numpy.asarray(opened(after(0)), dtype=float)[32:-32, 32:-32].mean(axis=(0, 1))
    assert numpy.abs(shown - colour).max() < 45
