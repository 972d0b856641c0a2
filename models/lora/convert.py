"""A LoRA file as factors per layer, in diffusers' names, whatever format it came in.

Modules are converted one at a time, by diffusers' own converters (`targets.py`). So alphas stay apart
from the weights, nothing is rounded (the converters would multiply them in, in the file's dtype), a
name no converter knows is listed and not dropped, and files that mix namings work. LoKr and LoHa become
low rank first (`lowrank.py`) and then take the same way.
Sources: diffusers 0.42.1 `loaders/lora_pipeline.py`; LyCORIS for the scales of LoKr; peft
`tuners/lora/layer.py` for those of PEFT.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError, safe_open

from models.lora import keys, lowrank
from models.lora.base_model import Family
from models.lora.errors import BadLoraFile
from models.lora.finite import check_finite
from models.lora.header import read_header
from models.lora.inspect import LoraInfo, adapter_config, inspect, require
from models.lora.json_cursor import shown
from models.lora.keys import Naming, Style
from models.lora.targets import targets as find_targets
from models.lora.whole import LORA, USED, check_modules, kind_of


@dataclass(frozen=True, slots=True)
class Factors:
    """What a LoRA adds to one layer: scale · up · down, in the dtypes of the file."""

    down: torch.Tensor  # A (r, in)
    up: torch.Tensor  # B (out, r)
    scale: float  # alpha / rank
    keys: tuple[str, ...]  # the file's tensors it comes from; layers fused there share them

    def delta(self) -> torch.Tensor:
        """(out, in) float32."""
        return self.scale * (self.up.float() @ self.down.float())


@dataclass(frozen=True, slots=True, kw_only=True)
class Lora:
    """A whole file. Layers are named component first: `transformer.x_embedder`, `text_encoder.…`."""

    layers: Mapping[str, Factors]
    info: LoraInfo
    unknown_keys: tuple[str, ...]  # tensors that belong to no layer we know
    error: float  # relative Frobenius norm of what low rank could not hold; 0 for a LoRA
    approximated: Mapping[str, float]  # the same by the file's module, where it is not 0


def convert(
    path: Path | str, family: Family = Family.FLUX1, *, max_rank: int = lowrank.MAX_RANK
) -> Lora:
    """Read a LoRA of a family from a file of any known format.

    `max_rank` bounds what LoKr and LoHa may become. Raises what `read_header`, `check_finite` and
    `inspect.require` raise, and BadLoraFile where factors do not fit one another.
    """
    header = read_header(path)
    info = inspect(path, header)
    require(info, family)
    check_finite(path, header)
    grouped, unknown = keys.group(header.tensors)
    check_modules(grouped, header.tensors)
    work = _Work(header.metadata, max_rank, info.base.name, family)
    # Some files have the same LoRA twice, once in diffusers' names, which then count.
    order = sorted(grouped, key=lambda module: keys.place(module).naming is not Naming.DIFFUSERS)
    try:
        with safe_open(path, "pt") as file:
            for module in order:
                names = {p: name for p, name in grouped[module].items() if p in USED}
                unknown += tuple(n for p, n in grouped[module].items() if p not in USED)
                tensors = {part: _load(file, name) for part, name in names.items()}
                if not work.add(module, tensors, tuple(names.values())):
                    unknown += tuple(names.values())
    except SafetensorError as error:
        raise BadLoraFile(f"the safetensors library refuses the file: {error}") from error
    return work.finish(info, unknown)


def _load(file: Any, name: str) -> torch.Tensor:
    tensor = file.get_tensor(name)
    if tensor.dtype.itemsize == 1 and tensor.dtype.is_floating_point:
        return tensor.to(torch.bfloat16)  # exact, and there is no arithmetic on eight bits
    return tensor


class _Work:
    """Collects layers module by module."""

    def __init__(
        self, metadata: Mapping[str, str], max_rank: int, base_name: str, family: Family
    ) -> None:
        self.base_name, self.family = base_name, family
        self.layers: dict[str, Factors] = {}
        self.metadata, self.max_rank = metadata, max_rank
        self.approximated: dict[str, float] = {}
        self.lost = self.norm = 0.0

    def add(self, module: str, tensors: dict[str, torch.Tensor], names: tuple[str, ...]) -> bool:
        """Take one module; False when nobody knows where it belongs."""
        place = keys.place(module)
        alpha = tensors.pop(keys.ALPHA, None)
        if place.style is Style.UNKNOWN or not tensors:
            return False
        up, down, scale = self._factors(module, tensors, alpha)
        try:
            targets = find_targets(module, place, up, down, self.family)
        except (ValueError, RuntimeError, AssertionError, KeyError) as error:
            raise BadLoraFile(
                f"module {shown(module)}: {tuple(up.shape)} · {tuple(down.shape)} is no layer of "
                f"{self.base_name} ({str(error)[:200]})"
            ) from error
        if not targets or targets.keys() & self.layers.keys():
            return False
        if scale is None:
            scale = self._scale_by_metadata(next(iter(targets)), down.shape[0])
        for name, (target_up, target_down) in targets.items():
            self.layers[name] = Factors(target_down, target_up, scale, names)
        return True

    def finish(self, info: LoraInfo, unknown: tuple[str, ...]) -> Lora:
        return Lora(
            layers=self.layers,
            info=info,
            unknown_keys=unknown,
            error=math.sqrt(self.lost / self.norm) if self.norm else 0.0,
            approximated=self.approximated,
        )

    def _factors(
        self, module: str, tensors: Mapping[str, torch.Tensor], alpha: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, float | None]:
        """Up, down and scale; scale None where there is no alpha."""
        # A 1×1 convolution's weight (r, in, 1, 1) is a linear layer's.
        tensors = {part: tensor.flatten(1) for part, tensor in tensors.items()}
        kind = kind_of(tensors)
        if kind == LORA:
            rank = tensors[keys.DOWN].shape[0]
            return tensors[keys.UP], tensors[keys.DOWN], _scale(alpha, rank)
        inner = tensors.get("hada_w1_b", tensors.get("lokr_w2_b", tensors.get("lokr_w1_b")))
        # LoKr of two whole factors has no rank, and LyCORIS then scales nothing.
        scale = None if inner is None else _scale(alpha, inner.shape[0])
        scale = 1.0 if scale is None else scale
        make = lowrank.from_loha if kind == keys.LOHA else lowrank.from_lokr
        return *self._approximate(module, make, tensors, scale), scale

    def _approximate(
        self, module: str, make: Any, tensors: Mapping[str, torch.Tensor], scale: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        try:
            found: lowrank.LowRank = make(tensors, self.max_rank)
        except RuntimeError as error:
            shapes = ", ".join(f"{part} {tuple(t.shape)}" for part, t in tensors.items())
            raise BadLoraFile(f"module {shown(module)}: {shapes} do not fit together") from error
        self.lost += scale**2 * found.lost_squared
        self.norm += scale**2 * found.norm_squared
        if found.lost_squared > lowrank.TOLERANCE**2 * found.norm_squared:
            self.approximated[module] = math.sqrt(found.lost_squared / found.norm_squared)
        return found.up, found.down

    def _scale_by_metadata(self, layer: str, rank: int) -> float:
        """PEFT's rule: lora_alpha by layer, over the rank or its root; without any, 1."""
        component, _, path = layer.partition(".")
        config = adapter_config(self.metadata, component)
        patterns = config.get("alpha_pattern")
        patterns = patterns if isinstance(patterns, dict) else {}
        patterns = {key: value for key, value in patterns.items() if _PATTERN.fullmatch(key)}
        alpha = patterns.get(get_pattern_key(patterns, path), config.get("lora_alpha"))
        if type(alpha) not in (int, float) or not abs(alpha) < 1e9:
            return 1.0
        return alpha / (math.sqrt(rank) if config.get("use_rslora") is True else rank)


_PATTERN = re.compile(
    r"\^?[\w.]+\$?"
)  # as diffusers writes them; an expression of a file's own is not run


def _scale(alpha: torch.Tensor | None, rank: int) -> float | None:
    """alpha / rank; None without an alpha."""
    return None if alpha is None else float(alpha) / rank
