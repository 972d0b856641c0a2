"""The FP4 folder: what stands in it, how it is written, and how strictly it is read.

    fp4.json                    format version, rank, what it was made from (size and digest of every
                                file), and for each component: its files and its configuration with
                                SHA-256, its four-bit layers with shape and rank, the layers kept in
                                16 bit with the reason
    quality.json                what the four bits cost, layer by layer (`quantize.py`)
    transformer/config.json     diffusers' configuration of the 16-bit model
    transformer/*.safetensors   one file per block and one for the rest; a layer's tensors are
                                <layer>.packed, .block_scale, .global_scale, .up, .down, .bias
    text_encoder_2/…            the same for T5, where it is large enough to be worth it
    model_index.json, vae/ …    the rest of the pipeline, unless it stands beside (`source.folder`)

Reading checks every file's size and digest and every tensor's name, shape and type before a model is
given out: what is wrong is a ModelUnavailable that names the file, and nothing is half-loaded.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from config.errors import ModelUnavailable
from models.fingerprint import file_sha256
from models.fp4.layers import LayerPlan
from models.fp4.linear import Fp4Linear

FORMAT, VERSION = "flux-api-fp4", 2
MANIFEST, CONFIG = "fp4.json", "config.json"
AGAIN = "make the FP4 folder again with scripts/quantize_fp4.py"


@dataclass(frozen=True, slots=True, kw_only=True)
class Component:
    """A model of the pipeline in four bits."""

    files: Mapping[str, Mapping[str, Any]]  # by name: size in bytes, sha256
    config: Mapping[str, Any]  # the same of config.json
    layers: Mapping[str, LayerPlan]
    kept_16bit: Mapping[str, str]  # the reason by name


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """`fp4.json`."""

    model: str  # the catalog's id
    rank: int
    activations: int  # 4: smoothed, so that inputs may be rounded to four bits; 16: they may not
    source: Mapping[str, Any]  # "name", and "files" as `fingerprint.fingerprint` gives them
    components: Mapping[str, Component] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        text = json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=1)
        write_atomically(folder / MANIFEST, text.encode() + b"\n")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Raises ModelUnavailable, naming the file, for one that is missing, damaged or of another format."""
        label = f"{folder.name}/{MANIFEST}"
        try:
            data = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
            found = data.pop("format"), data.pop("version")
        except FileNotFoundError as error:
            raise ModelUnavailable(f"{label} is missing; {AGAIN}") from error
        except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
            raise ModelUnavailable(f"{label} cannot be read: {error!r}; {AGAIN}") from error
        if found != (FORMAT, VERSION):
            raise ModelUnavailable(
                f"{label} is of format {found[0]!r} version {found[1]!r}, not {FORMAT!r} version {VERSION}; {AGAIN}"
            )
        try:
            manifest = cls(**{**data, "components": _components(data["components"])})
            _check_kinds(manifest)
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise ModelUnavailable(f"{label} is not complete: {error!r}; {AGAIN}") from error
        return manifest


def _components(data: Mapping[str, Any]) -> dict[str, Component]:
    return {
        name: Component(
            files={file: _entry(file, entry) for file, entry in part["files"].items()},
            config=_entry(CONFIG, part["config"]),
            layers={layer: _layer(layer, plan) for layer, plan in part["layers"].items()},
            kept_16bit=dict(part["kept_16bit"].items()),
        )
        for name, part in data.items()
    }


def _entry(name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """A file's size and digest."""
    size, digest = entry["size"], entry["sha256"]
    if type(size) is not int or type(digest) is not str:
        raise ValueError(f"{name} has no size or no digest")
    return {"size": size, "sha256": digest}


def _layer(name: str, plan: Mapping[str, Any]) -> LayerPlan:
    made = LayerPlan(**{**plan, "shape": tuple(plan["shape"])})
    if type(made.bias) is not bool or type(made.weight_only) is not bool:
        raise ValueError(f"layer {name} does not say whether it has a bias or is weight-only")
    return made


def _check_kinds(manifest: Manifest) -> None:
    if manifest.activations not in (4, 16) or type(manifest.activations) is not int:
        raise ValueError(f"activations is {manifest.activations!r}, not 4 or 16")
    if type(manifest.rank) is not int or type(manifest.model) is not str:
        raise ValueError("rank is no number or model no name")
    if not isinstance(manifest.source.get("files"), dict):
        raise ValueError("source has no files")


def write_atomically(path: Path, data: bytes) -> None:
    """Whole or not at all, also after a crash. Raises OSError; nothing is left behind then."""
    with _in_place_of(path) as temporary, temporary.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Write a safetensors file, whole or not at all; returns its entry for the manifest.

    Raises OSError, naming the file, for one that cannot be written; nothing is left behind then.
    """
    with _in_place_of(path) as temporary:
        try:
            save_file({name: t.cpu().contiguous() for name, t in tensors.items()}, temporary)
        except SafetensorError as error:  # what safetensors makes of a full disk
            raise OSError(f"{path.parent.name}/{path.name} cannot be written: {error}") from error
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)
    return entry_of(path)


def entry_of(path: Path) -> dict[str, Any]:
    """A file's entry for the manifest."""
    return {"size": path.stat().st_size, "sha256": file_sha256(path)}


@contextmanager
def _in_place_of(path: Path) -> Iterator[Path]:
    """A name to write under; it becomes `path` if nothing was raised, and else is gone."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        yield temporary
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def load_component(
    folder: Path, manifest: Manifest, component: str, model: nn.Module, dtype: torch.dtype
) -> nn.Module:
    """Fill `model`, a 16-bit architecture on the meta device, with a component of an FP4 folder.

    16-bit tensors are cast to `dtype`; everything is on the CPU. Raises ModelUnavailable as the
    head of this module says; `model` is of no use then.
    """
    if component not in manifest.components:
        raise ModelUnavailable(f"{folder.name}/{MANIFEST} has no {component!r}; {AGAIN}")
    part = manifest.components[component]
    label = f"{folder.name}/{component}"
    _check_files(folder / component, label, {**part.files, CONFIG: part.config})
    replace_layers(
        model, part.layers, f"{folder.name}/{MANIFEST}", smooth=manifest.activations < 16
    )
    expected = {name: (tuple(t.shape), t.dtype) for name, t in model.state_dict().items()}
    fixed = _fixed_dtypes(model)
    state: dict[str, torch.Tensor] = {}
    for file in part.files:
        state |= _checked_tensors(folder / component / file, f"{label}/{file}", expected, fixed)
    tied = {"shared.weight": "encoder.embed_tokens.weight"}
    for one, other in tied.items():
        if one in expected and other in expected and one in state:
            state.setdefault(other, state[one])
    missing = sorted(expected.keys() - state.keys())
    if missing:
        raise ModelUnavailable(
            f"{label}: {len(missing)} tensors are in no file, {missing[0]!r} first; {AGAIN}"
        )
    cast = {name: t if name in fixed else t.to(dtype) for name, t in state.items()}
    model.load_state_dict(cast, assign=True)
    if tied.keys() <= expected.keys():
        model.get_submodule("encoder.embed_tokens").weight = model.get_parameter("shared.weight")
    return model.requires_grad_(False).eval()


def replace_layers(
    model: nn.Module, layers: Mapping[str, LayerPlan], label: str, *, smooth: bool
) -> None:
    """Put an empty four-bit layer in the place of every planned linear layer of `model`."""
    for name, plan in layers.items():
        parent_name, _, own = name.rpartition(".")
        try:
            parent = model.get_submodule(parent_name)
            old = parent.get_submodule(own)
        except AttributeError as error:
            raise ModelUnavailable(
                f"{label} names a layer {name!r} that the model lacks; {AGAIN}"
            ) from error
        if not isinstance(old, nn.Linear) or (old.out_features, old.in_features) != plan.shape:
            raise ModelUnavailable(
                f"{label}: layer {name!r} is said to be {plan.shape}, the model's config.json makes "
                f"it {_shape_of(old)}; the files are not of one model; {AGAIN}"
            )
        rank, sides = plan.rank, plan.shape
        if type(rank) is not int or not 0 <= rank <= min(sides):
            raise ModelUnavailable(f"{label}: layer {name!r} has no rank {rank!r}; {AGAIN}")
        layer = Fp4Linear(
            old.in_features,
            old.out_features,
            rank,
            bias=plan.bias,
            smooth=smooth and not plan.weight_only,
            weight_only=plan.weight_only,
            device="meta",
        )
        setattr(parent, own, layer)


def _shape_of(module: nn.Module) -> object:
    if isinstance(module, nn.Linear):
        return (module.out_features, module.in_features)
    return type(module).__name__


def _check_files(folder: Path, label: str, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Sizes first, which is quick, then digests, in parallel."""
    for name, entry in files.items():
        path = folder / name
        if Path(name).name != name or not path.is_file():
            raise ModelUnavailable(f"{label}/{name} is missing; {AGAIN}")
        size = path.stat().st_size
        if size != entry["size"]:
            raise ModelUnavailable(
                f"{label}/{name} has {size} bytes, {MANIFEST} says {entry['size']}: "
                f"it is cut short or another file; {AGAIN}"
            )
    with ThreadPoolExecutor(max_workers=4) as pool:
        digests = pool.map(lambda name: file_sha256(folder / name), files)
        for (name, entry), digest in zip(files.items(), digests, strict=True):
            if digest != entry["sha256"]:
                raise ModelUnavailable(
                    f"{label}/{name} has SHA-256 {digest[:12]}…, {MANIFEST} says "
                    f"{entry['sha256'][:12]}…: it is damaged or another file; {AGAIN}"
                )


def _fixed_dtypes(model: nn.Module) -> set[str]:
    """Tensors whose dtype belongs to the format."""
    return {
        f"{name}.{tensor}"
        for name, layer in model.named_modules()
        if isinstance(layer, Fp4Linear)
        for tensor in layer.state_dict()
    }


def _checked_tensors(
    path: Path,
    label: str,
    expected: Mapping[str, tuple[tuple[int, ...], torch.dtype]],
    fixed: set[str],
) -> dict[str, torch.Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelUnavailable(f"{label} is no whole safetensors file: {error}; {AGAIN}") from error
    for name, tensor in tensors.items():
        if name not in expected:
            raise ModelUnavailable(f"{label} holds {name!r}, which the model lacks; {AGAIN}")
        shape, dtype = expected[name]
        wanted = dtype if name in fixed else torch.bfloat16
        if tuple(tensor.shape) != shape or tensor.dtype != wanted:
            raise ModelUnavailable(
                f"{label}: {name!r} is {_words(tuple(tensor.shape), tensor.dtype)}, expected is "
                f"{_words(shape, wanted)} (a wrong rank, or files of two models); {AGAIN}"
            )
    return tensors


def _words(shape: tuple[int, ...], dtype: torch.dtype) -> str:
    return f"{'x'.join(map(str, shape)) or 'a single'} {str(dtype).removeprefix('torch.')}"
