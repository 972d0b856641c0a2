"""Judge the example LoRAs, or draw the sheet that stands beside them.

    python -m scripts.judge_loras
    python -m scripts.judge_loras --sheet models/embedded-loras/samples.png

For each LoRA: at several weights how far pictures go towards its style and how many are still found
to be their own prompt's; at weight 1 the attributes that the embedded model's judge reads, beside what
it reads in pictures that the style's filter has redrawn. `scripts/lora/examination.py` explains.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import FluxPipeline

from scripts.embedded.examination import ATTRIBUTES, draw_prompts, examine, generate
from scripts.lora.examination import examine_lora
from scripts.lora.presets import PRESETS
from scripts.lora.sheet import WEIGHTS, save_sheet

ROOT = Path(__file__).resolve().parent.parent


def main(words: Sequence[str] | None = None) -> None:
    """Print the tables, or draw the sheet."""
    arguments = parse_arguments(words)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    loras = [arguments.folder / f"{name}.safetensors" for name in PRESETS]
    pipeline = FluxPipeline.from_pretrained(arguments.model, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    if arguments.sheet is not None:
        save_sheet(pipeline, loras, arguments.sheet)
        return
    print_tables(pipeline, loras, arguments.prompts, arguments.seed)


def print_tables(pipeline: FluxPipeline, loras: list[Path], count: int, seed: int) -> None:
    """Print what `examination` measures for every LoRA, as Markdown."""
    prompts = draw_prompts(count, seed)
    plain = list(generate(pipeline, prompts, seed=seed))
    plain_score = examine(prompts, plain)
    print("| LoRA | weight | way to the style | found |\n|---|---|---|---|")
    verdicts = {}
    for lora in loras:
        for weight in WEIGHTS[1:]:
            verdict = examine_lora(pipeline, lora, prompts, plain, weight=weight, seed=seed)
            verdicts[lora.stem, weight] = verdict
            print(f"| {lora.stem} | {weight:g} | {verdict.way:.2f} | {verdict.found:.0%} |")
        word = PRESETS[lora.stem].trigger_word
        called = examine_lora(
            pipeline, lora, prompts, plain, weight=1.0, seed=seed, trigger_word=word
        )
        print(f'| {lora.stem} | 1, "{word}, …" | {called.way:.2f} | {called.found:.0%} |')
    print(f"\n| pictures | {' | '.join(ATTRIBUTES)} |\n|---|{'---|' * len(ATTRIBUTES)}")
    rows = {"no LoRA": plain_score}
    for lora in loras:
        verdict = verdicts[lora.stem, 1.0]
        rows[f"{lora.stem}, the filter over no LoRA"] = verdict.filtered_score
        rows[f"{lora.stem} at weight 1"] = verdict.score
    for name, score in rows.items():
        shares = " | ".join(f"{100 * score.share(a):.0f}" for a in ATTRIBUTES)
        print(f"| {name} | {shares} |")


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "models/embedded-loras")
    parser.add_argument("--model", type=Path, default=ROOT / "models/embedded")
    parser.add_argument("--prompts", type=int, default=48, help="how many")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--threads", type=int, default=0, help="0: as many as torch takes")
    parser.add_argument("--sheet", type=Path, help="draw the sheet to this PNG instead")
    return parser.parse_args(words)


if __name__ == "__main__":
    main()
