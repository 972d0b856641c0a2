"""The parts of FLUX.1 [schnell] on this GPU, at full size with random weights, side by side in one run.

    python -m scripts.bench.gpu_parts [--only gemm,attention,...] [--size 1024]

Milliseconds are medians of runs after a warm-up, the GPU waited for. Each part prints its lines as soon
as it has them, so that a run that is cut short still says something.
"""

from __future__ import annotations

import argparse
import functools
import gc
import platform
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from scripts.bench import random_flux
from scripts.bench.gpu_meter import metered

CUDA = torch.device("cuda:0")
# (K, N) of the products in a double and a single block, and those that could be made one.
PRODUCTS = ((3072, 3072), (3072, 9216), (3072, 12288), (12288, 3072), (15360, 3072), (3072, 21504))
STEP_TFLOP = 69.47  # at 1024 px with 256 text tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--size", type=int, default=1024)
    options = parser.parse_args()
    print(
        f"{torch.cuda.get_device_name(CUDA)}, torch {torch.__version__}, CUDA {torch.version.cuda}, "
        f"cuDNN {torch.backends.cudnn.version()}, Python {platform.python_version()}",
        flush=True,
    )
    failed = []
    for name in options.only.split(","):
        started = time.perf_counter()
        with metered() as used:
            try:
                with torch.no_grad():
                    PARTS[name](options.size)
            except Exception:
                failed.append(name)
                traceback.print_exc()
            gc.collect()
            torch.cuda.empty_cache()
        say(f"{name}, the GPU: {used.peak()} in {time.perf_counter() - started:.0f} s")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def milliseconds(call: Callable[[], Any], runs: int = 10, warm: int = 2) -> float:
    for _ in range(warm):
        call()
    torch.cuda.synchronize()
    found = []
    for _ in range(runs):
        started = time.perf_counter()
        call()
        torch.cuda.synchronize()
        found.append((time.perf_counter() - started) * 1000)
    return statistics.median(found)


def say(text: str) -> None:
    print(text, flush=True)


def first_and_median(call: Callable[[], Any], runs: int = 10) -> str:
    started = time.perf_counter()
    call()
    torch.cuda.synchronize()
    first = time.perf_counter() - started
    return f"{milliseconds(call, runs):.1f} ms (first {first:.1f} s)"


def gemm(size: int) -> None:
    rows = (size // 16) ** 2 + random_flux.TEXT_TOKENS
    for columns, outputs in PRODUCTS:
        inputs = torch.randn(rows, columns, device=CUDA, dtype=torch.bfloat16)
        weight = torch.randn(outputs, columns, device=CUDA, dtype=torch.bfloat16)
        tflop = 2 * rows * columns * outputs / 1e12
        sixteen = milliseconds(lambda a=inputs, b=weight: a @ b.T, 50)
        narrow, narrow_weight = (x.to(torch.float8_e4m3fn) for x in (inputs, weight))
        by_row = torch.ones(rows, 1, device=CUDA), torch.ones(1, outputs, device=CUDA)
        one = torch.ones((), device=CUDA), torch.ones((), device=CUDA)

        def product(scales: Any, a: Any = narrow, b: Any = narrow_weight) -> Any:
            return torch._scaled_mm(
                a, b.T, *scales, out_dtype=torch.bfloat16, use_fast_accum=True
            )  # fmt: skip

        eight_rows = milliseconds(lambda call=product, s=by_row: call(s), 50)
        eight_one = milliseconds(lambda call=product, s=one: call(s), 50)
        say(
            f"{rows}x{columns}x{outputs}: bf16 {sixteen:.3f} ms {tflop / sixteen * 1000:.0f} TFLOP/s; fp8 by "
            f"row {eight_rows:.3f} {tflop / eight_rows * 1000:.0f}; fp8 one scale {eight_one:.3f} "
            f"{tflop / eight_one * 1000:.0f}"
        )


def attention(size: int) -> None:
    tokens = (size // 16) ** 2 + random_flux.TEXT_TOKENS
    heads = [torch.randn(1, 24, tokens, 128, device=CUDA, dtype=torch.bfloat16) for _ in range(3)]
    tflop = 4 * 24 * 128 * tokens**2 / 1e12
    call = functools.partial(torch.nn.functional.scaled_dot_product_attention, *heads)

    def under(backend: Any) -> float:
        with sdpa_kernel(backend):
            return milliseconds(call, 50)

    found = {"default": milliseconds(call, 50)}
    for name in ("FLASH_ATTENTION", "CUDNN_ATTENTION"):
        found[name.lower()] = under(getattr(SDPBackend, name))
    say(
        "attention " + "; ".join(f"{k} {v:.3f} ms {tflop / v * 1000:.0f}" for k, v in found.items())
    )


def bf16(size: int) -> None:
    model, given = random_flux.transformer(CUDA), random_flux.inputs(CUDA, size, size)
    plain = model(**given)[0]
    say(
        f"bf16 step as it is: {milliseconds(lambda: model(**given)):.1f} ms; finite {finite(plain)}"
    )
    with cudnn():
        say(f"bf16 step, cuDNN attention: {first_and_median(lambda: model(**given))}")
        model.compile_repeated_blocks(fullgraph=True)
        say(
            f"bf16 step, compiled: {first_and_median(lambda: model(**given))}; {off(model, given, plain)}"
        )
        say(f"bf16 step, compiled, CUDA graph: {graphed(model, given)}")
        for other, batch in ((512, 1), (size, 2)):
            more = random_flux.inputs(CUDA, other, other, batch)
            say(
                f"bf16 step {other} px, batch {batch}: {first_and_median(lambda m=more: model(**m))}"
            )
    say(f"bf16 peak {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB")


def fused(size: int) -> None:
    model, given = random_flux.transformer(CUDA), random_flux.inputs(CUDA, size, size)
    plain = model(**given)[0]
    model.fuse_qkv_projections()
    with cudnn():
        model.compile_repeated_blocks(fullgraph=True)
        say(f"bf16 step, q k v one product, compiled: {first_and_median(lambda: model(**given))}; "
            f"{off(model, given, plain)}")  # fmt: skip


def tuned(size: int) -> None:
    """Whether Triton's products, each tried in some twenty shapes of tiles, are quicker than cuBLAS's."""
    import torch._inductor.config as inductor

    model, given = random_flux.transformer(CUDA), random_flux.inputs(CUDA, size, size)
    plain = model(**given)[0]
    with cudnn(), inductor.patch(epilogue_fusion=False, coordinate_descent_tuning=True):
        model.compile_repeated_blocks(fullgraph=True)
        say(f"bf16 step, compiled, tuned: {first_and_median(lambda: model(**given))}")
    for tma in (False, True):
        torch.compiler.reset()
        with cudnn(), inductor.patch({"triton.enable_persistent_tma_matmul": tma}):
            model.compile_repeated_blocks(fullgraph=True, mode="max-autotune-no-cudagraphs")
            say(
                f"bf16 step, compiled, Triton's products{', by TMA' if tma else ''} where they are quicker: "
                f"{first_and_median(lambda: model(**given))}; {off(model, given, plain)}"
            )


def fp4(size: int, *, setting: str) -> None:
    torch.cuda.reset_peak_memory_stats()
    model, path = random_flux.fp4_transformer(CUDA, fp8_weights=setting)
    given = random_flux.inputs(CUDA, size, size)
    say(f"fp4 {setting}: {path.describe}; {torch.cuda.memory_allocated() / 1e9:.2f} GB of weights")
    torch.cuda.reset_peak_memory_stats()
    with cudnn():
        plain = model(**given)[0]
        say(f"fp4 {setting} step: {milliseconds(lambda: model(**given), 5):.1f} ms; finite {finite(plain)}; "
            f"peak {torch.cuda.max_memory_allocated() / 1e9:.2f} GB")  # fmt: skip
        model.compile_repeated_blocks(fullgraph=True)
        say(f"fp4 {setting} step, compiled: {first_and_median(lambda: model(**given))}; {off(model, given, plain)}; "
            f"peak {torch.cuda.max_memory_allocated() / 1e9:.2f} GB")  # fmt: skip
        say(f"fp4 {setting} step, compiled, CUDA graph: {graphed(model, given)}")


def vae(size: int) -> None:
    model = random_flux.autoencoder(CUDA)
    latents = torch.randn(1, 16, size // 8, size // 8, device=CUDA, dtype=torch.bfloat16)
    decode: Any = lambda: model.decode(latents, return_dict=False)[0]  # noqa: E731
    say(f"vae decode: {milliseconds(decode):.1f} ms")
    model.to(memory_format=torch.channels_last)
    say(f"vae decode, channels last: {milliseconds(decode):.1f} ms")
    model.decoder.compile(fullgraph=True)
    say(f"vae decode, channels last, compiled: {first_and_median(decode)}")
    say(f"vae decode, CUDA graph: {milliseconds(graph_of(decode).replay):.1f} ms")
    pixels = decode()
    say(
        f"pixels to main memory: {milliseconds(lambda: (pixels.float().mul(127.5).add(127.5).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu())):.1f} ms"
    )


def text(_size: int) -> None:
    model = random_flux.t5(CUDA)
    ids = torch.randint(0, 32000, (1, random_flux.TEXT_TOKENS), device=CUDA)
    call: Any = lambda: model(ids)[0]  # noqa: E731
    say(f"t5: {milliseconds(call):.1f} ms")
    say(f"t5, CUDA graph: {milliseconds(graph_of(call).replay):.1f} ms")


def finite(tensor: torch.Tensor) -> bool:
    return bool(tensor.isfinite().all())


def off(model: Any, given: dict[str, Any], plain: torch.Tensor) -> str:
    found = model(**given)[0].float()
    return f"off by {float((found - plain.float()).norm() / plain.float().norm()):.4f}"


@contextmanager
def cudnn() -> Iterator[None]:
    with sdpa_kernel([SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION], set_priority=True):
        yield


def graph_of(call: Callable[[], Any]) -> torch.cuda.CUDAGraph:
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(2):
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph


def graphed(model: Any, given: dict[str, Any]) -> str:
    return f"{milliseconds(graph_of(lambda: model(**given)).replay):.1f} ms"


PARTS: dict[str, Callable[[int], None]] = {
    "gemm": gemm,
    "attention": attention,
    "bf16": bf16,
    "speed": functools.partial(fp4, setting="speed"),
    "memory": functools.partial(fp4, setting="memory"),
    "vae": vae,
    "text": text,
    "fused": fused,
    "tuned": tuned,
}

if __name__ == "__main__":
    main()
