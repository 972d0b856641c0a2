"""What differs between the models that get four bits: one frozen value for each family that can."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch

from config.catalog import ModelRow
from config.errors import ModelUnavailable
from models.fp4 import streamed_klein, text_encoding
from models.fp4.streaming import StreamedFill, StreamedFlux

EncodePrompts = Callable[..., tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """How one family's 16-bit folder is run and which parts of it get four bits."""

    streamed: type[StreamedFlux]
    encode_prompts: EncodePrompts
    text_encoder: str | None  # a component that gets four bits too, where it is large

    @property
    def parts(self) -> tuple[str, ...]:
        """The components whose weights decide a four-bit copy."""
        return ("transformer",) if self.text_encoder is None else ("transformer", self.text_encoder)


def _flux1(streamed: type[StreamedFlux]) -> Kind:
    return Kind(
        streamed=streamed,
        encode_prompts=text_encoding.encode_prompts,
        text_encoder="text_encoder_2",
    )


# Kontext is calibrated on what it draws from texts: what it looks at are latents of the same kind.
KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "flux1": _flux1(StreamedFlux),
        "flux1-kontext": _flux1(StreamedFlux),
        "flux1-fill": _flux1(StreamedFill),
        "flux2": Kind(
            streamed=streamed_klein.StreamedKlein,
            encode_prompts=streamed_klein.encode_prompts,
            text_encoder=None,
        ),
    }
)


def kind_of(row: ModelRow) -> Kind:
    """Raises ModelUnavailable for a family that gets no four bits."""
    if row.family not in KINDS:
        raise ModelUnavailable(
            f"model {row.id}: four bits are for {', '.join(KINDS)}, not {row.family}; "
            "use the service of another precision"
        )
    return KINDS[row.family]
