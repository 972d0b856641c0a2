"""From a 16-bit diffusers folder to an FP4 one (`checkpoint.py`).

Four parts: prompts to embeddings; the paths that the 16-bit model draws for them; T5, where it is large;
the transformer, block by block: run it over all samples watching its layers' inputs, fit them
(`lowrank.py`), measure held-out prompts, write the block's file. One block's weights are in memory at a time.

Everything is written into `<folder>.partial`; each finished file is noted there with its digest, so
an interrupted run goes on where it was. Only a complete folder gets its name, by a rename. A lock file
beside it lets one process work and the others wait for its result.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from config.catalog import ModelRow
from config.errors import ModelUnavailable
from models.fingerprint import file_sha256, fingerprint
from models.fp4 import calibration, lowrank, prompts, text_encoding
from models.fp4.block_fit import Examination, Watch, fit_block
from models.fp4.checkpoint import (
    CONFIG,
    MANIFEST,
    VERSION,
    Component,
    Manifest,
    entry_of,
    write_atomically,
    write_tensors,
)
from models.fp4.kinds import Kind, kind_of
from models.fp4.layers import TEXT_ENCODER_RANK, LayerPlan, default_rank, plan_layers
from models.fp4.source import SourceWeights
from models.fp4.streaming import Batch, empty_t5, side_px
from models.fp4.work import NOTES_FILE, Notes

Progress = Callable[[str, float], None]

TEXT_ENCODER_FROM_BYTES = 2**30  # a smaller T5 stays as it is
_PATHS = "calibration.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What to make of what."""

    source: Path  # a 16-bit diffusers folder
    out: Path
    row: ModelRow
    prompts: tuple[str, ...]
    rank: int | None = None  # None: `layers.default_rank`
    activations: int = 16  # 4: smoothed, for GPUs that round inputs to four bits
    device: torch.device = torch.device("cpu")
    complete: bool = True  # copy the rest of the pipeline too, so that the folder stands alone
    text_encoder_from_bytes: int = TEXT_ENCODER_FROM_BYTES
    on_progress: Progress = lambda what, fraction: None

    @property
    def partial(self) -> Path:
        return self.out.with_name(self.out.name + ".partial")

    @property
    def kind(self) -> Kind:
        return kind_of(self.row)

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32


def settings_of(job: Job) -> dict[str, Any]:
    """What decides the result; equal settings may go on with each other's work."""
    digest = hashlib.sha256("\n".join(job.prompts).encode()).hexdigest()
    return {
        "version": VERSION,
        "model": job.row.id,
        "rank": job.rank,
        "activations": job.activations,
        "prompts": digest,
        "text_encoder_from_bytes": job.text_encoder_from_bytes,
        "source": fingerprint(job.source, job.kind.parts),
    }


def is_made(job: Job) -> bool:
    """Whether `job.out` is what this job would make: another process may just have done it."""
    if not (job.out / MANIFEST).is_file():
        return False
    made = Manifest.read(job.out)
    rank = job.rank
    if rank is None:
        rank = default_rank(job.kind.streamed.empty(job.source).inner_dim)
    texts = (job.out / prompts.FILE).read_text(encoding="utf-8").splitlines()
    wanted = job.row.id, rank, job.activations, fingerprint(job.source, job.kind.parts), job.prompts
    return (made.model, made.rank, made.activations, made.source["files"], tuple(texts)) == wanted


@torch.inference_mode()
def quantize_folder(job: Job) -> Manifest:
    """Make `job.out`; the caller holds `locked(job.out)`.

    Raises ModelUnavailable, naming the file, for a source that is damaged or not of the row's kind,
    and ValueError for settings that make no sense.
    """
    calibration.check_prompts(job.prompts)
    if not (job.source / "model_index.json").is_file():
        raise ModelUnavailable(
            f"{job.source.name}/model_index.json is missing: no diffusers folder"
        )
    model = job.kind.streamed.empty(job.source)
    rank = default_rank(model.inner_dim) if job.rank is None else job.rank
    plan_layers(model, rank)  # before minutes go into a wrong rank, or weights of another model
    SourceWeights(job.source, "transformer").check_fits(model)
    job = replace(job, rank=rank)
    settings = settings_of(job)
    notes = Notes.open(job.partial, settings)
    paths = _paths(job, notes)
    components = {}
    t5_bytes = sum(file["size"] for name, file in settings["source"].items() if "encoder" in name)
    if job.kind.text_encoder is not None and t5_bytes >= job.text_encoder_from_bytes:
        components["text_encoder_2"] = _text_encoder(job, notes)
    components["transformer"] = _transformer(job, notes, paths)
    manifest = Manifest(
        model=job.row.id,
        rank=job.rank,
        activations=job.activations,
        source={"name": job.row.source, "files": settings["source"]},
        components=components,
    )
    _finish(job, notes, manifest)
    return manifest


def _paths(job: Job, notes: Notes) -> calibration.DrawnPaths:
    """The calibration's drawn paths, from an interrupted run if it got that far."""
    file = job.partial / _PATHS
    if _PATHS in notes.files:
        return calibration.load(file)
    told = job.on_progress
    prompt, pooled = job.kind.encode_prompts(
        job.source, job.row, job.prompts, job.device, job.dtype,
        lambda done: told("encoding calibration prompts", 0.05 * done),
    )  # fmt: skip
    flux = job.kind.streamed(job.source, job.device, job.dtype)
    paths = calibration.draw_paths(
        flux, job.row, job.source, prompt, pooled,
        lambda done: told("drawing calibration prompts", 0.05 + 0.25 * done),
    )  # fmt: skip
    calibration.save(paths, file)
    notes.files[_PATHS] = {"sha256": file_sha256(file)}
    notes.save(job.partial)
    return paths


def _text_encoder(job: Job, notes: Notes) -> Component:
    plans, kept = plan_layers(empty_t5(job.source), TEXT_ENCODER_RANK, weight_only=True)
    names = [f"encoder.block.{n}" for n in range(_count(plans, "encoder.block."))]
    done = [name for name in names if f"text_encoder_2/{name}.safetensors" in notes.files]

    def keep(name: str, tensors: dict[str, torch.Tensor]) -> None:
        _write(job, notes, "text_encoder_2", name, tensors)
        share = (names.index(name) + 1) / len(names) if name in names else 1.0
        job.on_progress("quantising the text encoder", 0.3 + 0.1 * share)

    if len(done) < len(names) or "text_encoder_2/rest.safetensors" not in notes.files:
        text_encoding.fit_t5(
            job.source, job.row, plans, job.prompts, job.device, job.dtype, done, keep
        )
    return _component(job, notes, "text_encoder_2", plans, kept)


def _transformer(job: Job, notes: Notes, paths: calibration.DrawnPaths) -> Component:
    flux = job.kind.streamed(job.source, job.device, job.dtype)
    plans, kept = plan_layers(flux.model, job.rank)
    where = flux.positions(job.row, paths.prompt.shape[1])
    batches = calibration.samples(flux, job.row, paths)
    names = flux.block_names

    def visit(name: str, block: nn.Module, batches: list[Batch]) -> None:
        own = _within(plans, name)
        done = f"transformer/{name}.safetensors" in notes.files
        run = lambda batch: flux.step(block, batch, where)  # noqa: E731
        _fit_and_run(job, notes, name, block, own, batches, run, done=done)
        share = (names.index(name) + 1) / len(names)
        job.on_progress("quantising the transformer", 0.4 + 0.58 * share)

    flux.through_blocks(batches, where, visit)
    last = flux.model.norm_out
    run = lambda batch: last(batch.hidden.to(job.device), batch.temb.to(job.device))  # noqa: E731
    done = "transformer/norm_out.safetensors" in notes.files
    _fit_and_run(job, notes, "norm_out", last, _within(plans, "norm_out"), batches, run, done=done)
    rest = {
        f"{part}.{name}": tensor.bfloat16()
        for part in flux.OUTSIDE
        if part != "norm_out"
        for name, tensor in flux.model.get_submodule(part).state_dict().items()
    }
    _write(job, notes, "transformer", "rest", rest)
    return _component(job, notes, "transformer", plans, kept)


def _fit_and_run(
    job: Job,
    notes: Notes,
    name: str,
    block: nn.Module,
    plans: dict[str, LayerPlan],
    batches: list[Batch],
    run: Callable[[Batch], object],
    *,
    done: bool,
) -> None:
    """Bring all samples through a block; fit, measure and write it unless it is `done`."""
    if done:
        for batch in batches:
            run(batch)
        return
    watch = Watch(block, plans)
    for batch in batches:
        if not batch.held_out:
            run(batch)
    watch.stop()
    tensors = fit_block(block, plans, watch, activations=job.activations)
    examination = Examination(block, plans, tensors)
    for batch in batches:
        if batch.held_out:
            run(batch)
    examination.stop()
    for layer, errors in examination.errors.items():
        notes.layers[f"{name}.{layer}"] = errors.to_json()
    _write(job, notes, "transformer", name, {f"{name}.{k}": t for k, t in tensors.items()})


def _write(
    job: Job, notes: Notes, component: str, name: str, tensors: dict[str, torch.Tensor]
) -> None:
    folder = job.partial / component
    folder.mkdir(exist_ok=True)
    entry = write_tensors(folder / f"{name}.safetensors", tensors)
    notes.files[f"{component}/{name}.safetensors"] = entry
    notes.save(job.partial)


def _component(
    job: Job, notes: Notes, component: str, plans: dict[str, LayerPlan], kept: dict[str, str]
) -> Component:
    config = job.partial / component / CONFIG
    write_atomically(config, (job.source / component / CONFIG).read_bytes())
    files = {
        name.removeprefix(f"{component}/"): entry
        for name, entry in sorted(notes.files.items())
        if name.startswith(f"{component}/")
    }
    return Component(files=files, config=entry_of(config), layers=plans, kept_16bit=kept)


def _finish(job: Job, notes: Notes, manifest: Manifest) -> None:
    """The report, the rest of the pipeline, and the name."""
    job.on_progress("writing", 0.98)
    report = quality_report(job, notes, manifest)
    write_atomically(job.partial / "quality.json", json.dumps(report, indent=1).encode() + b"\n")
    text = "".join(f"{prompt}\n" for prompt in job.prompts)
    write_atomically(job.partial / prompts.FILE, text.encode())
    if job.complete:
        for part in job.source.iterdir():
            target = job.partial / part.name
            if part.name == "model_index.json":
                shutil.copyfile(part, target)
            elif part.is_dir() and part.name not in manifest.components and _is_part(part):
                shutil.copytree(part, target, dirs_exist_ok=True)
    manifest.write(job.partial)
    old = job.out.with_name(job.out.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if job.out.exists():
        job.out.rename(old)
    job.partial.rename(job.out)
    for name in (NOTES_FILE, _PATHS):  # last: who is interrupted before needs them
        (job.out / name).unlink()
    shutil.rmtree(old, ignore_errors=True)
    job.on_progress("done", 1.0)


def quality_report(job: Job, notes: Notes, manifest: Manifest) -> dict[str, Any]:
    """Sizes, and relative output errors on held-out prompts, layer by layer."""
    source = SourceWeights(job.source, "transformer")
    full = sum(2 * math.prod(source.shape(name)) for name in source.names)
    made = sum(entry["size"] for entry in manifest.components["transformer"].files.values())
    ratios = [layer["ratio"] for layer in notes.layers.values()]
    errors = [layer["error"] for layer in notes.layers.values()]
    plain = [layer["plain_nvfp4"] for layer in notes.layers.values()]
    return {
        "model": job.row.id,
        "rank": job.rank,
        "activations": job.activations,
        "calibration": {
            "prompts": len(job.prompts),
            "held_out": len(job.prompts) // calibration.HELD_OUT,
            "size_px": side_px(job.row),
            "steps": min(job.row.num_inference_steps, calibration.MAX_STEPS),
            "rounds": lowrank.ROUNDS,
        },
        "transformer_bytes": {"bf16": full, "fp4": made, "ratio": round(made / full, 4)},
        "mean_error": sum(errors) / len(errors),
        "mean_error_plain_nvfp4": sum(plain) / len(plain),
        "mean_ratio": sum(ratios) / len(ratios),
        "worst_ratio": max(ratios),
        "layers": notes.layers,
    }


def _is_part(folder: Path) -> bool:
    """Whether a folder belongs to the pipeline: it has a configuration of its own."""
    return any(folder.glob("*config.json"))


def _within(plans: dict[str, LayerPlan], block: str) -> dict[str, LayerPlan]:
    prefix = f"{block}."
    return {n.removeprefix(prefix): plan for n, plan in plans.items() if n.startswith(prefix)}


def _count(plans: dict[str, LayerPlan], prefix: str) -> int:
    return 1 + max(int(name.removeprefix(prefix).split(".")[0]) for name in plans)
