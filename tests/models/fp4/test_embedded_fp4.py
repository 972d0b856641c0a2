"""The four-bit copy that ships: of the weights that ship, as small and as good as promised."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from diffusers import FluxPipeline

from config.settings import ROOT
from models.fingerprint import fingerprint
from models.fp4 import nvfp4, nvfp4_engine
from models.fp4.checkpoint import MANIFEST, Manifest
from models.fp4.kinds import kind_of
from models.fp4.linear import fp4_layers
from models.types import LoadOptions
from scripts.embedded.examination import draw_prompts, generate
from tests.models.fp4.conftest import EMBEDDED

SOURCE, SHIPPED = ROOT / "models" / "embedded", ROOT / "models" / "embedded-fp4"
AGAIN = "run: python -m scripts.quantize_fp4 --model embedded --out models/embedded-fp4 --activations 16"


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return json.loads((SHIPPED / "quality.json").read_text())


def test_it_was_made_from_the_weights_that_ship() -> None:
    made_from = Manifest.read(SHIPPED).source["files"]
    assert made_from == fingerprint(
        SOURCE, kind_of(EMBEDDED).parts
    ), f"models/embedded-fp4 was made from other weights than models/embedded has; {AGAIN}"


def test_its_transformer_is_at_most_045_of_bf16() -> None:
    full = sum(f.stat().st_size for f in (SOURCE / "transformer").glob("*.safetensors"))
    made = sum(f.stat().st_size for f in (SHIPPED / "transformer").iterdir())
    assert made + (SHIPPED / MANIFEST).stat().st_size <= 0.45 * full


def test_every_layer_has_at_most_04_of_plain_nvfp4s_error(report: dict[str, Any]) -> None:
    over = {name: e["ratio"] for name, e in report["layers"].items() if e["ratio"] > 0.4}
    assert not over and report["mean_ratio"] <= 0.3, AGAIN


def test_all_layers_but_the_listed_ones_are_four_bit() -> None:
    part = Manifest.read(SHIPPED).components["transformer"]
    assert len(part.layers) == 2 * 14 + 4 * 6 + 1
    assert set(part.kept_16bit) == {
        "x_embedder", "context_embedder", "proj_out",
        "time_text_embed.timestep_embedder.linear_1", "time_text_embed.timestep_embedder.linear_2",
        "time_text_embed.text_embedder.linear_1", "time_text_embed.text_embedder.linear_2",
    }  # fmt: skip


def test_its_layers_put_out_what_the_16_bit_ones_do_on_inputs_of_other_prompts(
    tmp_path: Path,
) -> None:
    """Measured here and not read from the report: inputs are those of the 16-bit model."""
    load = LoadOptions(devices=("cpu",), models_dir=tmp_path, allow_download=False)
    ours, _ = nvfp4_engine.load_pipeline(SHIPPED, EMBEDDED, load)
    whole = FluxPipeline.from_pretrained(SOURCE, dtype=torch.float32)
    for pipeline in (ours, whole):
        pipeline.set_progress_bar_config(disable=True)
    errors = {name: [0.0, 0.0, 0.0] for name in fp4_layers(ours.transformer)}

    def measure(name: str) -> Any:
        layer = ours.transformer.get_submodule(name)
        weight = whole.transformer.get_submodule(name).weight
        plain = nvfp4.dequantize(nvfp4.quantize(weight)) - weight

        def hook(module: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
            errors[name][0] += float((layer(inputs[0]) - output).square().sum())
            errors[name][1] += float(
                (output - (module.bias if module.bias is not None else 0)).square().sum()
            )
            errors[name][2] += float((inputs[0] @ plain.T).square().sum())

        return hook

    hooks = [
        whole.transformer.get_submodule(name).register_forward_hook(measure(name))
        for name in errors
    ]
    prompts = draw_prompts(2, 20261)
    wanted = list(generate(whole, prompts, seed=70))
    for hook in hooks:
        hook.remove()
    relative = [(ours_ / whole_) ** 0.5 for ours_, whole_, _ in errors.values()]
    assert max(relative) < 0.08 and sum(relative) / len(relative) < 0.025
    over = {name: (e[0] / e[2]) ** 0.5 for name, e in errors.items() if e[0] > 0.4**2 * e[2]}
    assert not over, f"of plain NVFP4's error; {AGAIN}"

    got = list(generate(ours, prompts, seed=70))
    assert numpy.mean([psnr(a, b) for a, b in zip(wanted, got, strict=True)]) > 42


def psnr(one: Any, other: Any) -> float:
    difference = numpy.asarray(one, dtype=float) - numpy.asarray(other, dtype=float)
    return float(10 * numpy.log10(255**2 / max((difference**2).mean(), 1e-9)))
