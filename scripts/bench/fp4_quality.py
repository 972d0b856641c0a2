"""What four bits cost: pictures of the embedded model by several 4-bit methods, beside its own.

    python -m scripts.bench.fp4_quality

Draws the judge's prompts with the same seeds by every method, and prints a Markdown table: bytes of
the transformer, PSNR and SSIM against the 16-bit pictures, and the judge's score. "Equal bytes" means
that a method which needs less spends the rest on keeping its worst layers in 16 bit. SVDQuant's
branch has our ranks, and then one rank everywhere. bitsandbytes is no requirement of this project;
for its rows install it somewhere and name the folder:

    pip install --no-deps --target /tmp/bnb bitsandbytes
    python -m scripts.bench.fp4_quality --bitsandbytes /tmp/bnb
"""

from __future__ import annotations

import argparse
import copy
import importlib
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy
import torch
from diffusers import FluxPipeline
from diffusers.utils.logging import disable_progress_bar
from PIL import Image

from config.catalog import load_catalog
from config.settings import ROOT
from models.fp4 import lowrank, nvfp4, nvfp4_engine
from models.fp4.block_fit import Watch
from models.fp4.checkpoint import Manifest
from models.fp4.layers import LayerPlan
from models.fp4.lowrank import InputStatistics, Metric
from models.types import LoadOptions
from scripts.bench.picture_distance import psnr, ssim
from scripts.embedded.examination import Prompt, draw_prompts, examine, generate
from scripts.embedded.samples import make_sheet
from scripts.quantize_fp4 import calibration_prompts

SEED = 7
SVDQUANT_STRENGTHS = (None, 0.25, 0.5, 0.75)

Weights = dict[str, torch.Tensor]  # (N, K) float32 by layer


@dataclass(frozen=True, slots=True)
class Outcome:
    """A method's pictures, measured."""

    title: str
    size_bytes: int
    psnr_db: float  # mean over pictures
    worst_psnr_db: float
    ssim: float
    right: int  # of the judge's questions
    asked: int

    def row(self, full_bytes: int, full_right: int) -> str:
        share = 100 * self.right / self.asked
        psnr = "∞" if math.isinf(self.psnr_db) else f"{self.psnr_db:.1f}"
        worst = "∞" if math.isinf(self.worst_psnr_db) else f"{self.worst_psnr_db:.1f}"
        return (
            f"| {self.title} | {self.size_bytes / 1e6:.2f} | {self.size_bytes / full_bytes:.3f} | {psnr} | "
            f"{worst} | {self.ssim:.4f} | {share:.1f} % | {100 * self.right / full_right:.1f} % |"
        )


def main() -> int:
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    disable_progress_bar()
    row = load_catalog()["embedded"]
    prompts = draw_prompts(options.prompts, SEED)
    pipeline = FluxPipeline.from_pretrained(row.folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    full_bytes = sum(2 * tensor.numel() for tensor in pipeline.transformer.parameters())
    wanted = list(generate(pipeline, prompts, seed=SEED))
    first = measure("BF16", full_bytes, prompts, wanted, wanted)
    print_head(first, full_bytes)
    for title, size, pictures in methods(pipeline, prompts, full_bytes, options):
        outcome = measure(title, size, prompts, wanted, pictures)
        print(outcome.row(full_bytes, first.right), flush=True)
        if options.sheets is not None:
            name = "".join(c if c.isalnum() else "-" for c in title.lower())
            options.sheets.mkdir(parents=True, exist_ok=True)
            make_sheet(pictures).save(options.sheets / f"{name}.png")
    return 0


def print_head(first: Outcome, full_bytes: int) -> None:
    print(
        "| method | MB | of BF16 | PSNR dB | worst picture | SSIM | judge: right | of BF16's score |"
    )
    print("|---|---|---|---|---|---|---|---|")
    print(first.row(full_bytes, first.right), flush=True)


def methods(
    pipeline: FluxPipeline, prompts: list[Prompt], full_bytes: int, options: argparse.Namespace
) -> Iterator[tuple[str, int, list[Image.Image]]]:
    """Title, bytes of the transformer and pictures of every method."""
    row = load_catalog()["embedded"]
    load = LoadOptions(
        devices=("cpu",), models_dir=ROOT / "models_cache", allow_download=False, engine="nvfp4"
    )
    folder = nvfp4_engine.find_or_make(row, load)
    ours, _ = nvfp4_engine.load_pipeline(folder, row, load)
    ours.set_progress_bar_config(disable=True)
    manifest = Manifest.read(folder)
    plans = dict(manifest.components["transformer"].layers)
    size = sum(tensor.nbytes for tensor in stored(ours.transformer))
    title = f"**ours**: alternating, rank {manifest.rank}"
    yield title, size, list(generate(ours, prompts, seed=SEED))

    statistics = gather(pipeline, plans, calibration_prompts(row, None))
    metrics = {
        name: Metric(one) for name, one in {n: statistics[n] for n in plans}.items()
    }  # fmt: skip
    dense = {name: pipeline.transformer.get_submodule(name).weight.detach() for name in plans}

    def draw(weights: Weights) -> list[Image.Image]:
        return list(generate(with_weights(pipeline, weights), prompts, seed=SEED))

    even = even_rank(full_bytes, plans, size)
    flat = {name: replace(plan, rank=min(even, *plan.shape)) for name, plan in plans.items()}
    for title, ranks in (("ranks as ours", plans), (f"rank {even} everywhere", flat)):
        weights = {n: svdquant(dense[n], ranks[n], statistics[n], metrics[n]) for n in plans}
        used = four_bit_bytes(full_bytes, plans, set()) + branch_bytes(ranks)
        yield f"SVDQuant's recipe (smoothing, SVD first), {title}", used, draw(weights)
    for title, rounding in roundings(options.bitsandbytes):
        weights = {name: rounding(weight) for name, weight in dense.items()}
        small = four_bit_bytes(full_bytes, plans, set())
        yield f"{title}, all layers", small, draw(weights)
        errors = {n: metrics[n].error((dense[n] - weights[n]).double()) for n in plans}
        sizes = {n: metrics[n].error(dense[n].double()) for n in plans}
        kept = worst_layers(full_bytes, plans, {n: errors[n] / sizes[n] for n in plans}, size)
        chosen = {name: weight for name, weight in weights.items() if name not in kept}
        equal = four_bit_bytes(full_bytes, plans, kept)
        yield f"{title}, equal bytes ({len(kept)} layers in 16 bit)", equal, draw(chosen)


def roundings(
    bitsandbytes: Path | None,
) -> Iterator[tuple[str, Callable[[torch.Tensor], torch.Tensor]]]:
    """The methods without a branch, as functions from a weight to what its four bits stand for."""
    yield "plain NVFP4", lambda weight: nvfp4.dequantize(nvfp4.quantize(weight))
    if bitsandbytes is not None:
        sys.path.insert(0, str(bitsandbytes))
    try:
        functional = importlib.import_module("bitsandbytes.functional")
    except ImportError as error:
        print(
            f"\nbitsandbytes cannot be imported ({error}): its two methods are MISSING from this table; "
            "see the head of this script\n",
            file=sys.stderr,
        )
        return

    def rounding(kind: str) -> Callable[[torch.Tensor], torch.Tensor]:
        def apply(weight: torch.Tensor) -> torch.Tensor:
            # A scale in FP32 per 64 values: 4.5 bits a weight, as NVFP4.
            packed = functional.quantize_4bit(weight.contiguous(), quant_type=kind, blocksize=64)
            return functional.dequantize_4bit(*packed).to(weight)

        return apply

    yield "bitsandbytes fp4", rounding("fp4")
    yield "bitsandbytes nf4", rounding("nf4")


def svdquant(
    weight: torch.Tensor, plan: LayerPlan, statistics: InputStatistics, metric: Metric
) -> torch.Tensor:
    """SVDQuant's recipe on weights: smooth, take the SVD out, round the rest; the best of four strengths."""
    best: tuple[float, torch.Tensor] | None = None
    for strength in SVDQUANT_STRENGTHS:
        factor = torch.ones_like(weight[0])
        if strength is not None:
            factor = lowrank.smoothing(statistics, weight, strength)
        u, s, vh = torch.linalg.svd((weight * factor).double(), full_matrices=False)
        root = s[: plan.rank].sqrt()
        up, down = (u[:, : plan.rank] * root).bfloat16(), (
            root[:, None] * vh[: plan.rank]
        ).bfloat16()
        branch = up.float() @ down.float()
        rest = nvfp4.dequantize(nvfp4.quantize(weight * factor - branch))
        made = (rest + branch) / factor
        error = metric.error((weight - made).double())
        if best is None or error < best[0]:
            best = error, made
    assert best is not None
    return best[1]


def gather(
    pipeline: FluxPipeline, plans: Mapping[str, LayerPlan], texts: Sequence[str]
) -> dict[str, InputStatistics]:
    """Statistics of every layer's inputs while prompts are drawn."""
    transformer = pipeline.transformer
    watches: dict[str, Watch] = {}
    for name in plans:
        block = name.split(".")[0] if name.startswith("norm_out") else ".".join(name.split(".")[:2])
        if block not in watches:
            prefix = f"{block}."
            own = {n.removeprefix(prefix): p for n, p in plans.items() if n.startswith(prefix)}
            watches[block] = Watch(transformer.get_submodule(block), own)
    scenes = [Prompt(text=text, scene=None) for text in texts]  # type: ignore[arg-type]
    for _ in generate(pipeline, scenes, seed=20_000_000, output_type="latent"):
        pass
    statistics = {}
    for block, watch in watches.items():
        watch.stop()
        for name in plans:
            if name.startswith(f"{block}."):
                statistics[name] = watch.of(name.removeprefix(f"{block}."))
    return statistics


def with_weights(pipeline: FluxPipeline, weights: Weights) -> FluxPipeline:
    """The pipeline with other weights in some layers of its transformer."""
    transformer = copy.deepcopy(pipeline.transformer)
    for name, weight in weights.items():
        transformer.get_submodule(name).weight.data = weight.clone()
    other = FluxPipeline(**{**pipeline.components, "transformer": transformer})
    other.set_progress_bar_config(disable=True)
    return other


def four_bit_bytes(full_bytes: int, plans: Mapping[str, LayerPlan], kept: set[str]) -> int:
    """Bytes of the transformer with 4.5 bits a weight in the planned layers but the `kept`."""
    saved = (math.prod(plan.shape) * 23 // 16 for name, plan in plans.items() if name not in kept)
    return full_bytes - sum(saved)


def branch_bytes(plans: Mapping[str, LayerPlan]) -> int:
    return sum(2 * plan.rank * sum(plan.shape) for plan in plans.values())


def even_rank(full_bytes: int, plans: Mapping[str, LayerPlan], limit: int) -> int:
    """The largest rank that every layer can have within `limit` bytes."""
    one = sum(2 * sum(plan.shape) for plan in plans.values())
    return (limit - four_bit_bytes(full_bytes, plans, set())) // one


def worst_layers(
    full_bytes: int, plans: Mapping[str, LayerPlan], errors: Mapping[str, float], limit: int
) -> set[str]:
    """Layers to keep in 16 bit within `limit` bytes: most error per byte first."""
    kept: set[str] = set()
    for name in sorted(plans, key=lambda n: -errors[n] / math.prod(plans[n].shape)):
        if four_bit_bytes(full_bytes, plans, kept | {name}) <= limit:
            kept.add(name)
    return kept


def stored(model: torch.nn.Module) -> Iterator[torch.Tensor]:
    """The tensors of a model as its file holds them: 16-bit ones were widened for the CPU."""
    for tensor in model.state_dict().values():
        wide = tensor.dtype is torch.float32 and tensor.ndim > 0
        yield tensor.bfloat16() if wide else tensor


def measure(
    title: str, size: int, prompts: list[Prompt], wanted: list[Image.Image], got: list[Image.Image]
) -> Outcome:
    ratios = [psnr(a, b) for a, b in zip(wanted, got, strict=True)]
    score = examine(prompts, got)
    return Outcome(
        title,
        size,
        float(numpy.mean(ratios)),
        min(ratios),
        float(numpy.mean([ssim(a, b) for a, b in zip(wanted, got, strict=True)])),
        sum(score.right.values()),
        sum(score.asked.values()),
    )


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--bitsandbytes", type=Path, help="folder it was installed into")
    parser.add_argument("--sheets", type=Path, help="folder to keep the pictures in")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
