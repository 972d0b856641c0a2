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
from config.errors import InvalidRequest, NotAPicture

MAX_FIELDS = 40
MAX_FIELD_BYTES = 64 * 2**10
# Fields whose text is a text; in the others it is JSON.
TEXT_FIELDS = frozenset(
    {"prompt", "negative_prompt", "model", "backend", "output_format", "lora_name"}
)
# By what name a picture comes: `file` is what forms call their file.
PICTURE_FIELDS = {"image": "image", "file": "image", "mask": "mask"}


async def read_files(
    request: Request, names: Collection[str]
) -> tuple[dict[str, bytes], dict[str, str]]:
    """A form's files and its other fields. Raises InvalidRequest, NotAPicture for what is no form."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise NotAPicture.of(
            "body", f"is no form; send multipart/form-data with the picture in {sorted(names)[0]}"
        )
    files: dict[str, bytes] = {}
    fields: dict[str, str] = {}
    reading = request.form(
        max_files=len(names), max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES
    )
    try:
        await reading
    except HTTPException as error:
        raise InvalidRequest.of("body", f"is no whole form: {str(error.detail)[:200]}") from error
    async with request.form() as form:  # the same: it is read once
        for name, value in form.multi_items():
            if name in files or name in fields:
                raise InvalidRequest.of(name[:64], "stands twice in the form; send it once")
            if not isinstance(value, UploadFile):
                fields[name] = value
            elif name in names:
                files[name] = await value.read()
            else:
                raise InvalidRequest.of(
                    name[:64], f"is no file of this form; send one in {', '.join(sorted(names))}"
                )
    return files, fields


async def read_request(request: Request) -> tuple[GenerateBody, dict[str, bytes]]:
    """A form's request and its pictures, `image` and perhaps `mask`.

    Raises RequestValidationError as a JSON body of the same fields would.
    """
    files, fields = await read_files(request, PICTURE_FIELDS)
    pictures: dict[str, bytes] = {}
    for name, data in files.items():
        field = PICTURE_FIELDS[name]
        if field in pictures:
            raise InvalidRequest.of(name, f"is the same as {field}, and both are there; send one")
        pictures[field] = data
    values = {name: _value(name, text) for name, text in fields.items() if text != ""}
    for name in PICTURE_FIELDS:
        if name == "file" and name in values:
            values.setdefault("image", values.pop(name))
    if "image" not in pictures and "image" not in values:
        raise InvalidRequest.of("image", "is missing: the form has no file in the field `image`")
    # What the model checks of a picture's field is whether it is there.
    shown = values | {name: "file" for name in pictures if name not in values}
    try:
        return GenerateBody.model_validate(shown), pictures
    except ValidationError as error:
        found = [{**item, "loc": ("body", *item["loc"])} for item in error.errors()]
        raise RequestValidationError(found, body=values) from error


def _value(name: str, text: str) -> Any:
    if name in TEXT_FIELDS or name in PICTURE_FIELDS:
        return text
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text  # refused by its field's own words
