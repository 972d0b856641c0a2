"""LoRAs on the embedded model: do both precisions agree, does anything stay, what does a change cost.

    python -m scripts.bench.loras

Takes the LoRAs that ship (`models/embedded-loras`, or `--loras DIR`) and three with random factors on
every linear layer of the transformer, of rank 4, 8 and 16. Prints two Markdown tables.

Agreement: the same prompts and seeds by both precisions, each with the LoRA less without it; the
correlation of the two changes over all pixels of all prompts.

Alternation: 200 requests with five sets in random order (none, each of the first three LoRAs, those three
together), every picture compared with the one its set draws on a model that drew nothing else before.
The time of a change is that of `use_loras`, the median of the changes after every set was used once;
first uses, which read and convert files, stand apart. Memory is the process's resident memory.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy
import torch
from diffusers.utils.logging import disable_progress_bar
from safetensors.torch import save_file

from config.catalog import load_catalog
from config.settings import ROOT
from models import bf16_flux_model, fp4_flux_model
from models.types import Drawing, GenerationRequest, LoadOptions, LoraRef, OutputFormat
from scripts.embedded.examination import draw_prompts

LOADERS = {"BF16, native": bf16_flux_model.load, "FP4, merged": fp4_flux_model.load}
ROW = load_catalog()["embedded"]
SEED = 11
REQUEST = GenerationRequest(
    prompt="", negative_prompt=None, model=ROW.id, backend="flux", width=ROW.default_width,
    height=ROW.default_height, num_inference_steps=4, guidance_scale=0.0, true_cfg_scale=1.0, seed=1,
    num_images=1, output_format=OutputFormat.PNG, output_quality=95, tags=(),
)  # fmt: skip

Set = tuple[LoraRef, ...]


@dataclass(slots=True)
class Alternation:
    """What 200 requests showed on one precision."""

    wrong: int = 0
    first_ms: list[float] = field(default_factory=list)
    change_ms: list[float] = field(default_factory=list)
    draw_ms: dict[Set, list[float]] = field(default_factory=dict)
    mib_after_first: float = 0.0
    mib_at_end: float = 0.0


def main() -> None:
    """Measure and print."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    disable_progress_bar()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        loras = [_shipped(path, folder) for path in sorted(arguments.loras.glob("*.safetensors"))]
        loras += [_random(rank, folder) for rank in (4, 8, 16)]
        print(f"torch {torch.__version__}, {arguments.threads} threads; LoRAs: {_names(loras)}\n")
        _print_agreement(loras, folder, arguments.prompts, arguments.size)
        _print_alternation(loras, folder, arguments.requests)


def _print_agreement(loras: Sequence[LoraRef], folder: Path, prompts: int, size_px: int) -> None:
    texts = [prompt.text for prompt in draw_prompts(prompts, SEED)]
    changes = {title: _changes(title, loras, folder, texts, size_px) for title in LOADERS}
    print(f"{prompts} prompts, {size_px} px, 4 steps\n")
    print("| LoRA | weight | mean change BF16 | mean change FP4 | correlation | worst prompt |")
    print("|---|---|---|---|---|---|")
    for index, ref in enumerate(loras):
        native, merged = (changes[title][index] for title in LOADERS)
        each = [_correlation(a, b) for a, b in zip(native, merged, strict=True)]
        print(
            f"| {ref.name} | {ref.weight} | {numpy.abs(native).mean():.1f} | "
            f"{numpy.abs(merged).mean():.1f} | {_correlation(native, merged):.4f} | {min(each):.4f} |"
        )
    print()


def _changes(
    title: str, loras: Sequence[LoraRef], folder: Path, texts: Sequence[str], size_px: int
) -> list[numpy.ndarray]:
    """What each LoRA changes: (prompts, height, width, 3) grey levels."""
    model = _load(title, folder)
    pictures = []
    for refs in ((), *((ref,) for ref in loras)):
        model.use_loras(refs)
        requests = [replace(REQUEST, prompt=t, width=size_px, height=size_px) for t in texts]
        drawn = [_draw(model, replace(request, loras=refs)) for request in requests]
        pictures.append(
            numpy.stack([numpy.asarray(picture, dtype=numpy.int16) for picture in drawn])
        )
    return [styled - pictures[0] for styled in pictures[1:]]


def _print_alternation(loras: Sequence[LoraRef], folder: Path, requests: int) -> None:
    sets: list[Set] = [(), *((ref,) for ref in loras[:3]), tuple(loras[:3])]
    print(f"{requests} requests, 5 sets, {REQUEST.width} px, {REQUEST.num_inference_steps} steps\n")
    print(
        "| | pictures other than alone | first use of a set | a change | a picture without LoRA | of it "
        "| with one | with three | resident MiB after each set once | at the end |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for title in LOADERS:
        found = _alternate(title, sets, folder, requests)
        median = {refs: statistics.median(ms) for refs, ms in found.draw_ms.items()}
        change, one = statistics.median(found.change_ms), median[sets[1]]
        print(
            f"| {title} | {found.wrong} of {requests} | {statistics.median(found.first_ms):.0f} ms | "
            f"{change:.2f} ms | {median[()]:.0f} ms | {change / median[()]:.1%} | {one:.0f} ms | "
            f"{median[sets[4]]:.0f} ms | {found.mib_after_first:.0f} | {found.mib_at_end:.0f} |"
        )


def _alternate(title: str, sets: Sequence[Set], folder: Path, requests: int) -> Alternation:
    alone = {refs: _alone(title, refs, folder) for refs in sets}
    model, found = _load(title, folder), Alternation()
    for refs in sets:
        found.first_ms.append(_change(model, refs))
        _draw(model, _asked(refs))
    found.mib_after_first = _resident_mib()
    order = numpy.random.default_rng(SEED).integers(0, len(sets), requests)
    before: Set | None = sets[-1]
    for index in order:
        refs = sets[index]
        milliseconds = _change(model, refs)
        if refs != before:
            found.change_ms.append(milliseconds)
        started = time.perf_counter()
        picture = _draw(model, _asked(refs))
        found.draw_ms.setdefault(refs, []).append((time.perf_counter() - started) * 1000)
        found.wrong += _digest(picture) != alone[refs]
        before = refs
    found.mib_at_end = _resident_mib()
    return found


def _alone(title: str, refs: Set, folder: Path) -> str:
    model = _load(title, folder)
    model.use_loras(refs)
    return _digest(_draw(model, _asked(refs)))


def _asked(refs: Set) -> GenerationRequest:
    return replace(REQUEST, prompt="a red balloon over green hills at noon", loras=refs)


def _change(model: Any, refs: Set) -> float:
    started = time.perf_counter()
    model.use_loras(refs)
    return (time.perf_counter() - started) * 1000


def _load(title: str, folder: Path) -> Any:
    options = LoadOptions(
        devices=("cpu",), models_dir=folder, allow_download=False, loras_dir=folder
    )
    return LOADERS[title](ROW, options)


def _draw(model: Any, request: GenerationRequest) -> Any:
    (picture,), _ = model.generate(
        [Drawing(request=request, seed=request.seed)],
        on_stage=lambda stage: None,
        on_step=lambda step, steps, preview: None,
    )
    return picture


def _digest(picture: Any) -> str:
    return hashlib.sha256(picture.tobytes()).hexdigest()


def _correlation(one: numpy.ndarray, other: numpy.ndarray) -> float:
    return float(numpy.corrcoef(one.ravel(), other.ravel())[0, 1])


def _resident_mib() -> float:
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def _shipped(path: Path, folder: Path) -> LoraRef:
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    shutil.copyfile(path, folder / f"{sha256}.safetensors")
    return LoraRef(name=path.stem, sha256=sha256, weight=1.0)


def _random(rank: int, folder: Path) -> LoraRef:
    """Random factors, as large as change a picture clearly, on every layer of the transformer."""
    from diffusers import FluxTransformer2DModel

    from models.lora.merge import layer_shapes

    transformer = FluxTransformer2DModel.from_pretrained(ROOT / ROW.source / "transformer")
    generator = torch.Generator().manual_seed(rank)
    state = {}
    for name, (rows, columns) in layer_shapes({"transformer": transformer}).items():
        down = torch.randn(rank, columns, generator=generator) / columns**0.5
        up = torch.randn(rows, rank, generator=generator) / rank**0.5
        state |= {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    path = folder / "made.safetensors"
    save_file(state, path)
    return replace(_shipped(path, folder), name=f"random, rank {rank}", weight=0.3)


def _names(loras: Sequence[LoraRef]) -> str:
    return ", ".join(ref.name for ref in loras)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--loras", type=Path, default=ROOT / "models" / "embedded-loras")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--size", type=int, default=128, help="of the pictures compared, px")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
