"""The pictures of OpenAI's edits: files of a form, or in JSON data URLs and ids of pictures of this service."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from api.forms import MAX_FIELD_BYTES, TEXT_FIELDS
from config.catalog import ModelRow
from config.errors import InvalidRequest
from utils.requests import Wanted

MAX_PICTURES = 16  # of one edit
MAX_FIELDS = 40


def with_pictures(
    row: ModelRow, wanted: Wanted, pictures: list[str | bytes], *, is_masked: bool
) -> Wanted:
    """A model that edits by looking at pictures looks at all of them; others begin with the one."""
    if "references" in row.ways and not is_masked:
        return replace(wanted, image=None, reference_images=tuple(pictures))
    first, *others = pictures
    if others and "references" not in row.ways:
        raise InvalidRequest.of("image", f"model {row.id} takes one picture, not {len(pictures)}")
    return replace(wanted, image=first, reference_images=tuple(others))


def of_body(body: Mapping[str, Any]) -> list[str | bytes]:
    """Of the JSON form: `images: [{image_url | file_id}]`; a lone `image` is taken, too."""
    listed = body.get("images", body.get("image"))
    if listed is None:
        return []
    entries = listed if isinstance(listed, list) else [listed]
    found = [reference(f"images.{number}", entry) for number, entry in enumerate(entries)]
    return [picture for picture in found if picture is not None]


def reference(field: str, entry: Any) -> str | None:
    """A picture in JSON: a data URL, base64 or the id of a picture of this service."""
    if isinstance(entry, dict):
        entry = entry.get("image_url") or entry.get("file_id")
        entry = entry.get("url") if isinstance(entry, dict) else entry
    if entry is not None and not isinstance(entry, str):
        raise InvalidRequest.of(field, "must be {image_url: a data URL} or {file_id: an id}")
    return entry or None


async def of_form(request: Request) -> tuple[dict[str, Any], list[str | bytes], bytes | None]:
    """Fields, pictures (`image`, `image[]`) and the mask of a form."""
    reading = request.form(
        max_files=MAX_PICTURES + 1, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES
    )
    try:
        await reading
    except HTTPException as error:
        raise InvalidRequest.of("body", f"is no whole form: {str(error.detail)[:200]}") from error
    body: dict[str, Any] = {}
    pictures: list[str | bytes] = []
    mask: bytes | None = None
    async with request.form() as form:  # the same: it is read once
        for name, value in form.multi_items():
            if not isinstance(value, UploadFile):
                body[name] = _value(name, value)
            elif name == "mask":
                mask = await value.read()
            elif re.fullmatch(r"image(\[[0-9]{0,2}\])?", name):
                pictures.append(await value.read())
            else:
                raise InvalidRequest.of(name[:64], "is no file of this form; send image and mask")
    return body, pictures, mask


def _value(name: str, text: str) -> Any:
    """A field of a form: numbers, switches and lists are JSON in it."""
    if name in TEXT_FIELDS or text == "":
        return text or None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
