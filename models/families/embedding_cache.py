"""Embeddings of the texts encoded last, kept in main memory.

People draw one prompt many times with other seeds, and most negative prompts are the same text;
the text encoders, a quarter of FLUX.1's weights, then have nothing to do.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable

import torch

# What a family's text encoders make of a text: (1, seq, C) of each token, (1, C) pooled, and the like.
Embeddings = tuple[torch.Tensor, ...]

# 64 texts of FLUX.1 at 512 tokens (4 MiB each); little beside its 31 GiB of weights.
MAX_BYTES = 256 * 2**20


class EmbeddingCache:
    """Least recently used texts leave first, so that at most `max_bytes` are held."""

    def __init__(self, encode: Callable[[str], Embeddings], *, max_bytes: int = MAX_BYTES) -> None:
        self._encode = encode
        self._max_bytes = max_bytes
        self._entries: OrderedDict[tuple[str, Hashable], Embeddings] = OrderedDict()
        self.size_bytes = 0

    def __call__(self, text: str, encoders: Hashable = None) -> Embeddings:
        """The embeddings of a text, in main memory; whoever gets them must not write to them.

        `encoders` tells apart what the text encoders compute with, such as their LoRAs.
        """
        key = text, encoders
        if key in self._entries:
            self._entries.move_to_end(key)
            return self._entries[key]
        entry = tuple(tensor.cpu() for tensor in self._encode(text))
        self._entries[key] = entry
        self.size_bytes += _bytes_of(entry)
        while self.size_bytes > self._max_bytes:
            _, oldest = self._entries.popitem(last=False)
            self.size_bytes -= _bytes_of(oldest)
        return entry


def _bytes_of(entry: Embeddings) -> int:
    return sum(tensor.nbytes for tensor in entry)
