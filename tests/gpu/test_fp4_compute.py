"""Four-bit products on a real NVIDIA GPU: each path the device has, against float64, and in a model.

Run with `pytest -m gpu`.
"""

from __future__ import annotations

from pathlib import Path

import numpy
import pytest
import torch

from config.catalog import load_catalog
from models.fp4 import hardware, kernels, memory, nvfp4_engine, offload
from models.fp4.checkpoint import replace_layers
from models.fp4.compute import Dequantized, Fp8, NativeFp4
from models.fp4.kernels import Kernels
from models.fp4.layers import plan_layers
from models.fp4.linear import Fp4Linear, fp4_layers
from models.types import LoadOptions
from tests.models.flux1_drawing import drawing, pixels
from tests.models.fp4.layer import make_inputs, make_layer, product64, relative
from utils import gpu_manager

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore"),  # PyTorch's compiler warns of PyTorch's own affairs
]

GPUS, WHY_NONE = gpu_manager.list_gpus()

if not GPUS:
    pytest.skip(f"needs an NVIDIA GPU: {WHY_NONE}", allow_module_level=True)

CUDA = torch.device("cuda:0")
BALLOON = drawing("a red balloon over green hills", seed=3, width=256, height=256)
LIMITS = {"dequantized": 0.01, "fp8": 0.06, "native-fp4": 0.2}


@pytest.fixture(scope="module")
def compiled() -> Kernels:
    return kernels.compiled(CUDA)


def paths(kernels_: Kernels) -> list:
    capability = torch.cuda.get_device_capability(CUDA)
    return [
        make()
        for setting in ("memory", "speed")
        for make in hardware.candidates(capability, setting, kernels_)
    ]


def test_the_kernels_compile_here(compiled: Kernels) -> None:
    assert compiled.note == ""


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("rows", [1, 7, 320, 4352])
def test_every_path_of_this_gpu_multiplies_as_float64_does(
    compiled: Kernels, rows: int, smooth: bool
) -> None:
    for path in paths(compiled) + paths(Kernels()):
        layer, _ = make_layer(256, 128, smooth=smooth)
        inputs = make_inputs(rows, 256).bfloat16()
        wanted = product64(layer, inputs)
        layer = layer.to(CUDA)
        layer.use(path)
        assert relative(layer(inputs.to(CUDA)).cpu(), wanted) < LIMITS[path.name], path.describe


def test_compiled_widening_has_the_bits_of_the_eager_one(compiled: Kernels) -> None:
    layer, _ = make_layer(512, 256)
    parts = [t.to(CUDA) for t in (layer.packed, layer.block_scale, layer.global_scale)]
    got = compiled.widen(*parts, torch.bfloat16)
    assert torch.equal(got.cpu(), kernels.widened_as(*(t.cpu() for t in parts), torch.bfloat16))


def test_few_rows_are_multiplied_without_the_widened_weight(compiled: Kernels) -> None:
    layer, _ = make_layer(3072, 18432, rank=4, weight_only=True)
    layer = layer.to(CUDA)
    layer.use(Dequantized(keep=False, dtype=torch.bfloat16, kernels=compiled))
    inputs = make_inputs(1, 3072).to(CUDA, torch.bfloat16)
    layer(inputs)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    layer(inputs)
    assert torch.cuda.max_memory_allocated() - before < 3072 * 18432


def test_the_chosen_path_is_the_best_of_this_gpu(compiled: Kernels) -> None:
    capability = torch.cuda.get_device_capability(CUDA)
    best = hardware.candidates(capability, "memory", compiled)[0]().name
    path = hardware.choose_path(CUDA, fp8_weights="memory", weights=10**9, activations=4)
    assert path.name == best, path.describe


def test_inputs_are_rounded_to_four_bits_only_for_weights_that_were_made_for_it() -> None:
    path = hardware.choose_path(CUDA, fp8_weights="memory", weights=10**9, activations=16)
    assert path.name != NativeFp4.name


def test_extra_columns_leave_no_trace(compiled: Kernels) -> None:
    for path in paths(compiled):
        layer, _ = make_layer(256, 128)
        layer = layer.to(CUDA)
        layer.use(path)
        inputs = make_inputs(64, 256).to(CUDA, torch.bfloat16)
        before = layer(inputs)
        layer.set_extra(torch.randn(128, 16, device=CUDA), torch.randn(16, 256, device=CUDA))
        assert not torch.equal(layer(inputs), before)
        layer.clear_extra()
        assert torch.equal(layer(inputs), before)


@pytest.mark.parametrize("setting", ["memory", "speed"])
def test_the_embedded_model_draws_the_same_scene_as_on_the_cpu(
    tmp_path: Path, setting: str
) -> None:
    row = load_catalog()["embedded"]
    pictures = []
    for device in ("cuda:0", "cpu"):
        options = LoadOptions(
            devices=(device,), models_dir=tmp_path, allow_download=False, fp8_weights=setting
        )
        model = nvfp4_engine.load(row, options)
        first = pixels(model, BALLOON)
        assert first == pixels(model, BALLOON), "same seed, same bytes"
        pictures.append(numpy.frombuffer(first[0], numpy.uint8).astype(float))
    assert numpy.abs(pictures[0] - pictures[1]).mean() < 6


def test_text_encoders_are_on_the_gpu_only_while_they_compute() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64))
    inputs = torch.randn(2, 64)
    wanted = module(inputs)
    offload.wait_in_main_memory(module, CUDA)
    for _ in range(2):
        torch.testing.assert_close(module(inputs.to(CUDA)).cpu(), wanted, rtol=1e-4, atol=1e-4)
        assert all(p.device.type == "cpu" for p in module.parameters())


def test_schnells_transformer_at_1024_px_stays_within_the_plan() -> None:
    """FLUX.1's shape with random weights; what is measured is memory."""
    from accelerate import init_empty_weights
    from diffusers import FluxTransformer2DModel

    path = hardware.choose_path(CUDA, fp8_weights="memory", weights=10**10, activations=4)
    plan = memory.plan(path.name)
    with init_empty_weights():
        model = FluxTransformer2DModel()
    smooth = path.name == NativeFp4.name
    replace_layers(model, plan_layers(model, 32)[0], "test", smooth=smooth)
    for tensor in model.parameters():
        tensor.data = tensor.data.bfloat16()
    model = model.to_empty(device=CUDA)
    for tensor in model.parameters():
        torch.nn.init.normal_(tensor, std=0.02)
    for layer in fp4_layers(model).values():
        fill(layer)
        layer.use(path)
    here = {"dtype": torch.bfloat16, "device": CUDA}
    torch.cuda.reset_peak_memory_stats()
    with torch.no_grad():
        for _ in range(2):
            model(
                hidden_states=torch.randn(1, 4096, 64, **here),
                encoder_hidden_states=torch.randn(1, 256, 4096, **here),
                pooled_projections=torch.randn(1, 768, **here),
                timestep=torch.ones(1, **here),
                img_ids=torch.zeros(4096, 3, **here),
                txt_ids=torch.zeros(256, 3, **here),
            )
    peak = torch.cuda.max_memory_allocated()
    assert peak + plan.vae_weights <= memory.LIMIT_BYTES
    assert peak <= 1.03 * (plan.transformer_weights + plan.denoising)


def fill(layer: Fp4Linear) -> None:
    layer.packed.random_(0, 256)
    layer.block_scale.copy_(torch.ones_like(layer.block_scale, dtype=torch.float32) * 100)
    layer.global_scale.fill_(1e-4)
    layer.up.normal_(std=0.01)
    layer.down.normal_(std=0.01)
    for tensor, value in ((layer.bias, 0.0), (layer.inverse_smoothing, 1.0)):
        if tensor is not None:
            tensor.fill_(value)


def test_native_fp4_is_there_on_blackwell() -> None:
    if torch.cuda.get_device_capability(CUDA) < (10, 0):
        pytest.skip("not a Blackwell")
    assert hardware.why_not(NativeFp4(), CUDA) is None


def test_fp8_is_there_on_ada_and_later() -> None:
    if torch.cuda.get_device_capability(CUDA) < (8, 9):
        pytest.skip("older than Ada")
    assert hardware.why_not(Fp8(convert_once=False), CUDA) is None
