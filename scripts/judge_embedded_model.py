"""Judge the embedded model: draw prompts of the vocabulary and measure the pictures.

    python -m scripts.judge_embedded_model

`--drawn` judges drawn postcards instead, which are right by construction: that is the judge's own
error. `--sheet` keeps the pictures, in rows of eight, as one PNG. `--samples` draws the sheet that
stands beside the model instead.
"""

import argparse
import time
from pathlib import Path

import torch
from diffusers import FluxPipeline

from scripts.embedded.examination import draw_prompts, examine, examine_judge, generate
from scripts.embedded.samples import make_sheet, save_samples

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Print the table of right attributes."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    if arguments.drawn:
        print(examine_judge(arguments.prompts, arguments.seed, arguments.size).table())
        return
    pipeline = FluxPipeline.from_pretrained(
        arguments.model, torch_dtype=getattr(torch, arguments.dtype)
    )
    pipeline.to(arguments.device)
    pipeline.set_progress_bar_config(disable=True)
    if arguments.samples is not None:
        save_samples(pipeline, arguments.samples, steps=arguments.steps)
        return
    if arguments.shift is not None:
        pipeline.scheduler.set_shift(arguments.shift)
    prompts = draw_prompts(arguments.prompts, arguments.seed, varied=arguments.varied)
    options = {"true_cfg_scale": arguments.true_cfg, "negative_prompt": ""}
    if arguments.text_length is not None:
        options["max_sequence_length"] = arguments.text_length
    started = time.monotonic()
    pictures = list(
        generate(
            pipeline,
            prompts,
            seed=arguments.seed,
            steps=arguments.steps,
            size=arguments.size,
            **options,
        )
    )
    seconds = (time.monotonic() - started) / len(pictures)
    print(examine(prompts, pictures).table())
    print(f"{seconds:.2f} s a picture")
    if arguments.sheet is not None:
        make_sheet(pictures).save(arguments.sheet)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", type=Path, default=ROOT / "models/embedded")
    parser.add_argument("--prompts", type=int, default=200, help="how many")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--size", type=_size, default=(256, 256), help="width x height, pixels")
    parser.add_argument("--varied", action="store_true", help="captions in all their forms")
    parser.add_argument("--true-cfg", type=float, default=1.0)
    parser.add_argument("--shift", type=float, help="of the scheduler; default: the model's")
    parser.add_argument("--text-length", type=int, help="max_sequence_length in tokens")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--sheet", type=Path, help="PNG to keep the pictures in")
    parser.add_argument("--samples", type=Path, help="draw the sample sheet to this PNG instead")
    parser.add_argument("--drawn", action="store_true", help="judge drawn postcards")
    return parser.parse_args()


def _size(text: str) -> tuple[int, int]:
    width, height = text.split("x")
    return int(width), int(height)


if __name__ == "__main__":
    main()
