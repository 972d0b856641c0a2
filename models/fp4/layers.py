"""Which layers of a model become four-bit, with what rank, and why the others do not.

FLUX.1's transformer: every linear layer of its blocks, and the modulation layers (`norm*.linear`, 27 %
of the parameters), which turn time and pooled prompt into shifts, scales and gates. Their inputs are a
handful of directions, so a rank of 4 takes nearly all of their error; they are weight-only everywhere,
because they multiply one row per picture and everything after hangs on them.
FLUX.2's: the same, but its blocks have no modulation layers of their own; the three for all blocks stay.
T5: every linear layer of its blocks, weight-only.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from models.fp4.nvfp4 import BLOCK

RANK = 32
MODULATION_RANK = 4
TEXT_ENCODER_RANK = 16

KEPT_16BIT = {
    "x_embedder": "the only way in for latents, of 64 inputs; 0.002 % of FLUX.1's parameters",
    "context_embedder": "the only way in for the prompt, its error reaches every block; 0.1 % of FLUX.1's parameters",
    "time_text_embed": "what every modulation layer is given; 0.2 % of FLUX.1's parameters",
    "time_guidance_embed": "what every modulation layer is given; 0.3 % of FLUX.2 Klein's parameters",
    "double_stream_modulation_img": "every block is given what comes of it; 1.5 % of FLUX.2 Klein's parameters",
    "double_stream_modulation_txt": "every block is given what comes of it; 1.5 % of FLUX.2 Klein's parameters",
    "single_stream_modulation": "every block is given what comes of it; 0.7 % of FLUX.2 Klein's parameters",
    "proj_out": "the last layer, nothing after it evens its error out; 0.002 % of FLUX.1's parameters",
    "shared": "a table that is looked up, not multiplied",
    "relative_attention_bias": "a table that is looked up, not multiplied",
}
ODD_INPUTS = f"its inputs are not a multiple of {BLOCK}, the block of NVFP4"

# Layers of a block that are given the same inputs share statistics; named by the first of them.
SAME_INPUTS = {
    "attn.to_k": "attn.to_q",
    "attn.to_v": "attn.to_q",
    "proj_mlp": "attn.to_q",
    "attn.add_k_proj": "attn.add_q_proj",
    "attn.add_v_proj": "attn.add_q_proj",
    "norm1_context.linear": "norm1.linear",
    "layer.0.SelfAttention.k": "layer.0.SelfAttention.q",
    "layer.0.SelfAttention.v": "layer.0.SelfAttention.q",
    "layer.1.DenseReluDense.wi_1": "layer.1.DenseReluDense.wi_0",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPlan:
    """What a linear layer becomes. The shape is (N, K)."""

    shape: tuple[int, int]
    rank: int
    bias: bool
    weight_only: bool


def default_rank(width: int) -> int:
    """The branch's rank for a transformer of `width` channels: 32 for FLUX.1's 3,072.

    In narrow ones a rank costs relatively more: 23 for the embedded model's 192 keeps it below 0.45
    of BF16.
    """
    return min(RANK, width * 23 // 192)


def is_modulation(name: str) -> bool:
    return name.split(".")[-1] == "linear" and "norm" in name.split(".")[-2]


def plan_layers(
    model: nn.Module, rank: int, *, weight_only: bool = False
) -> tuple[dict[str, LayerPlan], dict[str, str]]:
    """The four-bit layers of a model by name, and the linear layers kept in 16 bit with the reason.

    `model` may be on the meta device. `rank` is that of the blocks' layers; modulation layers have
    at most `MODULATION_RANK`. With `weight_only` no layer's inputs may be rounded (a text encoder).
    Raises ValueError, naming a layer, for a rank of more than half of its smaller side.
    """
    plans, kept = {}, {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            kept[name] = KEPT_16BIT["shared"]
        if not isinstance(module, nn.Linear):
            continue
        shape = (module.out_features, module.in_features)
        reason = why_kept(name) or (ODD_INPUTS if module.in_features % BLOCK else None)
        if reason is not None:
            kept[name] = reason
            continue
        modulation = is_modulation(name)
        layer_rank = min(rank, MODULATION_RANK) if modulation else rank
        if layer_rank < 0:
            raise ValueError(f"rank {rank} is negative")
        if layer_rank > min(shape) // 2:
            raise ValueError(
                f"rank {rank} is too much for {name} of {shape[1]} inputs and {shape[0]} outputs: "
                f"it would need more bytes than it saves; ask for at most {min(shape) // 2}"
            )
        plans[name] = LayerPlan(
            shape=shape,
            rank=layer_rank,
            bias=module.bias is not None,
            weight_only=weight_only or modulation,
        )
    return plans, kept


def why_kept(name: str) -> str | None:
    """Why the linear layer or table `name` stays in 16 bit; None for one that does not."""
    parts = name.split(".")
    if parts[-1] in ("relative_attention_bias", "embed_tokens"):
        return KEPT_16BIT["relative_attention_bias"]
    return KEPT_16BIT.get(parts[0])
