"""Forms with a picture in them, whose other fields are those of `POST /generate`."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from api.schemas import GenerateBody
from config.catalog import MAX_REFERENCES
from config.errors import InvalidRequest, NotAPicture

MAX_FIELDS = 40
MAX_FIELD_BYTES = 64 * 2**10
# Fields whose text is a text; in the others it is JSON.
TEXT_FIELDS = frozenset(
    {"prompt", "negative_prompt", "model", "backend", "output_format", "lora_name"}
)
# By what name a picture comes: `file` is what forms call their file.
PICTURE_FIELDS = {"image": "image", "file": "image", "mask": "mask"}
# The field that may stand in a form several times, and what some clients call it then.
REFERENCES = "reference_images"
REFERENCE_FIELDS = frozenset({REFERENCES, f"{REFERENCES}[]"})


async def read_files(
    request: Request, names: Collection[str]
) -> tuple[dict[str, bytes], dict[str, str]]:
    """A form's files and its other fields. Raises InvalidRequest, NotAPicture for what is no form."""
    files, fields, _ = await _read(request, names, ())
    return files, fields


async def read_request(request: Request) -> tuple[GenerateBody, dict[str, Any]]:
    """A form's request and its pictures: `image`, `mask` and `reference_images`, where they are there.

    Raises RequestValidationError as a JSON body of the same fields would.
    """
    files, fields, references = await _read(request, PICTURE_FIELDS, REFERENCE_FIELDS)
    pictures: dict[str, Any] = {}
    for name, data in files.items():
        field = PICTURE_FIELDS[name]
        if field in pictures:
            first = next(each for each in files if PICTURE_FIELDS[each] == field)
            raise InvalidRequest.of(name, f"is the same as {first}, and both are there; send one")
        pictures[field] = data
    values = {name: _value(name, text) for name, text in fields.items() if text != ""}
    for name in PICTURE_FIELDS:
        if name == "file" and name in values:
            values.setdefault("image", values.pop(name))
    if references:
        pictures[REFERENCES] = tuple(references)
    if not references and "image" not in pictures and "image" not in values:
        raise InvalidRequest.of("image", "is missing: the form has no file in the field `image`")
    # What the model checks of a picture's field is whether it is there.
    shown = values | {name: "file" for name in pictures if name not in values}
    if references:
        shown[REFERENCES] = [text if isinstance(text, str) else "file" for text in references]
    try:
        return GenerateBody.model_validate(shown), pictures
    except ValidationError as error:
        found = [{**item, "loc": ("body", *item["loc"])} for item in error.errors()]
        raise RequestValidationError(found, body=values) from error


async def _read(
    request: Request, names: Collection[str], repeated: Collection[str]
) -> tuple[dict[str, bytes], dict[str, str], list[str | bytes]]:
    """Files and other fields by name, and in their order the pictures of the fields that may be `repeated`."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise NotAPicture.of(
            "body", f"is no form; send multipart/form-data with the picture in {sorted(names)[0]}"
        )
    files: dict[str, bytes] = {}
    fields: dict[str, str] = {}
    several: list[str | bytes] = []
    max_files = len(names) + (MAX_REFERENCES if repeated else 0)
    reading = request.form(
        max_files=max_files, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES
    )
    try:
        await reading
    except HTTPException as error:
        raise InvalidRequest.of("body", f"is no whole form: {str(error.detail)[:200]}") from error
    async with request.form() as form:  # the same: it is read once
        for name, value in form.multi_items():
            if name in repeated:
                several += [await value.read()] if isinstance(value, UploadFile) else _texts(value)
            elif name in files or name in fields:
                raise InvalidRequest.of(name[:64], "stands twice in the form; send it once")
            elif not isinstance(value, UploadFile):
                fields[name] = value
            elif name in names:
                files[name] = await value.read()
            else:
                taken = ", ".join(sorted({*names, *repeated}))
                raise InvalidRequest.of(name[:64], f"is no file of this form; send one in {taken}")
    return files, fields, several


def _texts(text: str) -> list[str]:
    """What a text stands for: one picture, a JSON list of them, or none."""
    if text.lstrip().startswith("["):
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            return [text]
        if isinstance(found, list) and all(isinstance(item, str) for item in found):
            return found
    return [text] if text else []


def _value(name: str, text: str) -> Any:
    if name in TEXT_FIELDS or name in PICTURE_FIELDS:
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text  # refused by its field's own words
