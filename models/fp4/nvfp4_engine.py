"""The engine `nvfp4`: finds or makes a model's four-bit copy and puts it on the device.

Where a copy may be: beside a model that ships with the project (`models/embedded-fp4`), or in
`<models_dir>/fp4/<id>`, where one is made on first use. A copy counts only if it was made from the
weights that are there; one made from others is not loaded but made again, and the log says so.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from config.catalog import ModelRow
from config.errors import ModelUnavailable
from models.compiling import compile_model
from models.families import family_of
from models.families.pipeline_model import device_of
from models.fingerprint import fingerprint
from models.fp4 import hardware, offload, prompts
from models.fp4.checkpoint import MANIFEST, Manifest, load_component
from models.fp4.kinds import kind_of
from models.fp4.linear import ComputePath, fp4_layers
from models.fp4.quantize import Job, quantize_folder
from models.fp4.streaming import empty_t5
from models.fp4.work import locked
from models.hub import on_disk
from models.hub.snapshot import snapshot
from models.parts import Keys, keys_of
from models.precision import profile_of
from models.types import ImageModel, LoadOptions

log = logging.getLogger("models.fp4")

LARGE_TRANSFORMER_BYTES = (
    2**30
)  # a larger one leaves text encoders in main memory and tiles the VAE


def load(row: ModelRow, options: LoadOptions) -> ImageModel:
    """Load the row's model in four bits, making the four-bit copy first where there is none.

    Raises ModelUnavailable, saying which file is missing or damaged and what to do.
    """
    from diffusers.utils.logging import disable_progress_bar

    disable_progress_bar()
    kind_of(row)  # before anything is fetched for a family that gets no four bits
    folder = find_or_make(row, options)
    pipeline, path = load_pipeline(folder, row, options)
    model = family_of(row).MODEL(
        pipeline,
        row,
        engine="nvfp4",
        compute=path.describe,
        lora_mode=profile_of("fp4").lora_mode,
        loras_dir=options.loras_dir,
        text_device=torch.device(options.devices[0]),
    )
    device = torch.device(options.devices[-1])
    if device.type == "cuda" and _is_lean(pipeline.transformer, options):
        _make_room(pipeline, torch.device(options.devices[0]))
    if device.type == "cuda" and options.compile != "off":
        compile_model(model, options, autoencoder=options.compile == "on")
    return model


def find_or_make(row: ModelRow, options: LoadOptions) -> Path:
    """The folder of a four-bit copy made from the row's weights."""
    shipped = row.folder.with_name(row.folder.name + "-fp4") if row.folder is not None else None
    cached = options.models_dir / "fp4" / row.id
    if shipped is not None and is_copy_of(shipped, row.folder, row):
        return shipped
    if row.folder is None and (cached / MANIFEST).is_file():
        present = local_snapshot(row, options)
        if present is None or not _is_whole(present, row) or is_copy_of(cached, present, row):
            return cached
    source = row.folder or snapshot(row, options)

    def on_wait() -> None:
        options.on_progress("another process makes the four-bit weights", 0.0)

    try:
        with locked(cached, on_wait):
            if not is_copy_of(cached, source, row):
                _make(row, source, cached, shipped, options)
    except OSError as error:
        raise ModelUnavailable(
            f"model {row.id}: its four-bit weights cannot be kept in the models folder: "
            f"{error.strerror}; make it writable, or set FLUX_MODELS_DIR"
        ) from error
    return cached


def is_copy_of(folder: Path, source: Path, row: ModelRow) -> bool:
    """Whether `folder` holds a four-bit copy of exactly the row's weights in `source`.

    Raises ModelUnavailable for a folder with a manifest that cannot be read.
    """
    if not (folder / MANIFEST).is_file():
        return False
    made_from = Manifest.read(folder).source.get("files")
    if made_from == fingerprint(source, kind_of(row).parts):
        return True
    log.warning(
        "%s was made from other weights than %s has; it is not used",
        folder, source, extra={"action": "fp4_copy_outdated"},
    )  # fmt: skip
    return False


def _is_whole(source: Path, row: ModelRow) -> bool:
    """Whether the 16-bit weights are still there; whoever needs room may delete them."""
    try:
        fingerprint(source, kind_of(row).parts)
    except ModelUnavailable:
        return False
    return True


def load_pipeline(folder: Path, row: ModelRow, options: LoadOptions) -> tuple[Any, ComputePath]:
    """diffusers' pipeline over a four-bit folder: text encoders on the first device, the rest on the last.

    What the folder lacks (its manifest says what it is a copy of) comes from the row's own folder.
    """
    manifest = Manifest.read(folder)
    base = folder if (folder / "model_index.json").is_file() else row.folder
    if base is None:
        raise ModelUnavailable(f"{folder.name}/model_index.json is missing; make the folder again")
    text_device, device = torch.device(options.devices[0]), torch.device(options.devices[-1])
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    options.on_progress("reading four-bit weights", 0.0)
    try:
        empty = kind_of(row).streamed.empty(folder)
        parts = {"transformer": load_component(folder, manifest, "transformer", empty, dtype)}
        if "text_encoder_2" in manifest.components:
            parts["text_encoder_2"] = load_component(
                folder, manifest, "text_encoder_2", empty_t5(folder), dtype
            )
        model = family_of(row).MODEL
        keys: Keys = {}
        if options.parts is not None:
            names = [name for name in model.SHARED_PARTS if name not in parts]
            is_waiting = text_device.type == "cuda" and _is_lean(parts["transformer"], options)
            where = ("cpu" if is_waiting else options.devices[0], options.devices[-1])
            keys = keys_of(base, names, dtype, lambda name: device_of(name, where))
            parts |= options.parts.lend(keys)
        pipeline = model.pipeline_class(row).from_pretrained(
            base, **parts, dtype=dtype, use_safetensors=True, local_files_only=True
        )
    except (OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        if damaged := on_disk.damaged_json(base):
            reason = f"{damaged} is damaged; fetch the model again"
        raise ModelUnavailable(f"model {row.id}: {base.name} cannot be loaded: {reason}") from error
    model.prepare(pipeline)
    if text_device.type != "cuda" or not _is_lean(pipeline.transformer, options):
        for encoder in _text_encoders(pipeline):
            encoder.to(text_device)
    pipeline.transformer.to(device)
    pipeline.vae.to(device)
    # Where they compute: on a CPU what a path makes of twelve billion weights would take minutes.
    path = _use_paths(pipeline, options, device, text_device, manifest.activations)
    if keys:
        options.parts.remember(keys, pipeline.components.__getitem__)
    options.on_progress("reading four-bit weights", 1.0)
    return pipeline, path


def _use_paths(
    pipeline: Any,
    options: LoadOptions,
    device: torch.device,
    text_device: torch.device,
    activations: int,
) -> ComputePath:
    """Give every four-bit layer its path; returns the transformer's."""
    chosen = None
    encoders = [(encoder, text_device) for encoder in _text_encoders(pipeline)]
    for model, where in (*encoders, (pipeline.transformer, device)):
        layers = fp4_layers(model)
        if not layers and model is not pipeline.transformer:
            continue  # in 16 bit
        weights = sum(layer.in_features * layer.out_features for layer in layers.values())
        chosen = hardware.choose_path(
            where, fp8_weights=options.fp8_weights, weights=weights, activations=activations
        )
        for layer in layers.values():
            layer.use(chosen)
    assert chosen is not None
    log.info("%s", chosen.describe, extra={"action": "fp4_path", "path": chosen.name})
    return chosen


def _text_encoders(pipeline: Any) -> list[torch.nn.Module]:
    return [part for name, part in pipeline.components.items() if name.startswith("text_encoder")]


def _is_lean(transformer: torch.nn.Module, options: LoadOptions) -> bool:
    """Whether memory comes before speed: large models, unless FP8 weights were asked to be kept."""
    size = sum(t.nbytes for t in transformer.state_dict().values())
    return size > LARGE_TRANSFORMER_BYTES and options.fp8_weights == "memory"


def _make_room(pipeline: Any, text_device: torch.device) -> None:
    """Text encoders leave the GPU after encoding; the autoencoder decodes in tiles of half its size."""
    for encoder in _text_encoders(pipeline):
        offload.stream_text_encoder(encoder, text_device)
    vae = pipeline.vae
    vae.use_tiling = True
    vae.tile_sample_min_size = vae.config.sample_size // 2
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    vae.tile_latent_min_size = vae.tile_sample_min_size // factor


def _make(
    row: ModelRow, source: Path, out: Path, shipped: Path | None, options: LoadOptions
) -> None:
    log.info(
        "making the four-bit weights of %s, once", row.id, extra={"action": "fp4_quantize"}
    )  # fmt: skip
    device = torch.device(options.devices[-1])
    job = Job(
        source=source,
        out=out,
        row=row,
        prompts=prompts.for_model(row, shipped),
        activations=hardware.activation_bits(device),
        device=device,
        complete=row.folder is None,
        on_progress=options.on_progress,
    )
    try:
        quantize_folder(job)
    except (OSError, ValueError) as error:
        raise ModelUnavailable(
            f"model {row.id}: its four-bit weights could not be made: {_in_short(error)}; "
            "what is finished is kept, and the next try goes on from there"
        ) from error


def _in_short(error: OSError | ValueError) -> str:
    """What an error says, without the folders of this machine: clients read it."""
    if isinstance(error, OSError) and error.strerror:
        file = f" ({Path(str(error.filename)).name})" if error.filename else ""
        return f"{error.strerror}{file}"
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def local_snapshot(row: ModelRow, options: LoadOptions) -> Path | None:
    """The Hub snapshot of the row if it is on this machine, whole or not."""
    return on_disk.snapshot_of(on_disk.hub_folder(options.models_dir), row.source)
