"""Reading a 16-bit diffusers folder tensor by tensor.

A component's weights lie in one safetensors file, or in several with an index. Tensors are read from
the mapped file when they are asked for, so that a 24 GB transformer never stands in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from config.errors import ModelUnavailable
from models.fingerprint import weight_files


class SourceWeights:
    """The tensors of one component (`folder/component`) by name."""

    def __init__(self, folder: Path, component: str) -> None:
        self.folder = folder / component
        self.label = f"{folder.name}/{component}"
        self.files = weight_files(folder, component)
        self._where: dict[str, Path] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}  # read when one is asked for
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
        with safe_open(self._file_of(name), framework="pt") as tensors:
            return tensors.get_tensor(name)

    def _file_of(self, name: str) -> Path:
        if name not in self._where:
            raise ModelUnavailable(f"{self.label} has no tensor {name!r}; fetch the model again")
        return self._where[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a tensor that is there; nothing of it is read."""
        if not self._shapes:  # of all at once: opening a file reads all that it says of its tensors
            for file in self.files:
                with safe_open(file, framework="pt") as tensors:
                    for key in tensors.keys():
                        self._shapes[key] = tuple(tensors.get_slice(key).get_shape())
        return self._shapes[name]

    def fill(
        self, module: nn.Module, prefix: str, device: torch.device, dtype: torch.dtype
    ) -> None:
        """Put this component's weights into a module of the meta device; `prefix` ends with a dot."""
        state = {}
        for name, wanted, tensor in self._tensors_for(module, prefix):
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

    def _tensors_for(
        self, module: nn.Module, prefix: str
    ) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
        """Name, the module's own and the file's; each file is opened once."""
        with ExitStack() as stack:
            opened: dict[Path, Any] = {}
            for name, wanted in module.state_dict().items():
                alias = self._alias(prefix + name)
                file = self._file_of(alias)
                if file not in opened:
                    opened[file] = stack.enter_context(safe_open(file, framework="pt"))
                yield name, wanted, opened[file].get_tensor(alias)

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
