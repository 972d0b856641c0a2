"""How much GPU memory FLUX.1 takes in four bits, computed on the meta device.

    python -m models.fp4.memory

The models are built with their true shapes and no memory, and run once by each path of `compute.py`;
what would be allocated is counted as it comes and goes. Blocks of a kind are alike and leave nothing
behind, so that two of each are run for all. Weights on the GPU are the four-bit transformer
and the autoencoder. Text encoders come for the moment they compute (`offload.py`); the autoencoder
decodes in tiles of 512 px. The elementwise parts count as one kernel each, as they are when compiled
(`kernels.py`): what they are given and what they write. Not counted: the CUDA context and kernels (some
0.4 GB, outside PyTorch's own count) and what the allocator loses between blocks.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, FluxTransformer2DModel
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models.fp4.checkpoint import replace_layers
from models.fp4.compute import Dequantized, Fp8, NativeFp4
from models.fp4.kernels import Kernels, swizzled
from models.fp4.layers import RANK, TEXT_ENCODER_RANK, plan_layers
from models.fp4.linear import ComputePath, fp4_layers
from models.fp4.nvfp4 import BLOCK

LIMIT_BYTES = 8_000_000_000  # FLUX.1 [schnell] at 1024 px must stay within
TILE_PX = 512
BLOCKS_RUN = 2  # of each kind

# The published configurations of FLUX.1 [schnell]; the transformer's is diffusers' default.
VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "latent_channels": 16,
    "layers_per_block": 2,
    "sample_size": 1024,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
T5 = {
    "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64,
    "vocab_size": 32128, "feed_forward_proj": "gated-gelu",
}  # fmt: skip
CLIP = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "vocab_size": 49408, "projection_dim": 768,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """Bytes on the GPU: weights that stay, and the most that each stage takes beside them."""

    transformer_weights: int  # and what the path keeps beside them
    vae_weights: int
    text_encoding: int  # CLIP, or one block of T5, with activations
    denoising: int  # activations, and the weight of one layer as it is multiplied
    decoding: int  # activations of one tile, and the picture
    transformer_weights_bf16: int  # for comparison
    t5_weights: int  # in main memory
    clip_weights: int  # in main memory

    @property
    def resident(self) -> int:
        return self.transformer_weights + self.vae_weights

    @property
    def peak(self) -> int:
        return self.resident + max(self.text_encoding, self.denoising, self.decoding)


def table(plans: Mapping[str, MemoryPlan]) -> str:
    """Markdown, in GB (10⁹ bytes), a column for each path."""
    lines = [f"| GB | {' | '.join(plans)} |", f"|---{'|---' * len(plans)}|"]
    for title, value in (
        ("transformer, resident", lambda plan: plan.transformer_weights),
        ("autoencoder, resident", lambda plan: plan.vae_weights),
        ("encoding a prompt, beside them", lambda plan: plan.text_encoding),
        ("denoising, beside them", lambda plan: plan.denoising),
        ("decoding, beside them", lambda plan: plan.decoding),
        ("**peak**", lambda plan: plan.peak),
        ("T5 in main memory", lambda plan: plan.t5_weights),
        ("CLIP in main memory", lambda plan: plan.clip_weights),
    ):
        cells = " | ".join(f"{value(plan) / 1e9:.2f}" for plan in plans.values())
        lines.append(f"| {title} | {cells} |")
    return "\n".join(lines)


def plan(
    path: str, width: int = 1024, height: int = 1024, *, rank: int = RANK, text_tokens: int = 256
) -> MemoryPlan:
    """Plan a picture of `width` x `height` px by FLUX.1's transformer at `rank`, by a path of `PATHS`.

    Raises KeyError for a path that is none.
    """
    with torch.no_grad():
        transformer, full = _transformer(rank, PATHS[path]())
        vae_weights, decoding = _decoding(width, height)
        t5 = _t5()
        _use(PATHS[path](), t5)
        clip_weights, clip_peak = _clip()
        return MemoryPlan(
            transformer_weights=weight_bytes(transformer) + kept_bytes(transformer),
            vae_weights=vae_weights,
            text_encoding=max(_t5_peak(t5, text_tokens), clip_peak),
            denoising=peak_bytes(lambda: _denoise(transformer, width, height, text_tokens)),
            decoding=decoding,
            transformer_weights_bf16=full,
            t5_weights=weight_bytes(t5),
            clip_weights=clip_weights,
        )


def weight_bytes(model: nn.Module) -> int:
    """Bytes of parameters and buffers, those with two names once."""
    tensors = {id(t): t.nbytes for t in (*model.parameters(), *model.buffers())}
    return sum(tensors.values())


def kept_bytes(model: nn.Module) -> int:
    """Bytes of what paths keep beside the four-bit layers of a model."""
    own = {t.untyped_storage() for layer in fp4_layers(model).values() for t in layer.buffers()}
    kept = {
        leaf.untyped_storage()
        for layer in fp4_layers(model).values()
        for leaf in tree_leaves(list(layer.kept.values()))
    }
    return sum(storage.nbytes() for storage in kept - own)


def peak_bytes(run: Callable[[], Any]) -> int:
    """The most bytes alive at once of all tensors that `run` makes."""
    meter = _Meter()
    with _Flash(), meter:
        run()
    return meter.peak


class _Meter(TorchDispatchMode):
    """Counts storages as they come and go."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:  # fmt: skip
        given = {
            id(leaf.untyped_storage())
            for leaf in tree_leaves((args, kwargs))
            if isinstance(leaf, torch.Tensor)
        }
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                if storage not in self._known and id(storage) not in given:
                    self._count(storage)
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        size = storage.nbytes()
        self._known.add(storage)
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._forget, size)

    def _forget(self, size: int) -> None:
        self.alive -= size


class _Flash(TorchFunctionMode):
    """Attention as fused kernels do it: its scores are never in memory."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            query = args[0] if args else kwargs["query"]
            return torch.empty_like(query)
        return func(*args, **(kwargs or {}))


def _widen(
    packed: torch.Tensor, _scale: torch.Tensor, _unit: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    return packed.new_empty(packed.shape[0], 2 * packed.shape[1], dtype=dtype)


def _few_rows(inputs: torch.Tensor, packed: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
    return inputs.new_empty(inputs.shape[0], packed.shape[0], dtype=torch.float32)


def _smooth(inputs: torch.Tensor, _inverse_smoothing: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(inputs)


def _to_fp8(inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scale = inputs.new_empty(inputs.shape[0], 1, dtype=torch.float32)
    return inputs.new_empty(inputs.shape, dtype=torch.float8_e4m3fn), scale


def _to_fp4(inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rows, columns = inputs.shape
    scale = inputs.new_empty(rows, columns // BLOCK, dtype=torch.float8_e4m3fn)
    packed = inputs.new_empty(rows, columns // 2, dtype=torch.uint8)
    return packed, swizzled(scale), inputs.new_empty((), dtype=torch.float32)


# What the compiled kernels write, and nothing between.
_KERNELS = Kernels(widen=_widen, few_rows=_few_rows, smooth=_smooth, to_fp8=_to_fp8, to_fp4=_to_fp4)
PATHS: Mapping[str, Callable[[], ComputePath]] = {
    "dequantized": lambda: Dequantized(keep=False, dtype=torch.bfloat16, kernels=_KERNELS),
    "fp8": lambda: Fp8(convert_once=False, kernels=_KERNELS),
    "native-fp4": lambda: NativeFp4(_KERNELS),
}


def _transformer(rank: int, path: ComputePath) -> tuple[nn.Module, int]:
    with init_empty_weights():
        model = _in_bf16(FluxTransformer2DModel())
    full = weight_bytes(model)
    plans, _ = plan_layers(model, rank)
    replace_layers(model, plans, "plan", smooth=path.name == NativeFp4.name)
    _use(path, model)
    return model, full


def _in_bf16(model: nn.Module) -> nn.Module:
    for tensor in model.parameters():
        tensor.data = tensor.data.bfloat16()
    return model.eval()


def _use(path: ComputePath, model: nn.Module) -> None:
    for layer in fp4_layers(model).values():
        layer.use(path)


@cache
def _t5() -> nn.Module:
    """T5 in four bits, whose layers have yet to be told their path."""
    from transformers import T5Config, T5EncoderModel

    with init_empty_weights():
        model = _in_bf16(T5EncoderModel(T5Config(**T5)))
    model.shared = model.encoder.embed_tokens
    plans, _ = plan_layers(model, TEXT_ENCODER_RANK, weight_only=True)
    replace_layers(model, plans, "plan", smooth=False)
    return model


@cache
def _clip() -> tuple[int, int]:
    """CLIP's weights, and what it takes with them and with its activations."""
    from transformers import CLIPTextConfig, CLIPTextModel

    with init_empty_weights():
        clip = _in_bf16(CLIPTextModel(CLIPTextConfig(**CLIP)))
    ids = torch.zeros(1, 77, dtype=torch.long, device="meta")
    return weight_bytes(clip), weight_bytes(clip) + peak_bytes(lambda: clip(ids))


def _t5_peak(t5: nn.Module, tokens: int) -> int:
    """Activations, and the largest part that comes at a time; the next may come before one is gone."""
    ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
    parts = [*t5.encoder.block, t5.encoder.embed_tokens]
    largest = max(weight_bytes(part) for part in parts)
    with few_of_each(t5.encoder, "block"):
        return peak_bytes(lambda: t5(ids)) + 2 * largest


def _denoise(transformer: nn.Module, width: int, height: int, text_tokens: int) -> None:
    tokens = (width // 16) * (height // 16)
    here: dict[str, Any] = {"dtype": torch.bfloat16, "device": "meta"}
    with few_of_each(transformer, "transformer_blocks", "single_transformer_blocks"):
        transformer(
            hidden_states=torch.empty(1, tokens, 64, **here),
            encoder_hidden_states=torch.empty(1, text_tokens, 4096, **here),
            pooled_projections=torch.empty(1, 768, **here),
            timestep=torch.empty(1, **here),
            img_ids=torch.empty(tokens, 3, **here),
            txt_ids=torch.empty(text_tokens, 3, **here),
        )


@contextmanager
def few_of_each(model: nn.Module, *lists: str) -> Iterator[None]:
    """Within it, each of the model's lists of blocks has only its first `BLOCKS_RUN`."""
    whole = {name: getattr(model, name) for name in lists}
    for name, blocks in whole.items():
        setattr(model, name, blocks[:BLOCKS_RUN])
    try:
        yield
    finally:
        for name, blocks in whole.items():
            setattr(model, name, blocks)


@cache  # no path has a part in it
def _decoding(width: int, height: int) -> tuple[int, int]:
    """The autoencoder's weights, and what it takes beside them."""
    with init_empty_weights():
        vae = _in_bf16(AutoencoderKL(**VAE))
    vae.use_tiling = True
    vae.tile_sample_min_size, vae.tile_latent_min_size = TILE_PX, TILE_PX // 8

    def decode() -> None:
        latents = torch.empty(1, 16, height // 8, width // 8, dtype=torch.bfloat16, device="meta")
        vae.decode(latents)

    return weight_bytes(vae), peak_bytes(decode)


if __name__ == "__main__":
    made = {name: plan(name) for name in PATHS}
    print(table(made))
    for name, each in made.items():
        print(
            f"\n{name}: transformer {each.transformer_weights / each.transformer_weights_bf16:.4f} of "
            f"BF16; peak {each.peak / 1e9:.2f} GB of {LIMIT_BYTES / 1e9:.0f} GB",
            end="",
        )
    print()
