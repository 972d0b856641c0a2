"""LoRAs as A1111's prompts have them, `<lora:name:0.8>`, read into ours."""

from __future__ import annotations

import re
from typing import Any

from config.errors import InvalidRequest
from utils.lora_choice import MAX_LORAS, MAX_WEIGHT

_LORA = re.compile(r"<(?:lora|lyco):([^:<>]+)(?::([^<>]*))?>", re.IGNORECASE)
_NETWORK = re.compile(r"<(hypernet|[a-z]{2,12}):[^:<>]+(:[^<>]*)?>", re.IGNORECASE)


def loras_of(prompt: str) -> tuple[str, list[dict[str, Any]]]:
    """The prompt without its `<lora:name:weight>`, and these as our LoRAs. Raises InvalidRequest."""
    loras = []
    for name, weights in _LORA.findall(prompt):
        loras.append({"name": name.strip(), "weight": _weight(name, weights)})
    if len(loras) > MAX_LORAS:
        raise InvalidRequest.of(
            "prompt", f"names {len(loras)} LoRAs; at most {MAX_LORAS} are taken"
        )
    left = prompt
    if loras:  # without the gaps and commas that they leave
        left = re.sub(r"[ \t]{2,}", " ", _LORA.sub("", prompt)).strip(" ,\t")
    other = _NETWORK.search(left)
    if other:
        raise InvalidRequest.of(
            "prompt", f"{other[0][:60]}: only <lora:name:weight> is known here; remove it"
        )
    return left, loras


def _weight(name: str, weights: str) -> float:
    """Of `0.8`, or of `0.8:0.8` for text encoder and transformer, which are one here."""
    if not weights.strip():
        return 1.0
    parts = {part.strip().rpartition("=")[2] for part in weights.split(":")}
    try:
        [weight] = {float(part) for part in parts}
        if not abs(weight) <= MAX_WEIGHT:
            raise ValueError(f"{weight} is too much, or no number")
    except ValueError as error:
        raise InvalidRequest.of(
            "prompt",
            f"<lora:{name[:40]}:{weights[:20]}>: send one weight from -{MAX_WEIGHT:g} to "
            f"{MAX_WEIGHT:g}, as in <lora:{name[:40]}:0.8>",
        ) from error
    return weight
