"""Reading the text that A1111 and its kin write into a picture, in the words of a request."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

_NEGATIVE = "Negative prompt: "
_LORA = re.compile(r"<lora:([^:<>]+):([0-9.+-]+)>")
_PAIR = re.compile(r'\b([A-Za-z][\w /]{0,40}):\s*("(?:\\.|[^"\\])*"|[^,]*)(?:,|$)')


def _size(text: str) -> dict[str, Any]:
    width, _, height = text.partition("x")
    return {"width": int(width), "height": int(height)}


# Their word, and what it is here.
_WORDS: dict[str, Callable[[str], dict[str, Any]]] = {
    "Steps": lambda text: {"num_inference_steps": int(text)},
    "CFG scale": lambda text: {"guidance_scale": float(text)},
    "Seed": lambda text: {"seed": int(text)},
    "Size": _size,
    "Model": lambda text: {"model": text},
    "Denoising strength": lambda text: {"strength": float(text)},
}


def words_of(text: str) -> dict[str, str]:
    """A text of A1111's form as the words and values that it holds, `Prompt` and `Negative prompt` among them."""
    *lines, last = text.strip().splitlines() or [""]
    if not re.match(r"\s*Steps: \d", last):
        lines, last = [*lines, last], ""
    prompt, _, negative = "\n".join(lines).partition(_NEGATIVE)
    words = {key: value.strip() for key, value in _PAIR.findall(last)}
    return {"Prompt": prompt.strip(), "Negative prompt": negative.strip(), **words} if text else {}


def read_infotext(text: str) -> dict[str, Any]:
    """The request in a text of A1111's form. Words that are not understood are left out."""
    *words, last = text.strip().splitlines() or [""]
    if not re.match(r"\s*Steps: \d", last):
        words, last = [*words, last], ""
    found: dict[str, Any] = {}
    for key, value in _PAIR.findall(last):
        if key in _WORDS:
            try:
                found |= _WORDS[key](value.strip('" '))
            except ValueError:
                continue  # not what this word means here
    starts = [number for number, line in enumerate(words) if line.startswith(_NEGATIVE)]
    first = starts[0] if starts else len(words)
    negative = "\n".join(words[first:]).removeprefix(_NEGATIVE).strip()
    prompt = "\n".join(words[:first])
    loras = [
        {"name": name, "weight": float(weight)}
        for name, weight in _LORA.findall(prompt)
        if re.fullmatch(r"[+-]?(\d+\.?\d*|\.\d+)", weight)
    ]
    found["prompt"] = _LORA.sub("", prompt).strip()
    if loras:
        found["loras"] = loras
    if negative:
        # With a negative prompt the one number that they have is the scale of real CFG.
        found["negative_prompt"] = negative
        if "guidance_scale" in found:
            found["true_cfg_scale"] = found.pop("guidance_scale")
    return found
