"""The FLUX.1 transformer at a small size, its token order, and attention that trains fast.

A picture of W x H pixels is (W / 16)(H / 16) tokens of 64 numbers, rows first, each token a 2x2
block of latent pixels, as `FluxPipeline` packs them.
"""

import torch
from diffusers import FluxTransformer2DModel
from diffusers.models.transformers.transformer_flux import FluxAttention
from torch.nn import functional

from scripts.embedded.text_encoders import CLIP_WIDTH, T5_WIDTH

HEADS = 6
HEAD_WIDTH = 32
DOUBLE_BLOCKS = 2
SINGLE_BLOCKS = 4
ROPE_AXES = (4, 14, 14)
TOKEN_PX = 16


def build_transformer() -> FluxTransformer2DModel:
    """Return an untrained transformer without a guidance embedding."""
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=DOUBLE_BLOCKS,
        num_single_layers=SINGLE_BLOCKS,
        attention_head_dim=HEAD_WIDTH,
        num_attention_heads=HEADS,
        joint_attention_dim=T5_WIDTH,
        pooled_projection_dim=CLIP_WIDTH,
        guidance_embeds=False,
        axes_dims_rope=ROPE_AXES,
    )


def pack_latents(latents: torch.Tensor) -> torch.Tensor:
    """Turn (B, 16, h, w) latents into (B, h/2 * w/2, 64) tokens."""
    batch, channels, height, width = latents.shape
    blocks = latents.view(batch, channels, height // 2, 2, width // 2, 2)
    tokens = (height // 2) * (width // 2)
    return blocks.permute(0, 2, 4, 1, 3, 5).reshape(batch, tokens, channels * 4)


def unpack_latents(tokens: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Turn (B, h/2 * w/2, 64) tokens into (B, 16, h, w) latents of `size` (width, height) px."""
    columns, rows = size[0] // TOKEN_PX, size[1] // TOKEN_PX
    blocks = tokens.view(tokens.shape[0], rows, columns, 16, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return blocks.reshape(tokens.shape[0], 16, rows * 2, columns * 2)


def position_ids(size: tuple[int, int], frame_scale: int = 1) -> torch.Tensor:
    """Return the (tokens, 3) positions of a picture of `size` (width, height) pixels.

    With `frame_scale` 2 each token stands where the middle of 2x2 tokens would be, so that a small
    picture spans the frame of one twice as large; 1 is what the pipeline uses.
    """
    columns, rows = size[0] // TOKEN_PX, size[1] // TOKEN_PX
    ids = torch.zeros(rows, columns, 3)
    middle = (frame_scale - 1) / 2
    ids[..., 1] += (torch.arange(rows) * frame_scale + middle)[:, None]
    ids[..., 2] += (torch.arange(columns) * frame_scale + middle)[None, :]
    return ids.view(rows * columns, 3)


class PlainAttention:
    """Joint attention by two matrix products and a softmax.

    On a CPU in bfloat16 the fused kernel's backward pass is slow: with it a training step at 128 px
    took 8.2 ms a sample, with this 5.2 ms.
    """

    _attention_backend = None
    _parallel_config = None

    def __call__(
        self,
        attn: FluxAttention,
        hidden_states: torch.Tensor,  # (B, seq, width)
        encoder_hidden_states: torch.Tensor | None = None,  # (B, text, width)
        attention_mask: None = None,
        image_rotary_emb: tuple[torch.Tensor, torch.Tensor] | None = None,  # (all, head width)
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Return the attended states, of the image and of the text where there are two."""
        query = _normed(_heads(attn.to_q(hidden_states)), attn.norm_q.weight)
        key = _normed(_heads(attn.to_k(hidden_states)), attn.norm_k.weight)
        value = _heads(attn.to_v(hidden_states))
        if encoder_hidden_states is not None:
            text_query = _heads(attn.add_q_proj(encoder_hidden_states))
            text_key = _heads(attn.add_k_proj(encoder_hidden_states))
            text_value = _heads(attn.add_v_proj(encoder_hidden_states))
            query = torch.cat([_normed(text_query, attn.norm_added_q.weight), query], dim=2)
            key = torch.cat([_normed(text_key, attn.norm_added_k.weight), key], dim=2)
            value = torch.cat([text_value, value], dim=2)
        cos, sin = (table.to(query.dtype) for table in image_rotary_emb)
        query, key = (_rotated(states, cos, sin) for states in (query, key))
        scores = torch.matmul(query * HEAD_WIDTH**-0.5, key.transpose(-1, -2))
        mixed = torch.matmul(scores.softmax(dim=-1).to(value.dtype), value)
        mixed = mixed.transpose(1, 2).flatten(2)
        if encoder_hidden_states is None:
            return mixed
        length = encoder_hidden_states.shape[1]
        text, image = mixed[:, :length], mixed[:, length:]
        return attn.to_out[0](image), attn.to_add_out(text)


def _heads(states: torch.Tensor) -> torch.Tensor:
    return states.unflatten(-1, (-1, HEAD_WIDTH)).transpose(1, 2)  # (B, heads, seq, head width)


def _normed(states: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return functional.rms_norm(states, (HEAD_WIDTH,), weight.to(states.dtype), 1e-6)


def _rotated(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    # a quarter turn of every pair of channels, as a product with a matrix of 0 and 1 and -1
    turn = torch.zeros(HEAD_WIDTH, HEAD_WIDTH, dtype=states.dtype, device=states.device)
    even = torch.arange(0, HEAD_WIDTH, 2)
    turn[even + 1, even] = -1
    turn[even, even + 1] = 1
    return states * cos + torch.matmul(states, turn) * sin
