"""Make the four-bit weights of a model: from its 16-bit diffusers folder to an FP4 one.

    python -m scripts.quantize_fp4 --model flux-schnell --out FOLDER
    python -m scripts.quantize_fp4 --model embedded --out models/embedded-fp4

An interrupted run goes on where it was when it is started again with the same arguments. A finished
folder of the same name is replaced when the new one is complete; of two runs at once for the same the
second waits and takes the first one's result. One block's weights are in memory at
a time, beside the calibration's statistics. A GPU is used where there is one.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

if not __package__:  # run as a file and not with -m: the project is not where Python looks
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config.catalog import ModelRow, load_catalog
from config.errors import ModelUnavailable
from config.settings import ROOT

EMBEDDED_CALIBRATION, CALIBRATION = 192, 64
CAPTIONS_SEED = 4711


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, or 1 with a sentence on stderr."""
    options = parse_arguments(arguments)
    catalog = load_catalog()
    row = catalog.get(options.model)
    if row is None:
        print(
            f"no model {options.model!r}; the catalog has {', '.join(catalog.ids)}", file=sys.stderr
        )
        return 1
    try:
        report = quantize(row, options)
    except (ModelUnavailable, ValueError, OSError) as error:
        print(f"quantize_fp4: {error}", file=sys.stderr)
        return 1
    print_report(report, options.out)
    return 0


def quantize(row: ModelRow, options: argparse.Namespace) -> dict[str, Any]:
    """Make the folder; returns its quality report."""
    import torch
    from diffusers.utils.logging import disable_progress_bar
    from tqdm import tqdm

    from models.fp4 import hardware
    from models.fp4.kinds import kind_of
    from models.fp4.quantize import Job, is_made, quantize_folder
    from models.fp4.work import locked
    from models.hub.snapshot import snapshot
    from models.types import LoadOptions

    disable_progress_bar()
    kind_of(row)
    device = options.device or ("cuda:0" if torch.cuda.is_available() else "cpu")
    folder = row.folder or snapshot(
        row,
        LoadOptions(
            devices=(device,), models_dir=options.models_dir, allow_download=not options.offline
        ),
    )
    with tqdm(total=100, unit="%", bar_format="{l_bar}{bar}| {elapsed}<{remaining}") as bar:

        def on_progress(what: str, fraction: float) -> None:
            bar.set_description(what)
            bar.update(100 * fraction - bar.n)

        job = Job(
            source=folder,
            out=options.out.absolute(),
            row=row,
            prompts=calibration_prompts(row, options.calibration),
            rank=options.rank,
            activations=options.activations or hardware.activation_bits(torch.device(device)),
            device=torch.device(device),
            complete=row.folder is None,
            on_progress=on_progress,
        )
        waited = False

        def on_wait() -> None:
            nonlocal waited
            waited = True
            bar.set_description("waiting for another process")

        with locked(job.out, on_wait):
            if not (waited and is_made(job)):
                quantize_folder(job)
    return json.loads((job.out / "quality.json").read_text(encoding="utf-8"))


def calibration_prompts(row: ModelRow, count: int | None) -> tuple[str, ...]:
    """Captions in the embedded model's own words; for other models prompts of many kinds."""
    if row.folder == ROOT / "models" / "embedded":
        from scripts.embedded.examination import draw_prompts

        wanted = EMBEDDED_CALIBRATION if count is None else count
        return tuple(p.text for p in draw_prompts(wanted, CAPTIONS_SEED, varied=True))
    from models.fp4.prompts import PROMPTS

    wanted = CALIBRATION if count is None else count
    if wanted > len(PROMPTS):
        raise ValueError(f"--calibration {wanted}: there are {len(PROMPTS)} prompts")
    return PROMPTS[:wanted]


def print_report(report: dict[str, Any], out: Path) -> None:
    """The report's sums; the layers stand in the file."""
    size = report["transformer_bytes"]
    print(f"{out}: rank {report['rank']}, transformer {size['fp4'] / 1e6:,.1f} MB, ", end="")
    print(f"{size['ratio']:.3f} of BF16")
    print("output error of the layers on held-out prompts, relative:")
    print(f"  plain NVFP4 {report['mean_error_plain_nvfp4']:.4f}, here {report['mean_error']:.4f}")
    print(f"  layer by layer {report['mean_ratio']:.2f} of plain NVFP4, ", end="")
    print(f"{report['worst_ratio']:.2f} at worst (quality.json)")


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", required=True, help="id in config/models.toml")
    parser.add_argument("--out", required=True, type=Path, help="the FP4 folder to make")
    parser.add_argument("--rank", type=int, help="of the low-rank branch; default 32, embedded 23")
    parser.add_argument("--calibration", type=int, help="prompts; default 64, embedded 192")
    parser.add_argument(
        "--activations",
        type=int,
        choices=(16, 4),
        help="4: smoothed, for Blackwell's native path, which rounds inputs to four bits too; "
        "default: 4 on a Blackwell, else 16",
    )
    parser.add_argument("--device", help="torch's name; default: the first GPU, else the CPU")
    parser.add_argument("--models-dir", type=Path, default=ROOT / "models_cache")
    parser.add_argument("--offline", action="store_true", help="fetch nothing from the Hub")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
