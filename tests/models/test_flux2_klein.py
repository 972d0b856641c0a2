"""FLUX.2 Klein on tiny weights: the pictures are those of diffusers' own call, to the byte."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

import numpy
import pytest
import torch
from diffusers import Flux2KleinInpaintPipeline, Flux2KleinPipeline
from PIL import Image

from models.families.embedding_cache import EmbeddingCache
from models.families.flux2_klein import TEXT_LAYERS, leave_out_unused_layers
from models.families.frugal import disable_offloading, enable_offloading
from models.types import Cancelled, PreviewOf
from tests.models.flux1_drawing import draw, pixels, threads
from tests.models.tiny_drawing import Tiny, generator, gradient, load_tiny

CAT = "a cat on a mat"


@pytest.fixture(scope="module")
def klein(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tiny]:
    with threads(1):
        yield load_tiny("flux2-klein-4b", tmp_path_factory.mktemp("klein"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tiny]:
    with threads(1):
        yield load_tiny("flux2-klein-base-4b", tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def diffusers_klein(klein: Tiny) -> Any:
    return klein.pipeline(Flux2KleinPipeline)


@pytest.fixture(scope="module")
def diffusers_base(base: Tiny) -> Any:
    return base.pipeline(Flux2KleinPipeline)


def of_diffusers(pipeline: Any, **arguments: Any) -> Image.Image:
    values = {
        "prompt": CAT,
        "width": 96,
        "height": 64,
        "num_inference_steps": 2,
        "guidance_scale": 1.0,
        "generator": generator(),
        "max_sequence_length": 32,
    }
    return pipeline(**values | arguments).images[0]


# Text and references


def test_klein_text_is_diffusers_own_picture(klein: Tiny, diffusers_klein: Any) -> None:
    assert klein.draw().tobytes() == of_diffusers(diffusers_klein).tobytes()


@pytest.mark.parametrize("number", [1, 4])
def test_klein_with_references_is_diffusers_own_picture(
    klein: Tiny, diffusers_klein: Any, number: int
) -> None:
    pictures = [gradient(100, 70), gradient(64, 130), gradient(turned=True), gradient(80, 80)]
    references = tuple(pictures[:number])
    drawn = klein.draw(references=references)
    assert drawn.tobytes() == of_diffusers(diffusers_klein, image=list(references)).tobytes()
    assert drawn.tobytes() != klein.draw().tobytes()


def test_klein_reference_of_many_pixels_is_made_as_small_as_diffusers_does(
    klein: Tiny, diffusers_klein: Any
) -> None:
    large = gradient(1500, 1000)
    drawn = klein.draw(references=(large,), num_inference_steps=1)
    theirs = of_diffusers(diffusers_klein, image=[large], num_inference_steps=1)
    assert drawn.tobytes() == theirs.tobytes()


def test_klein_order_of_references_matters(klein: Tiny) -> None:
    one, other = gradient(), gradient(turned=True)
    there = klein.draw(references=(one, other))
    assert there.tobytes() != klein.draw(references=(other, one)).tobytes()


# Guidance of the base model


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_klein_base_guides_away_from_nothing_as_diffusers_does(
    base: Tiny, diffusers_base: Any, scale: float
) -> None:
    theirs = of_diffusers(diffusers_base, guidance_scale=scale)
    assert base.draw(guidance_scale=scale).tobytes() == theirs.tobytes()


def test_klein_base_negative_prompt_takes_the_place_of_nothing(
    base: Tiny, diffusers_base: Any
) -> None:
    negative, _ = diffusers_base.encode_prompt("a dog", device="cpu", max_sequence_length=32)
    theirs = of_diffusers(diffusers_base, guidance_scale=3.0, negative_prompt_embeds=negative)
    drawn = base.draw(negative_prompt="a dog", true_cfg_scale=3.0)
    assert drawn.tobytes() == theirs.tobytes() != base.draw(guidance_scale=3.0).tobytes()


def test_klein_distilled_is_not_guided(klein: Tiny) -> None:
    assert klein.draw(guidance_scale=5.0).tobytes() == klein.draw().tobytes()


# The text encoder


def test_klein_runs_no_layer_of_the_text_encoder_that_is_not_used(
    klein: Tiny, diffusers_klein: Any
) -> None:
    kept, whole = klein.model._text.text_encoder, diffusers_klein.text_encoder
    assert len(kept.model.layers) == max(TEXT_LAYERS) < len(whole.model.layers)
    assert isinstance(kept.lm_head, torch.nn.Identity)


@pytest.mark.parametrize("prompt", [CAT, "", "é🎈" * 30])
def test_klein_embeddings_without_unused_layers_are_equal_to_the_bit(
    klein: Tiny, diffusers_klein: Any, prompt: str
) -> None:
    ours, theirs = (
        pipeline.encode_prompt(prompt, device="cpu", max_sequence_length=32)[0]
        for pipeline in (klein.model._text, diffusers_klein)
    )
    assert torch.equal(ours, theirs)


def test_leave_out_unused_layers_twice_changes_nothing_more(klein: Tiny) -> None:
    encoder = klein.model._text.text_encoder
    before = [id(layer) for layer in encoder.model.layers]
    leave_out_unused_layers(encoder)
    assert [id(layer) for layer in encoder.model.layers] == before


# A picture to begin with


def test_klein_image_at_full_strength_is_the_picture_of_the_text(klein: Tiny) -> None:
    assert klein.draw(image=gradient(), strength=1.0).tobytes() == klein.draw().tobytes()


@torch.no_grad()
def test_klein_image_at_no_strength_stays_what_the_autoencoder_makes_of_it(klein: Tiny) -> None:
    model, picture = klein.model, gradient()
    latents = model._image.vae.encode(
        torch.from_numpy(numpy.array(picture)).permute(2, 0, 1)[None] / 127.5 - 1
    ).latent_dist.mode()
    kept = model._image.image_processor.postprocess(model._image.vae.decode(latents).sample)[0]

    def distance(strength: float) -> float:
        drawn = numpy.array(klein.draw(image=picture, strength=strength)).astype(int)
        return float(numpy.abs(drawn - numpy.array(kept)).mean())

    assert distance(0.0) < 10 < distance(0.6)


def test_klein_image_and_mask_begin_where_diffusers_inpainting_begins(
    klein: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The latents before the first step, at a strength that is a whole number of steps."""
    pipeline = klein.pipeline(Flux2KleinInpaintPipeline)
    picture, mask = gradient(), Image.new("L", (96, 64), 255)
    first: dict[str, torch.Tensor] = {}

    def before_transformer(name: str) -> Any:
        def look(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
            first.setdefault(name, kwargs["hidden_states"])
            first.setdefault(f"{name} time", kwargs["timestep"])

        return look

    theirs = pipeline.transformer.register_forward_pre_hook(
        before_transformer("theirs"), with_kwargs=True
    )
    ours = klein.model._image.transformer.register_forward_pre_hook(
        before_transformer("ours"), with_kwargs=True
    )
    try:
        pipeline(
            prompt=CAT, image=picture, mask_image=mask, width=96, height=64, strength=0.5,
            num_inference_steps=4, guidance_scale=1.0, generator=generator(), max_sequence_length=32,
        )  # fmt: skip
        klein.draw(image=picture, mask=mask, strength=0.5, num_inference_steps=4)
    finally:
        theirs.remove()
        ours.remove()
    tokens = first["ours"].shape[1]
    torch.testing.assert_close(first["ours time"], first["theirs time"])
    torch.testing.assert_close(first["ours"], first["theirs"][:, :tokens], atol=2e-2, rtol=0)


def test_klein_keeps_every_pixel_outside_of_the_mask(klein: Tiny) -> None:
    picture, mask = gradient(), Image.new("L", (96, 64), 0)
    mask.paste(255, (48, 0, 96, 64))
    drawn = numpy.array(klein.draw(image=picture, mask=mask))
    assert (drawn[:, :48] == numpy.array(picture)[:, :48]).all()
    assert (drawn[:, 48:] != numpy.array(picture)[:, 48:]).any()


def test_klein_image_and_references_both_act(klein: Tiny) -> None:
    begun = {"image": gradient(), "strength": 0.6}
    alone = klein.draw(**begun)
    assert klein.draw(**begun, references=(gradient(turned=True),)).tobytes() != alone.tobytes()


# As every family


def test_klein_drawn_together_has_the_bits_it_has_alone(klein: Tiny) -> None:
    several = [klein.drawing(seed=seed, prompt=f"a cat {seed}") for seed in (1, 2, 3)]
    assert klein.model.batches_exactly
    assert pixels(klein.model, *several) == [pixels(klein.model, each)[0] for each in several]


def test_klein_with_references_drawn_together_has_the_bits_it_has_alone(klein: Tiny) -> None:
    references = (gradient(100, 70), gradient(turned=True))
    several = [klein.drawing(seed=seed, references=references) for seed in (1, 2)]
    assert pixels(klein.model, *several) == [pixels(klein.model, each)[0] for each in several]


@pytest.mark.parametrize("size", [(64, 112), (208, 64)], ids=str)
def test_klein_of_another_size_is_diffusers_own_picture(
    klein: Tiny, diffusers_klein: Any, size: tuple[int, int]
) -> None:
    width, height = size
    theirs = of_diffusers(diffusers_klein, width=width, height=height)
    assert klein.draw(width=width, height=height).tobytes() == theirs.tobytes()


def test_klein_whose_weights_wait_draws_the_same(tmp_path_factory: pytest.TempPathFactory) -> None:
    """From the CPU to the CPU: every hook is at work, only nothing moves."""
    tiny = load_tiny("flux2-klein-4b", tmp_path_factory.mktemp("waits"))
    reference = (gradient(),)
    before = tiny.draw(references=reference).tobytes()
    weighty = tiny.model._weighty()
    enable_offloading(*weighty, prefetch=False)
    tiny.model._embeddings = EmbeddingCache(tiny.model._encode_text)
    assert any("forward" in part.__dict__ for part in tiny.model._image.transformer.modules())
    assert tiny.draw(references=reference).tobytes() == before
    disable_offloading(*weighty)
    assert tiny.draw(references=reference).tobytes() == before


def test_klein_is_left_between_two_steps(klein: Tiny) -> None:
    seen = []

    def on_step(step: int, steps: int, preview: PreviewOf) -> None:
        seen.append((step, steps, preview(0)[:2]))
        raise Cancelled

    with pytest.raises(Cancelled):
        draw(klein.model, klein.drawing(), on_step=on_step)
    assert seen == [(1, 2, b"\xff\xd8")]


def test_klein_draws_in_tiles_and_then_whole_again(klein: Tiny) -> None:
    large = klein.drawing(width=128, height=128)
    whole = pixels(klein.model, large)
    tiled = pixels(klein.model, large, frugal=True)
    assert len(tiled[0]) == len(whole[0]) and tiled != whole  # each tile is normalised by itself
    assert pixels(klein.model, large) == whole


def test_klein_unloaded_is_gone(tmp_path_factory: pytest.TempPathFactory) -> None:
    tiny = load_tiny("flux2-klein-9b", tmp_path_factory.mktemp("gone"))
    weights = weakref.ref(tiny.model._image.transformer)
    tiny.draw(num_inference_steps=1)
    tiny.model.unload()
    gc.collect()
    assert weights() is None
