"""Which fit leaves the least error: the embedded model's layers by several recipes, at equal rank.

    python -m scripts.bench.fp4_fits --rank 16

Prints the relative error (root mean square) of the outputs of the blocks' linear layers, modulation
apart, on prompts that no recipe was fitted to; the mean over layers and the worst one. Every recipe is
NVFP4 and a BF16 branch of that rank. Pictures by the same recipes are `fp4_quality.py`'s affair.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from diffusers import FluxPipeline
from diffusers.utils.logging import disable_progress_bar

from config.catalog import load_catalog
from models.fp4 import lowrank, nvfp4
from models.fp4.layers import LayerPlan, is_modulation, plan_layers
from models.fp4.lowrank import InputStatistics, Metric
from scripts.bench.fp4_quality import gather, svdquant
from scripts.embedded.examination import draw_prompts
from scripts.quantize_fp4 import calibration_prompts

HELD_OUT_SEED = 20_262

# A recipe: from weight, rank, statistics and their metric to the weight it stands for, and b' − b.
Made = tuple[torch.Tensor, torch.Tensor | float]
Recipe = Callable[[torch.Tensor, LayerPlan, InputStatistics, Metric], Made]


def main() -> int:
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    disable_progress_bar()
    row = load_catalog()["embedded"]
    pipeline = FluxPipeline.from_pretrained(row.folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    plans = {
        name: replace(plan, rank=options.rank)
        for name, plan in plan_layers(pipeline.transformer, options.rank)[0].items()
        if not is_modulation(name)
    }
    fitted = gather(pipeline, plans, calibration_prompts(row, options.calibration))
    texts = [prompt.text for prompt in draw_prompts(options.held_out, HELD_OUT_SEED, varied=True)]
    held_out = gather(pipeline, plans, texts)
    metrics = {name: Metric(statistics) for name, statistics in fitted.items()}
    print(f"| rank {options.rank}, {len(plans)} layers | mean | worst |\n|---|---|---|")
    for title, recipe in RECIPES.items():
        errors = []
        for name, plan in plans.items():
            weight = pipeline.transformer.get_submodule(name).weight.detach()
            made, shift = recipe(weight, plan, fitted[name], metrics[name])
            errors.append(relative_error(weight, made, shift, held_out[name]))
        print(f"| {title} | {sum(errors) / len(errors):.4f} | {max(errors):.4f} |", flush=True)
    return 0


def relative_error(
    weight: torch.Tensor, made: torch.Tensor, shift: torch.Tensor | float, inputs: InputStatistics
) -> float:
    """|made·x + shift − weight·x| over |weight·x|, root mean square over the inputs counted."""
    wrong = size(made.double() - weight.double(), shift, inputs)
    return (wrong / size(weight.double(), 0.0, inputs)) ** 0.5


def size(matrix: torch.Tensor, shift: torch.Tensor | float, inputs: InputStatistics) -> float:
    """The mean of |matrix·x + shift|²."""
    spread = (matrix @ inputs.covariance * matrix).sum()
    return float(spread + (matrix @ inputs.mean + shift).square().sum())


def plain(weight: torch.Tensor, _p: LayerPlan, _s: InputStatistics, _m: Metric) -> Made:
    return nvfp4.dequantize(nvfp4.quantize(weight)), 0.0


def svd_first(weight: torch.Tensor, plan: LayerPlan, _s: InputStatistics, _m: Metric) -> Made:
    branch = truncated(weight, plan.rank)
    return nvfp4.dequantize(nvfp4.quantize(weight - branch)) + branch, 0.0


def smoothed_svd(weight: torch.Tensor, plan: LayerPlan, s: InputStatistics, m: Metric) -> Made:
    return svdquant(weight, plan, s, m), 0.0


def by_size(weight: torch.Tensor, plan: LayerPlan, s: InputStatistics, _m: Metric) -> Made:
    """LQER: the error's SVD, each input weighted by its root mean square."""
    rounded = nvfp4.dequantize(nvfp4.quantize(weight))
    scale = (s.covariance.diagonal() + s.mean.square()).sqrt().clamp(min=1e-12).float()
    return rounded + truncated((weight - rounded) * scale, plan.rank) / scale, 0.0


def by_covariance(weight: torch.Tensor, plan: LayerPlan, _s: InputStatistics, m: Metric) -> Made:
    """QERA: the error's SVD, weighted by the covariance; the mean corrected in the bias, as ours."""
    rounded = nvfp4.dequantize(nvfp4.quantize(weight))
    return with_branch(weight, rounded, plan.rank, m)


def by_turns(weight: torch.Tensor, plan: LayerPlan, _s: InputStatistics, m: Metric) -> Made:
    """Plain rounding and the weighted SVD by turns; the best turn."""
    branch, best = torch.zeros_like(weight), None
    for _ in range(lowrank.ROUNDS):
        rounded = nvfp4.dequantize(nvfp4.quantize(weight - branch))
        made = with_branch(weight, rounded, plan.rank, m)
        branch = made[0] - rounded
        error = m.error((weight - made[0]).double())
        if best is None or error < best[0]:
            best = error, made
    assert best is not None
    return best[1]


def ours(weight: torch.Tensor, plan: LayerPlan, _s: InputStatistics, m: Metric) -> Made:
    fit = lowrank.fit(weight, m, plan.rank)
    return fit.dense(), fit.bias_shift


RECIPES: Mapping[str, Recipe] = {
    "plain NVFP4": plain,
    "SVD of the weight first": svd_first,
    "SVDQuant: smoothing, SVD first": smoothed_svd,
    "SVD of the error, weighted by input size": by_size,
    "SVD of the error, weighted by covariance": by_covariance,
    "the same by turns": by_turns,
    "**ours**: by turns, rounding with feedback": ours,
}


def with_branch(weight: torch.Tensor, rounded: torch.Tensor, rank: int, metric: Metric) -> Made:
    up, down = lowrank.best_low_rank((weight - rounded).to(metric.root), metric, rank)
    made = rounded + up.float() @ down.float()
    return made, (weight - made).to(metric.mean) @ metric.mean


def truncated(matrix: torch.Tensor, rank: int) -> torch.Tensor:
    """The nearest matrix of `rank`, its factors in BF16."""
    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    root = s[:rank].sqrt()
    up, down = (u[:, :rank] * root).bfloat16(), (root[:, None] * vh[:rank]).bfloat16()
    return up.float() @ down.float()


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--calibration", type=int, help="prompts to fit to; default 192")
    parser.add_argument("--held-out", type=int, default=24, help="prompts to measure")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
