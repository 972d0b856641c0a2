"""LoRA files as bytes, by hand: a few kilobytes, no torch, each content its own."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping

# (out, in) by module. The first has the shapes of the embedded model.
EMBEDDED = {"lora_unet_single_blocks_0_linear2": (192, 960)}
FLUX1 = {"lora_unet_single_blocks_0_linear2": (3072, 15360)}
FLUX2 = {"lora_unet_single_blocks_0_linear2": (3072, 12288)}
SD15 = {"lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k": (640, 768)}
SDXL = {"lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k": (640, 2048)}


def lora(
    seed: float = 0.0,
    modules: Mapping[str, tuple[int, int]] = EMBEDDED,
    *,
    metadata: Mapping[str, str] | None = None,
    rank: int = 1,
    parts: tuple[str, str] = ("lora_down.weight", "lora_up.weight"),
) -> bytes:
    """A LoRA whose every weight is `seed`."""
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    data = b""
    for module, (rows, columns) in modules.items():
        for part, shape in zip(parts, ([rank, columns], [rows, rank]), strict=True):
            begin = len(data)
            data += struct.pack("<e", seed) * (shape[0] * shape[1])
            header[f"{module}.{part}"] = {
                "dtype": "F16",
                "shape": shape,
                "data_offsets": [begin, len(data)],
            }
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def padded(size_bytes: int) -> tuple[bytes, int]:
    """The start of a LoRA file of a size, and how many zero bytes follow it."""
    rows = (size_bytes - 4096) // (2 * (960 + 192))
    name = "lora_unet_single_blocks_0_linear2"
    header = {
        f"{name}.lora_down.weight": {
            "dtype": "F16", "shape": [rows, 960], "data_offsets": [0, rows * 1920],
        },
        f"{name}.lora_up.weight": {
            "dtype": "F16", "shape": [192, rows], "data_offsets": [rows * 1920, rows * 2304],
        },
    }  # fmt: skip
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text, rows * 2304
