"""What every dialect needs: a body of JSON, our request made of it, sizes that a model draws.

A dialect makes a dict of the fields of `POST /generate` and has it checked as that route does. Errors
about those fields are told under the name that the client sent.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fastapi import Request
from pydantic import ValidationError

from api import errors
from api.json_body import parse, why_not_tellable
from api.schemas import GenerateBody
from api.services import Services
from config.catalog import SIZE_MULTIPLE_PX, ModelRow
from config.errors import FieldError, FluxError, InvalidRequest
from utils.requests import Wanted

MAX_NAME_CHARACTERS = 100  # of a field that the client made up


async def json_object(request: Request) -> dict[str, Any]:
    """The body, whatever it says that it is: many clients of these APIs name no content type."""
    content = await request.body()
    try:
        body = parse(content)
    except json.JSONDecodeError as error:
        raise InvalidRequest.of(
            "body", f"is not valid JSON: {error.msg} at character {error.pos}"
        ) from error
    if not isinstance(body, dict):
        raise InvalidRequest.of("body", "must be a JSON object")
    _require_tellable(body)
    return body


def _require_tellable(body: dict[str, Any]) -> None:
    """Dialects pass over fields, keep them and tell them again, so nothing may be in them that no answer can hold."""
    for field, value in body.items():
        reason = why_not_tellable(field) or why_not_tellable(value)
        if reason is not None:
            raise InvalidRequest.of(field[:MAX_NAME_CHARACTERS], reason)


def wanted_of(values: Mapping[str, Any], names: Mapping[str, str] | None = None) -> Wanted:
    """Our request of fields of `POST /generate`; None is left out.

    `names` says what the client calls a field. Raises InvalidRequest naming every field at fault.
    """
    there = {name: value for name, value in values.items() if value is not None}
    with in_words(names or {}):
        try:
            return GenerateBody.model_validate(there).wanted()
        except ValidationError as error:
            fields = errors.faults_of(error.errors(include_url=False), is_picture=True)
            raise InvalidRequest(_sentence(fields), fields=fields) from error


@contextmanager
def in_words(names: Mapping[str, str]) -> Iterator[None]:
    """Errors that name our fields, or something in them (`loras.0.name`), name the client's instead."""
    try:
        yield
    except FluxError as error:
        before = _sentence(error.fields)
        error.fields = tuple(
            FieldError(_in_words(names, field.field), field.message) for field in error.fields
        )
        if error.message == before:
            error.message = _sentence(error.fields)
        raise


def row_of(services: Services, model: str | None) -> ModelRow:
    """The model's facts; None is the service's default. Raises InvalidRequest for one that is not there."""
    return services.plan.resolver.model(model or services.plan.default.id)


def real_guidance(row: ModelRow) -> str:
    """The field that classifier-free guidance, away from the negative prompt, has for a model."""
    return "true_cfg_scale" if row.true_cfg_scale > 1 else "guidance_scale"


def fitted(row: ModelRow, width: int, height: int) -> tuple[int, int]:
    """The size nearest to this one that the model draws, in its shape as far as the limits let it.

    For dialects whose clients send sizes that nobody chose; the answer tells the size that was drawn.
    """
    scale = max(1.0, row.min_size / min(width, height))
    scale = min(scale, row.max_size / max(width, height))
    if row.cloud is not None:
        scale = min(scale, math.sqrt(row.cloud.max_pixels / (width * height)))
    return _side(row, width * scale), _side(row, height * scale)


def whole(body: Mapping[str, Any], name: str, low: int, high: int, default: int) -> int:
    """A whole number of the body. Raises InvalidRequest."""
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise InvalidRequest.of(name, f"must be a whole number, not {json.dumps(value)[:60]}")
    if not low <= value <= high:
        raise InvalidRequest.of(name, f"is {str(value)[:40]}; {low} to {high} are taken")
    return value


def text(body: Mapping[str, Any], name: str) -> str | None:
    """A text of the body; None where there is none. Raises InvalidRequest."""
    value = body.get(name)
    if value is not None and not isinstance(value, str):
        raise InvalidRequest.of(name, f"must be a text, not {json.dumps(value)[:60]}")
    return value or None


def _in_words(names: Mapping[str, str], field: str) -> str:
    return names.get(field) or names.get(field.partition(".")[0], field)


def _side(row: ModelRow, length: float) -> int:
    """In the model's limits; of a cloud's rounded down, so that two of them keep to its number of pixels."""
    if row.cloud is None:
        rounded = round(length / SIZE_MULTIPLE_PX) * SIZE_MULTIPLE_PX
    else:
        rounded = math.floor(length / row.cloud.size_multiple + 1e-9) * row.cloud.size_multiple
    return min(row.max_size, max(row.min_size, rounded))


def _sentence(fields: tuple[FieldError, ...] | list[FieldError]) -> str:
    return "; ".join(f"{field.field}: {field.message}" for field in fields)
