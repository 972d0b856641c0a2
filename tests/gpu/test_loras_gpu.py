"""LoRAs on a real NVIDIA GPU: changes, bits, compilation, memory; and what they cost at FLUX.1's size.

Run with `pytest -m gpu`; the costs are printed with `-s`. The large transformer has random weights,
which are right for times and memory and say nothing about pictures.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from diffusers import FluxTransformer2DModel

from models.lora.adapters import PeftAdapters
from models.lora.base_model import Base, Family
from models.lora.convert import Factors, Lora
from models.lora.in_use import Chosen
from models.lora.inspect import LoraInfo
from models.lora.merge import layer_shapes
from models.lora.merged import MergedLoras, places_in
from models.types import LoraRef
from tests.models.flux1_drawing import draw, pixels
from tests.models.lora import applied, formats
from tests.models.lora.applied import picture, put, put_known, request
from utils import gpu_manager

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore"),  # PyTorch's compiler warns of PyTorch's own affairs
]

GPUS, WHY_NONE = gpu_manager.list_gpus()

if not GPUS:
    pytest.skip(f"needs an NVIDIA GPU: {WHY_NONE}", allow_module_level=True)

CUDA = torch.device("cuda:0")


@pytest.fixture(scope="module", params=["bf16", "fp4"])
def model(request: pytest.FixtureRequest, folder: Path) -> Iterator[Any]:
    yield applied.load(request.param, folder, "cuda:0")
    torch.cuda.empty_cache()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("loras")


@pytest.fixture(scope="module")
def sets(folder: Path) -> tuple[tuple[LoraRef, ...], ...]:
    one, other = put_known(folder, seed=1), put_known(folder, "diffusers", seed=2, weight=-0.2)
    text = put(folder, formats.text_encoders("kohya")[0], weight=0.5)
    lokr = put(folder, formats.lokr()[0], weight=2.0)
    return (), (one,), (one, other), (other, text), (lokr,)


def test_requests_that_alternate_have_the_bytes_of_alone_and_memory_stays(
    model: Any, sets, folder: Path
) -> None:
    alone = {}
    for refs in sets:
        model.use_loras(())
        model.use_loras(refs)
        alone[refs] = pixels(model, request(refs))
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated(CUDA)
    for index in numpy.random.default_rng(3).integers(0, len(sets), 200):
        model.use_loras(sets[index])
        assert pixels(model, request(sets[index])) == alone[sets[index]]
    model.use_loras(sets[-1])
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated(CUDA) <= before + 2**20


def test_without_loras_the_bits_are_those_of_a_model_that_never_had_one(
    model: Any, sets, folder: Path
) -> None:
    precision = "bf16" if model.engine == "diffusers" else "fp4"
    never = pixels(applied.load(precision, folder, "cuda:0"), request())
    for refs in sets:
        model.use_loras(refs)
        model.use_loras(())
        assert pixels(model, request()) == never


def test_frugal_drawing_takes_loras_along(model: Any, sets) -> None:
    refs = sets[3]
    before = picture(model, refs)
    frugal = numpy.asarray(draw(model, request(refs), frugal=True)[0], dtype=float)
    assert numpy.abs(frugal - before).mean() < 8
    assert numpy.array_equal(picture(model, refs), before)


def test_model_offloaded_for_good_changes_loras(folder: Path, sets) -> None:
    resident = applied.load("bf16", folder, "cuda:0")
    waiting = applied.load("bf16", folder)
    for part in (waiting._image.transformer, waiting._image.vae):
        part.to(torch.bfloat16)
    for part in (waiting._text.text_encoder, waiting._text.text_encoder_2):
        part.to(torch.bfloat16)
    waiting.enable_offloading(CUDA)
    for refs in (*sets[:4], *sets[:4]):
        assert numpy.abs(picture(waiting, refs) - picture(resident, refs)).mean() < 2


def test_adapters_that_find_no_room_leave_those_before(
    folder: Path, sets, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = applied.load("bf16", folder, "cuda:0")
    before = picture(model, sets[1])
    carrier = model._loras._carrier
    placed, seen = carrier._placed, []

    def place(path: str, weight: torch.Tensor) -> torch.Tensor:
        seen.append(path)
        if len(seen) > 5:
            torch.empty(2**50, dtype=torch.uint8, device=CUDA)
        return placed(path, weight)

    monkeypatch.setattr(carrier, "_placed", place)
    with pytest.raises(torch.OutOfMemoryError):
        model.use_loras([put_known(folder, seed=9)])
    assert numpy.array_equal(numpy.asarray(draw(model, request(sets[1]))[0], dtype=float), before)


def test_compiled_model_changes_loras_without_compiling_again(folder: Path, sets) -> None:
    model = applied.load("bf16", folder, "cuda:0")
    wanted = {refs: picture(model, refs) for refs in sets[:4]}
    model.compile(autoencoder=False, fullgraph=True)
    for refs in sets[:3]:
        picture(model, refs)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for refs in (*wanted, *wanted):
            assert numpy.abs(picture(model, refs) - wanted[refs]).mean() < 2
        first = picture(model, sets[1])
        picture(model, sets[2])
        assert numpy.array_equal(picture(model, sets[1]), first)


# FLUX.1's size


@pytest.fixture(scope="module")
def large() -> Iterator[FluxTransformer2DModel]:
    if torch.cuda.get_device_properties(CUDA).total_memory < 40 * 2**30:
        pytest.skip("needs a GPU with 40 GiB")
    with torch.device("meta"):
        transformer = FluxTransformer2DModel(guidance_embeds=False)
    transformer = transformer.to(torch.bfloat16).to_empty(device=CUDA).eval().requires_grad_(False)
    torch.manual_seed(0)
    for parameter in transformer.parameters():
        parameter.normal_(std=0.02)
    yield transformer
    del transformer
    torch.cuda.empty_cache()


def random_lora(transformer: Any, rank: int, seed: int) -> Chosen:
    """On every linear layer of the blocks, as most trainers make them."""
    generator = torch.Generator(CUDA).manual_seed(seed)
    here = {"generator": generator, "device": CUDA}
    layers = {}
    for name, (rows, columns) in layer_shapes({"transformer": transformer}).items():
        if "blocks" in name:
            down = (torch.randn(rank, columns, **here) / columns**0.5).bfloat16().cpu()
            up = (torch.randn(rows, rank, **here) / rank**0.5).bfloat16().cpu()
            layers[name] = Factors(
                down, up, 0.1, (f"{name}.lora_A.weight", f"{name}.lora_B.weight")
            )
    info = LoraInfo(
        format="diffusers", base=Base(Family.FLUX1, "FLUX.1", 3072), ranks=(rank,), alphas=(), targets=(),
        text_encoders=(), trigger_words=(), modules=len(layers), tensors=2 * len(layers), size_bytes=0,
        unknown_keys=(), refusal=None,
    )  # fmt: skip
    lora = Lora(layers=layers, info=info, unknown_keys=(), error=0.0, approximated={})
    return Chosen(LoraRef(name=f"{rank}/{seed}", sha256=f"{rank}x{seed}", weight=1.0), lora)


@torch.no_grad()
def step(transformer: Any) -> torch.Tensor:
    """One step at 1024 px with 256 text tokens; equal inputs each time."""
    generator = torch.Generator(CUDA).manual_seed(1)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=CUDA, dtype=torch.bfloat16)

    return transformer(
        hidden_states=noise(1, 4096, 64), encoder_hidden_states=noise(1, 256, 4096),
        pooled_projections=noise(1, 768), timestep=torch.ones(1, device=CUDA, dtype=torch.bfloat16),
        img_ids=torch.zeros(4096, 3, device=CUDA), txt_ids=torch.zeros(256, 3, device=CUDA),
        return_dict=False,
    )[0]  # fmt: skip


def milliseconds(call: Any, repeats: int = 5) -> float:
    found = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        started = time.perf_counter()
        call()
        torch.cuda.synchronize()
        found.append((time.perf_counter() - started) * 1000)
    return statistics.median(found)


@pytest.mark.parametrize("way", ["native", "merged", "compiled"])
def test_costs_at_flux1s_size(large: FluxTransformer2DModel, way: str) -> None:
    """Prints for rank 16 and 64, one, three and eight LoRAs: first use, change, step; checks the bits."""
    parts, devices = {"transformer": large}, {"transformer": CUDA}
    plain = step(large)
    if way == "native":
        carrier: Any = PeftAdapters(parts, devices, lambda ref: None, max_bytes=16 * 2**30)
    else:
        carrier = MergedLoras(
            places_in(parts),
            devices,
            {"transformer": torch.bfloat16},
            compiled="transformer" if way == "compiled" else None,
            max_bytes=16 * 2**30,
        )
    if way == "compiled":
        large.compile_repeated_blocks(fullgraph=True)
        plain = step(large)
        for rank in (16, 32):  # a width of branches, and one more: from then on, any
            carrier.carry([random_lora(large, rank, seed=99)])
            step(large)
        carrier.carry([])
    base_ms = milliseconds(lambda: step(large))
    print(f"\n{torch.cuda.get_device_name(CUDA)}, torch {torch.__version__}, {way}")
    print(f"| rank | LoRAs | first use ms | change ms | step ms (without: {base_ms:.1f}) |")
    with torch._dynamo.config.patch(error_on_recompile=way == "compiled"):
        for rank in (16, 64):
            for count in (1, 3, 8):
                loras = [random_lora(large, rank, seed) for seed in range(count)]
                first = milliseconds(lambda some=loras: carrier.carry(some), repeats=1)
                styled = step(large)
                assert not torch.equal(styled, plain)
                carrier.carry([])
                assert torch.equal(step(large), plain), "taken away, the bits are those before"
                change = milliseconds(lambda some=loras: carrier.carry(some), repeats=1)
                took = milliseconds(lambda: step(large))
                assert torch.equal(step(large), styled)
                carrier.carry([])
                print(f"| {rank} | {count} | {first:.0f} | {change:.1f} | {took:.1f} |")
    carrier.release()
