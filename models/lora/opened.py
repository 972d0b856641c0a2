"""A worker's LoRA files: `<sha256>.safetensors` in one folder, read once and kept converted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from config.errors import NotFound
from models.lora.base_model import Family
from models.lora.convert import Lora, convert
from models.lora.errors import BadLoraFile, LoraError
from models.lora.kept import Kept
from models.lora.native import Native, native
from models.lora.shelf import sha256_of
from models.types import LoraRef

# In main memory. A LoRA of rank 16 on all of FLUX.1's blocks is some 150 MiB.
MAX_BYTES = 2 * 2**30
# What PEFT may apply itself though it is not low rank.
WHOLE_FORMATS = ("lokr", "loha")

_Read = TypeVar("_Read")


class OpenedLoras:
    """Reads a request's LoRAs. The hash is of the file's bytes, so what was read once is not read again."""

    def __init__(
        self, folder: Path | None, family: Family = Family.FLUX1, *, max_bytes: int = MAX_BYTES
    ) -> None:
        self._folder, self._family = folder, family
        self._loras: Kept[Lora] = Kept(max_bytes)
        self._natives: Kept[Native] = Kept(max_bytes)

    def take(self, ref: LoraRef) -> Lora:
        """The LoRA as factors per layer.

        Raises NotFound when its file is not there, and LoraError, with the LoRA's name, for one that
        is broken or for another kind of model.
        """
        lora = self._loras.get(ref.sha256)
        if lora is None:
            lora = self._read(ref, lambda path: convert(path, self._family))
            self._loras.put(ref.sha256, lora, size_bytes(lora))
        return lora

    def take_native(self, ref: LoraRef) -> Native | None:
        """The LoRA as PEFT's own adapter of another kind than low rank; None where it is none."""
        if self._family is not Family.FLUX1 or self.take(ref).info.format not in WHOLE_FORMATS:
            return None
        found = self._natives.get(ref.sha256)
        if found is None and (found := self._read(ref, native)) is not None:
            self._natives.put(ref.sha256, found, sum(t.nbytes for t in found.state.values()))
        return found

    def _read(self, ref: LoraRef, read: Callable[[Path], _Read]) -> _Read:
        path = None if self._folder is None else self._folder / f"{ref.sha256}.safetensors"
        if path is None or not path.is_file():
            raise NotFound(
                f"LoRA {ref.name}: its file is not on this machine any more; upload it again"
            )
        try:
            if sha256_of(path) != ref.sha256:
                raise BadLoraFile("its file was changed where it lies; delete and upload it again")
            return read(path)
        except LoraError as error:
            raise type(error)(f"LoRA {ref.name}: {error.message}") from error


def size_bytes(lora: Lora) -> int:
    """Memory of all factors; layers fused in the file may share a tensor, which counts once."""
    tensors = {
        tensor.data_ptr(): tensor.nbytes
        for factors in lora.layers.values()
        for tensor in (factors.up, factors.down)
    }
    return sum(tensors.values())
