"""A worker that changes between models of two families: resident memory after each change.

    python -m scripts.bench.switching [--switches 100] [--out FILE]

The embedded model and a tiny random Stable Diffusion, in a memory that holds one of them, so that each
change lets go of one and loads the other; a picture is drawn after each. Memory must be flat: what the
process holds after a hundred changes is what it holds after ten.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

EMBEDDED = "embedded"
OTHER = "stable-diffusion-v1-5"
BUDGET_GIB = 1.2001  # either model with its weights widened, and nobody beside it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--switches", type=int, default=100)
    parser.add_argument("--out", type=Path, help="write the numbers as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = run(Path(folder), options.switches)
    after = report["resident_mib"]
    for count in sorted({1, 2, 10, 11, options.switches - 1, options.switches}):
        if 0 < count <= len(after):
            print(f"resident after {count} change{'s' * (count > 1)}: {after[count - 1]:.0f} MiB")
    print(f"a change, drawing included: median {report['median_ms']:.0f} ms")
    if options.out is not None:
        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def run(folder: Path, switches: int) -> dict[str, Any]:
    """MiB resident after each change, and the milliseconds of one."""
    from utils.main_memory import resident_gib

    residents, rows = worker(folder)
    resident_mib, milliseconds = [], []
    for count in range(switches):
        row = rows[count % 2]
        began = time.perf_counter()
        assert residents.use(row.id) is None, f"{row.id} has not left"
        draw(residents.load(row.id), row)
        milliseconds.append((time.perf_counter() - began) * 1000)
        resident_mib.append(resident_gib() * 1024)
    return {"resident_mib": resident_mib, "median_ms": statistics.median(milliseconds)}


def worker(folder: Path) -> tuple[Any, list[Any]]:
    """What a worker on the CPU keeps its models in, and the two rows."""
    from config.catalog import Catalog, load_catalog
    from models import bf16_flux_model
    from models.types import LoadOptions
    from tests.tiny_models import tiny_model
    from utils.worker import device
    from utils.worker.residents import Residents

    # It says that it is as large as the embedded model, or both would stay.
    tiny = tiny_model(OTHER, folder / "tiny").model_copy(update={"memory_gib": {"bf16": 0.6}})
    rows = [load_catalog()[EMBEDDED], tiny]

    def load(row: Any, offload: bool | None) -> Any:
        options = LoadOptions(
            devices=("cpu",), models_dir=folder, allow_download=False, offload=offload
        )
        return bf16_flux_model.load(row, options)

    residents = Residents(
        load,
        device.find("cpu", 1, BUDGET_GIB),
        Catalog({row.id: row for row in rows}),
        precision="bf16",
        offload="auto",
        is_out_of_memory=lambda error: isinstance(error, MemoryError),
    )
    return residents, rows


def draw(model: Any, row: Any) -> None:
    from models.types import Drawing, GenerationRequest, OutputFormat

    request = GenerationRequest(
        prompt="a red balloon over green hills",
        negative_prompt=None,
        model=row.id,
        backend=row.backend,
        width=128,
        height=128,
        num_inference_steps=1,
        guidance_scale=row.guidance_scale,
        true_cfg_scale=row.true_cfg_scale,
        seed=1,
        num_images=1,
        output_format=OutputFormat.PNG,
        output_quality=95,
        tags=(),
    )
    model.use_loras(())
    model.generate(
        [Drawing(request=request, seed=1)],
        on_stage=lambda stage: None,
        on_step=lambda step, steps, preview: None,
    )


if __name__ == "__main__":
    main()
