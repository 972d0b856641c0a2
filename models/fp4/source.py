"""Reading a 16-bit diffusers folder tensor by tensor, and knowing it again.

A component's weights lie in one safetensors file, or in several with an index. Tensors are read from
the mapped file when they are asked for, so that a 24 GB transformer never stands in memory.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from config.errors import ModelUnavailable

_HASH_WHOLE_BYTES = 256 * 2**20
_SAMPLES, _SAMPLE_BYTES = 64, 64 * 2**10
_SHA256 = re.compile(r"[0-9a-f]{64}")


class SourceWeights:
    """The tensors of one component (`folder/component`) by name."""

    def __init__(self, folder: Path, component: str) -> None:
        self.folder = folder / component
        self.label = f"{folder.name}/{component}"
        self.files = weight_files(folder, component)
        self._where: dict[str, Path] = {}
        for file in self.files:
            try:
                with safe_open(file, framework="pt") as tensors:
                    self._where |= dict.fromkeys(tensors.keys(), file)
            except (SafetensorError, OSError) as error:
                raise ModelUnavailable(
                    f"{self.label}/{file.name} is damaged or cut short: {error}; fetch it again"
                ) from error

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._where)

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def get(self, name: str) -> torch.Tensor:
        """A tensor on the CPU. Raises ModelUnavailable for one that is in no file."""
        if name not in self._where:
            raise ModelUnavailable(f"{self.label} has no tensor {name!r}; fetch the model again")
        with safe_open(self._where[name], framework="pt") as tensors:
            return tensors.get_tensor(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor that is there; nothing of it is read."""
        with safe_open(self._where[name], framework="pt") as tensors:
            return tuple(tensors.get_slice(name).get_shape())

    def fill(
        self, module: nn.Module, prefix: str, device: torch.device, dtype: torch.dtype
    ) -> None:
        """Put this component's weights into a module of the meta device; `prefix` ends with a dot."""
        state = {}
        for name, wanted in module.state_dict().items():
            tensor = self.get(self._alias(prefix + name))
            if tensor.shape != wanted.shape:
                raise ModelUnavailable(
                    f"{self.label}: {prefix + name} is {tuple(tensor.shape)}, its config says "
                    f"{tuple(wanted.shape)}; weights and config.json are not of one model"
                )
            state[name] = tensor.to(device, dtype)
            if not state[name].isfinite().all():
                raise ModelUnavailable(
                    f"{self.label}: {prefix + name} has infinite values or NaN; fetch the model again"
                )
        module.load_state_dict(state, assign=True)

    def check_fits(self, model: nn.Module) -> None:
        """Raises ModelUnavailable unless these are the tensors of `model`, no more and no fewer.

        Only names and shapes are read.
        """
        wanted = {self._alias(name): t.shape for name, t in model.state_dict().items()}
        surplus = sorted(set(self.names) - wanted.keys())
        if surplus:
            raise ModelUnavailable(
                f"{self.label} holds {len(surplus)} tensors that its config.json has no place for, "
                f"{surplus[0]!r} first; weights and config.json are not of one model"
            )
        for name, shape in wanted.items():
            if name not in self._where:
                raise ModelUnavailable(
                    f"{self.label} has no tensor {name!r}; fetch the model again"
                )
            if self.shape(name) != tuple(shape):
                raise ModelUnavailable(
                    f"{self.label}: {name} is {self.shape(name)}, its config says {tuple(shape)}; "
                    "weights and config.json are not of one model"
                )

    def _alias(self, name: str) -> str:
        """A text encoder's table may have two names, and files hold it under either."""
        if name in self._where:
            return name
        other = {
            "encoder.embed_tokens.weight": "shared.weight",
            "shared.weight": "encoder.embed_tokens.weight",
            "lm_head.weight": "model.embed_tokens.weight",
        }.get(name, name)
        return other if other in self._where else name


def weight_files(folder: Path, component: str) -> list[Path]:
    """The safetensors files of a component, in order. Raises ModelUnavailable for none, or one missing."""
    part = folder / component
    for index in sorted(part.glob("*.safetensors.index.json")):
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError) as error:
            raise ModelUnavailable(
                f"{folder.name}/{component}/{index.name} is no index of safetensors files; fetch it again"
            ) from error
        files = [part / Path(name).name for name in names]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise ModelUnavailable(
                f"{folder.name}/{component}: {index.name} names {', '.join(missing)}, "
                "which are not there; fetch the model again"
            )
        return files
    files = sorted(part.glob("*.safetensors"))
    if len(files) != 1:
        raise ModelUnavailable(
            f"{folder.name}/{component} has {len(files)} safetensors files and no index; "
            "a diffusers folder has one file, or several with an index"
        )
    return files


def fingerprint(folder: Path, components: Iterable[str]) -> dict[str, dict[str, object]]:
    """Size and digest of every weight file, by its path in `folder`.

    `sha256` is of the whole file: the Hub's own (its cache names files so), or computed for files of
    up to 256 MiB. For larger ones `sampled_sha256` is of 64 KiB at 64 places and the end.
    """
    files = {}
    for component in components:
        for file in weight_files(folder, component):
            size = file.stat().st_size
            known = file.resolve().name if file.is_symlink() else ""
            if _SHA256.fullmatch(known):
                digest = {"sha256": known}
            elif size <= _HASH_WHOLE_BYTES:
                digest = {"sha256": file_sha256(file)}
            else:
                digest = {"sampled_sha256": _sampled_sha256(file, size)}
            files[f"{component}/{file.name}"] = {"size": size, **digest}
    return files


def file_sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sampled_sha256(file: Path, size: int) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        for place in range(_SAMPLES + 1):
            stream.seek(min(place * (size // _SAMPLES), size - _SAMPLE_BYTES))
            digest.update(stream.read(_SAMPLE_BYTES))
    return digest.hexdigest()
