"""The paths against float64. What needs FP4 tensor cores is put together from its parts here; the whole
runs in `tests/gpu/test_fp4_compute.py`."""

from __future__ import annotations

import pytest
import torch
import torch._inductor.config
from hypothesis import given, settings
from hypothesis import strategies as st

from models.fp4 import compute, hardware, kernels, nvfp4
from models.fp4.compute import Dequantized, Fp8, NativeFp4
from models.fp4.kernels import Kernels
from models.fp4.linear import Fp4Linear
from tests.models.fp4.layer import make_inputs, make_layer, product64, relative

CPU = torch.device("cpu")


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), exponent=st.integers(-20, 20))
def test_widened_has_the_bits_of_dequantize(seed: int, exponent: int) -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(seed)) * 10.0**exponent
    tensor = nvfp4.quantize(weight)
    got = kernels.widened(tensor.packed, tensor.block_scale, tensor.global_scale)
    assert torch.equal(got.view(torch.int32), nvfp4.dequantize(tensor).view(torch.int32))


@pytest.mark.filterwarnings("ignore")  # PyTorch's compiler warns of PyTorch's own affairs
def test_widened_compiles_to_the_same_bits_for_every_shape_at_once() -> None:
    """One graph: a compilation for each shape of a model would run into PyTorch's limit of eight."""
    torch._dynamo.reset()
    widen = torch.compile(kernels.widened_as, dynamic=True, fullgraph=True)
    # Trying whether the compiler knows the processor's vectors takes twice as long as the rest.
    trust = torch._inductor.config.patch({"cpp.vec_isa_ok": True})
    with trust, torch._dynamo.config.patch(recompile_limit=2):
        for shape in ((64, 128), (96, 256), (192, 96), (32, 768)):
            tensor = nvfp4.quantize(torch.randn(shape))
            parts = tensor.packed, tensor.block_scale, tensor.global_scale
            got, wanted = widen(*parts, torch.bfloat16), kernels.widened_as(*parts, torch.bfloat16)
            assert torch.equal(got, wanted)


def test_widened_knows_all_sixteen_codes() -> None:
    packed = nvfp4.pack(torch.arange(16, dtype=torch.uint8)[None])
    one = torch.ones(1, 1).to(torch.float8_e4m3fn)
    got = kernels.widened(packed, one, torch.ones(()))
    assert torch.equal(got[0], nvfp4.decode(torch.arange(16, dtype=torch.uint8)))


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("shape", [(1, 128), (40, 128), (2, 20, 128)])
@pytest.mark.parametrize(
    ("path", "dtype", "limit"),
    [
        (lambda: Dequantized(keep=True, dtype=torch.float32), torch.float32, 1e-5),
        (lambda: Dequantized(keep=False, dtype=torch.float32), torch.float32, 1e-5),
        (lambda: Dequantized(keep=False, dtype=torch.bfloat16), torch.bfloat16, 0.01),
        (lambda: Fp8(convert_once=True), torch.bfloat16, 0.05),
        (lambda: Fp8(convert_once=False), torch.bfloat16, 0.05),
    ],
    ids=["kept", "widened FP32", "widened BF16", "fp8 speed", "fp8 memory"],
)
def test_path_multiplies_as_float64_does(path, dtype, limit, shape, smooth: bool) -> None:
    layer, _ = make_layer(smooth=smooth)
    layer.use(path())
    inputs = make_inputs(shape[0] * (shape[1] if len(shape) == 3 else 1), 128, seed=3)
    inputs = inputs.reshape(shape).to(dtype)
    got = layer(inputs)
    assert got.dtype == dtype and got.shape == (*shape[:-1], 96)
    assert relative(got, product64(layer, inputs)) < limit


def test_fp8_tile_by_tile_has_the_bits_of_one_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, _ = make_layer()
    inputs = make_inputs(17, 128).bfloat16()
    results = []
    for rows in (4096, 32):  # one tile, three tiles
        monkeypatch.setattr(compute, "TILE_ROWS", rows)
        layer.use(Fp8(convert_once=False))
        results.append(layer(inputs))
    assert torch.equal(*results)
    assert "weight" not in layer.kept, "memory: nothing converted stays"


@pytest.mark.parametrize("smooth", [False, True])
def test_fp8_once_has_the_branch_in_the_weight_and_loras_beside_it(smooth: bool) -> None:
    layer, _ = make_layer(smooth=smooth)
    layer.use(Fp8(convert_once=True))
    assert layer.kept["branches"] == ()
    got = layer.kept["weight"].float() * layer.kept["unit"].T
    assert relative(got, layer.dense().double()) < 0.03
    inputs = make_inputs(17, 128).bfloat16()
    before = layer(inputs)
    up, down = torch.randn(96, 3), torch.randn(3, 128)
    layer.set_extra(up, down)
    assert relative(layer(inputs), product64(layer, inputs)) < 0.05
    layer.clear_extra()
    assert torch.equal(layer(inputs), before)


def test_fp8_weights_are_as_near_to_the_four_bits_as_the_head_says() -> None:
    layer, _ = make_layer(512, 256)
    path = Fp8(convert_once=False)
    layer.use(path)
    got = path._tile(layer, 0, 256).float() * layer.kept["unit"].T
    wanted = nvfp4.dequantize(layer.quantized)
    assert relative(got, wanted.double()) < 0.016
    assert float(torch.isclose(got, wanted, rtol=1e-6).float().mean()) > 0.55


@pytest.mark.parametrize("path", [Fp8(convert_once=True), NativeFp4()])
def test_weight_only_layers_never_round_their_inputs(path) -> None:
    layer, _ = make_layer(weight_only=True)
    layer.use(path)
    inputs = make_inputs(1, 128)
    assert relative(layer(inputs), product64(layer, inputs)) < 1e-5


@pytest.mark.parametrize("path", [Fp8(convert_once=True), NativeFp4()])
def test_layers_of_odd_outputs_take_the_widened_weight(path) -> None:
    layer, _ = make_layer(128, 100)
    layer.use(path)
    inputs = make_inputs(5, 128)
    assert relative(layer(inputs), product64(layer, inputs)) < 1e-5


def test_few_rows_product_is_the_product() -> None:
    layer, _ = make_layer()
    inputs = make_inputs(3, 128)
    parts = layer.packed, layer.block_scale, layer.global_scale
    wanted = inputs.double() @ nvfp4.dequantize(layer.quantized).double().T
    assert relative(kernels.few_rows_product(inputs, *parts), wanted) < 1e-6


def test_rows_to_fp8_uses_the_whole_range_row_by_row() -> None:
    inputs = torch.tensor([[1e-3, -2e-3], [500.0, 1.0], [0.0, 0.0]])
    values, scale = kernels.rows_to_fp8(inputs)
    assert values.float().abs().amax(dim=1).tolist() == [448.0, 448.0, 0.0]
    torch.testing.assert_close(values.float() * scale, inputs, rtol=1 / 16, atol=0)


@pytest.mark.parametrize(("rows", "columns"), [(128, 4), (1, 1), (130, 9), (300, 12)])
def test_swizzled_puts_every_scale_where_the_tensor_core_reads_it(rows: int, columns: int) -> None:
    scales = (torch.arange(rows * columns) % 251).to(torch.uint8).reshape(rows, columns)
    flat = kernels.swizzled(scales.view(torch.float8_e4m3fn)).view(torch.uint8)
    tiles = -(-columns // 4)
    assert flat.numel() == -(-rows // 128) * 128 * tiles * 4
    for r in range(0, rows, 7):
        for c in range(columns):
            tile = (r // 128) * tiles + c // 4
            inside = (r % 32) * 16 + (r % 128) // 32 * 4 + c % 4
            assert flat[tile * 512 + inside] == scales[r, c]


def test_native_fp4_gives_the_product_what_it_asks_for() -> None:
    """On the meta device PyTorch checks types, shapes and the number of scales, and computes nothing."""
    layer, _ = make_layer(256, 128)
    layer = layer.to("meta")
    layer.use(NativeFp4())
    assert "scales" not in layer.kept, "FLUX.1 has no room for a second copy of them"
    got = layer(torch.empty(3, 40, 256, dtype=torch.bfloat16, device="meta"))
    assert got.shape == (3, 40, 128) and got.dtype == torch.bfloat16


@pytest.mark.parametrize("smooth", [False, True])
def test_native_fp4_is_its_rounded_inputs_times_its_codes(
    monkeypatch: pytest.MonkeyPatch, smooth: bool
) -> None:
    """The tensor core's part done in float64 from exactly what it would be given."""

    def product(a, b, scale_a, recipe_a, scale_b, recipe_b, **_):
        def widen(codes: torch.Tensor, scales: list[torch.Tensor]) -> torch.Tensor:
            codes = codes.view(torch.uint8)
            rows, blocks = codes.shape[0], codes.shape[1] // 8
            block_scale = unswizzled(scales[0], rows, blocks)
            return kernels.widened(codes, block_scale, scales[1]).double()

        return (widen(a, scale_a) @ widen(b.T, scale_b).T).bfloat16()

    monkeypatch.setattr(compute.F, "scaled_mm", product)
    layer, _ = make_layer(64, 48, smooth=smooth)
    layer.use(NativeFp4())
    inputs = make_inputs(20, 64, seed=4).bfloat16()
    error = relative(layer(inputs), product64(layer, inputs))
    assert error < (0.12 if smooth else 0.2)


def unswizzled(flat: torch.Tensor, rows: int, columns: int) -> torch.Tensor:
    tiles = -(-rows // 128), -(-columns // 4)
    blocks = flat.view(torch.uint8).reshape(tiles[0], tiles[1], 32, 4, 4).permute(0, 3, 2, 1, 4)
    padded = blocks.reshape(tiles[0] * 128, tiles[1] * 4)
    return padded[:rows, :columns].contiguous().view(torch.float8_e4m3fn)


@pytest.mark.parametrize(
    ("capability", "names"),
    [
        ((12, 0), ["native-fp4", "fp8", "dequantized"]),
        ((10, 0), ["native-fp4", "fp8", "dequantized"]),
        ((9, 0), ["fp8", "dequantized"]),
        ((8, 9), ["fp8", "dequantized"]),
        ((8, 6), ["dequantized"]),
        ((7, 5), ["dequantized"]),
    ],
)
def test_candidates_by_hardware(capability, names) -> None:
    paths = [make() for make in hardware.candidates(capability, "memory", Kernels())]
    assert [path.name for path in paths] == names


@pytest.mark.parametrize(("activations", "name"), [(4, "native-fp4"), (16, "fp8")])
def test_blackwell_rounds_inputs_only_for_weights_that_were_made_for_it(
    monkeypatch: pytest.MonkeyPatch, activations: int, name: str
) -> None:
    monkeypatch.setattr(hardware, "compiled", lambda device: Kernels())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (12, 0))
    monkeypatch.setattr(hardware, "why_not", lambda path, device: None)
    path = hardware.choose_path(
        torch.device("cuda:0"), fp8_weights="memory", weights=10**9, activations=activations
    )
    assert path.name == name
    assert ("not made for inputs of four bits" in path.describe) == (name != "native-fp4")


@pytest.mark.parametrize(("setting", "word"), [("memory", "tile by tile"), ("speed", "at load")])
def test_fp8_says_which_setting_it_follows(setting: str, word: str) -> None:
    path = hardware.candidates((9, 0), setting, Kernels())[0]()
    assert word in path.describe and "FP8" in path.describe


def test_cpu_keeps_small_models_widened_and_large_ones_packed() -> None:
    small = hardware.choose_path(CPU, fp8_weights="memory", weights=5_000_000, activations=16)
    large = hardware.choose_path(CPU, fp8_weights="memory", weights=11_000_000_000, activations=16)
    assert "once at load" in small.describe and "as they are used" in large.describe


@pytest.mark.parametrize(
    "path", [Fp8(convert_once=False), Dequantized(keep=False, dtype=torch.bfloat16)]
)
def test_a_right_path_passes_its_trial(path) -> None:
    assert hardware.why_not(path, CPU) is None


def test_a_path_the_device_lacks_is_passed_over_with_its_own_words() -> None:
    assert "swizzle" in str(hardware.why_not(NativeFp4(), CPU))


def test_a_path_that_computes_wrongly_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    path = Fp8(convert_once=False)

    def negative(layer: Fp4Linear, start: int, end: int) -> torch.Tensor:
        tile = Fp8._tile(path, layer, start, end)
        return (-tile.float()).to(tile.dtype)

    monkeypatch.setattr(path, "_tile", negative)
    assert "off by" in str(hardware.why_not(path, CPU))
