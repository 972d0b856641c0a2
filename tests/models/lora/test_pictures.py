"""On the embedded pipeline: our factors change the picture as diffusers' own loading of the file does.

diffusers' converters know FLUX.1's size of the fused layer of single blocks alone, so files for them
leave that layer out here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline
from diffusers.utils.logging import disable_progress_bar

from models.lora.convert import convert
from models.lora.merge import layer_shapes, merge
from tests.models.lora import formats


@pytest.fixture(scope="module")
def pipeline() -> FluxPipeline:
    disable_progress_bar()
    pipeline = FluxPipeline.from_pretrained("models/embedded", dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def components(pipeline: FluxPipeline) -> dict[str, torch.nn.Module]:
    names = ("transformer", "text_encoder", "text_encoder_2")
    return {name: pipeline.components[name] for name in names}


def draw(pipeline: FluxPipeline) -> torch.Tensor:
    return torch.from_numpy(
        pipeline(
            "a red circle", width=64, height=64, num_inference_steps=2, guidance_scale=0.0,
            generator=torch.Generator().manual_seed(1), output_type="np", max_sequence_length=64,
        ).images
    )  # fmt: skip


@contextmanager
def added_by_hand(pipeline: FluxPipeline, paths: Mapping[Path, float]) -> Iterator[tuple[int, ...]]:
    """The merged change added to the weights themselves; yields unmatched keys per file."""
    parts = components(pipeline)
    merged = merge([(convert(path), w) for path, w in paths.items()], layer_shapes(parts))
    weights = {
        name: parts[name.split(".")[0]].get_submodule(name.split(".", 1)[1]).weight
        for name in merged.layers
    }
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    with torch.no_grad():
        for name, added in merged.layers.items():
            weights[name] += added.up @ added.down
        yield tuple(len(m.unmatched_keys) for m in merged.matches)
        for name, weight in weights.items():
            weight.copy_(before[name])


@contextmanager
def loaded_by_diffusers(pipeline: FluxPipeline, paths: Mapping[Path, float]) -> Iterator[None]:
    names = [path.stem for path in paths]
    for path in paths:
        pipeline.load_lora_weights(path.parent, weight_name=path.name, adapter_name=path.stem)
    pipeline.set_adapters(names, list(paths.values()))
    yield
    pipeline.unload_lora_weights()


def assert_same_change(pipeline: FluxPipeline, paths: Mapping[Path, float]) -> None:
    plain = draw(pipeline)
    with added_by_hand(pipeline, paths) as unmatched:
        by_hand = draw(pipeline)
    with loaded_by_diffusers(pipeline, paths):
        by_diffusers = draw(pipeline)
    assert torch.equal(draw(pipeline), plain)  # both took themselves away
    assert set(unmatched) == {0}
    change = (by_diffusers - plain).abs().max()
    assert change > 0.02
    assert (by_hand - by_diffusers).abs().max() < 0.01 * change


def diffusers_converts(bfl: str) -> bool:
    """Whether diffusers' own loading takes a module of this name at the embedded model's size."""
    return "linear1" not in bfl and "blocks" in bfl


def write(path: Path, form: str, seed: int) -> Path:
    keep = formats.is_for_xlabs if form == "xlabs" else diffusers_converts
    return formats.write(path, *formats.FORMATS[form][0](formats.make_known(seed, only=keep)))


@pytest.mark.parametrize("form", ["diffusers", "kohya", "xlabs"])
def test_one_lora_changes_the_picture_as_diffusers_loading_does(
    form: str, pipeline: FluxPipeline, tmp_path: Path
) -> None:
    assert_same_change(pipeline, {write(tmp_path / "one.safetensors", form, 7): 0.3})


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")  # several are meant
def test_two_loras_of_two_formats_change_the_picture_as_diffusers_loading_does(
    pipeline: FluxPipeline, tmp_path: Path
) -> None:
    one = write(tmp_path / "one.safetensors", "kohya", 7)
    two = write(tmp_path / "two.safetensors", "diffusers", 8)
    assert_same_change(pipeline, {one: 0.4, two: -0.3})


def test_text_encoder_parts_change_the_picture(pipeline: FluxPipeline, tmp_path: Path) -> None:
    state, _ = formats.text_encoders("kohya")
    path = formats.write(tmp_path / "one.safetensors", state)
    plain = draw(pipeline)
    with added_by_hand(pipeline, {path: 1.0}) as unmatched:
        changed = draw(pipeline)
    assert unmatched == (0,)
    assert not torch.equal(changed, plain)
    assert torch.equal(draw(pipeline), plain)


def test_every_format_gives_the_same_picture(pipeline: FluxPipeline, tmp_path: Path) -> None:
    plain = draw(pipeline)
    pictures = {}
    for form in formats.FORMATS:
        known = formats.make_known(only=formats.is_for_xlabs)  # what all formats can say
        path = formats.write(tmp_path / form, *formats.FORMATS[form][0](known))
        with added_by_hand(pipeline, {path: 0.5}):
            pictures[form] = draw(pipeline)
    change = (pictures["diffusers"] - plain).abs().max()
    assert change > 0.02
    for form, picture in pictures.items():
        assert (picture - pictures["diffusers"]).abs().max() < 0.01 * change, form
