"""What a picture says of the request that it was drawn from, in the words of `POST /generate`."""

from __future__ import annotations

import json
from typing import Any

from api.json_body import why_not_tellable
from api.schemas import GenerateBody
from config.errors import BadPicture, NotAPicture
from utils.infotext import read_infotext
from utils.metadata import PARAMETERS_KEY, REQUEST_KEY, read_texts
from utils.picture_header import read_header

_MADE_BY = ("precision", "engine", "model_reason")


def inspected(field: str, data: bytes) -> dict[str, Any]:
    """`made_by` is None for a picture of another program. Raises NotAPicture, BadPicture."""
    try:
        if read_header(data) is None:
            raise NotAPicture.of(field, "is no PNG, JPEG or WebP")
        texts = read_texts(data)
    except ValueError as error:
        raise BadPicture.of(field, f"{error}; send the file whole") from error
    parameters = texts.get(PARAMETERS_KEY)
    if REQUEST_KEY in texts:
        described = _described(field, texts[REQUEST_KEY])
        made_by = {name: described.get(name) for name in _MADE_BY}
        request = _request(described["request"])
    elif parameters is not None:
        made_by, request = None, read_infotext(parameters)
    else:
        raise BadPicture.of(
            field, f"has neither a {REQUEST_KEY} nor a {PARAMETERS_KEY} text: no request is in it"
        )
    return {"request": request, "made_by": made_by, "parameters": parameters}


def _described(field: str, text: str) -> dict[str, Any]:
    try:
        described = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadPicture.of(field, f"its {REQUEST_KEY} text is no JSON") from error
    if not isinstance(described, dict) or not isinstance(described.get("request"), dict):
        raise BadPicture.of(field, f"its {REQUEST_KEY} text holds no request")
    if reason := why_not_tellable(described):
        raise BadPicture.of(field, f"its {REQUEST_KEY} text {reason}")
    return described


def _request(written: dict[str, Any]) -> dict[str, Any]:
    """As a body has it; what a picture of another version says besides is left out."""
    known = {name: value for name, value in written.items() if name in GenerateBody.model_fields}
    loras = known.get("loras")
    if isinstance(loras, list):
        known["loras"] = [_lora(lora) for lora in loras if isinstance(lora, dict)]
    return known


def _lora(written: dict[str, Any]) -> dict[str, Any]:
    lora = {name: written[name] for name in ("name", "weight") if name in written}
    words = written.get("trigger_words")
    if isinstance(words, list) and len(words) < 2:  # several are the LoRA's own
        lora["trigger_word"] = words[0] if words else ""
    return lora
