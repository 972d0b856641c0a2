"""`/loras`: the library, uploads into it, and the service's default LoRAs."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from api import answers, uploads
from api.json_body import StrictJsonRoute
from api.older_fields import LORA_FOLDER
from api.schemas import ApplyLoraBody, ChangeLoraBody, RemoveLoraBody
from api.services import Services, ServicesDep
from config.errors import InvalidRequest
from models.lora.entry import LoraEntry
from models.lora.names import clean_filename

router = APIRouter(tags=["loras"], route_class=StrictJsonRoute)

LoraName = Annotated[str, Path(max_length=400)]

_KNOWN = {200: {"description": "The same content is in the library already: its entry"}}
_RAW_BODY = {
    "requestBody": {
        "required": True,
        "description": "The bytes of a .safetensors file, at most FLUX_MAX_LORA_BYTES.",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}
_FORM_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {"file": {"type": "string", "format": "binary"}},
                }
            }
        },
    }
}


@router.get("/loras", summary="The library: what each LoRA is, and which models it fits")
async def list_loras(services: ServicesDep) -> dict[str, Any]:
    entries = await services.plan.loras.entries()
    coming = [answers.fetching_json(each) for each in services.plan.loras.fetching]
    return {"loras": [*coming, *(_json(services, entry) for entry in entries)]}


@router.get("/loras/{name}", summary="One LoRA")
async def read_lora(name: LoraName, services: ServicesDep) -> dict[str, Any]:
    return _json(services, await services.plan.loras.find(name))


@router.put(
    "/loras/{name}",
    status_code=201,
    summary="Upload a LoRA as the raw body",
    responses=_KNOWN,
    openapi_extra=_RAW_BODY,
)
async def put_lora(
    request: Request, name: LoraName, services: ServicesDep, response: Response
) -> dict[str, Any]:
    """`name` is the file's, and ends in `.safetensors`."""
    filename = clean_filename(name)
    loras, server = services.plan.loras, services.plan.settings.server
    with await loras.receive(uploads.declared_bytes(request)) as file:
        blocks = uploads.stream(request, server.upload_patience_seconds)
        await uploads.receive_body(blocks, file)
        entry, is_new = await loras.add(file, filename)
    response.status_code = 201 if is_new else 200
    return _json(services, entry)


@router.post(
    "/loras",
    status_code=201,
    summary="Upload LoRAs as the files of a form",
    responses=_KNOWN,
    openapi_extra=_FORM_BODY,
)
async def post_loras(request: Request, services: ServicesDep, response: Response) -> dict[str, Any]:
    """One file: its LoRA. Several: `{"loras": [...]}`; none is kept unless all can be."""
    loras, server = services.plan.loras, services.plan.settings.server
    await loras.require_room(uploads.declared_bytes(request))
    content_type = request.headers.get("content-type", "")
    with uploads.FormReceiver(content_type, loras.place) as form:
        blocks = uploads.stream(request, server.upload_patience_seconds)
        received = await form.receive(blocks)
        added = await loras.add_all([(each.file, each.filename) for each in received])
    response.status_code = 201 if any(is_new for _, is_new in added) else 200
    answered = [_json(services, entry) for entry, _ in added]
    return answered[0] if len(answered) == 1 else {"loras": answered}


@router.post(
    "/upload-lora",
    status_code=201,
    summary="The older name of POST /loras",
    responses=_KNOWN,
    openapi_extra=_FORM_BODY,
)
async def upload_lora(
    request: Request, services: ServicesDep, response: Response
) -> dict[str, Any]:
    """Its older words too: `file_path` is what a request may call the LoRA."""
    answer = await post_loras(request, services, response)
    if "filename" not in answer:
        return answer
    return {
        **answer,
        "message": "LoRA file uploaded successfully",
        "file_path": f"{LORA_FOLDER}{answer['filename']}",
        "size": answer["size_bytes"],
    }


@router.patch("/loras/{name}", summary="Rename a LoRA, or give it other trigger words")
async def change_lora(
    name: LoraName, body: ChangeLoraBody, services: ServicesDep
) -> dict[str, Any]:
    entry = await services.plan.loras.change(
        name, new_name=body.name, trigger_words=body.trigger_words
    )
    return _json(services, entry)


@router.delete("/loras/{name}", status_code=204, summary="Delete a LoRA; jobs that have it keep it")
async def delete_lora(name: LoraName, services: ServicesDep) -> None:
    await services.plan.loras.remove(name)


@router.get("/lora-status", summary="The LoRAs that requests get which name none")
async def lora_status(services: ServicesDep) -> dict[str, Any]:
    return await _status(services)


@router.post("/apply-lora", summary="Set the LoRAs that requests get which name none")
async def apply_lora(
    services: ServicesDep,
    body: ApplyLoraBody | None = None,
    lora_name: Annotated[
        str | None, Query(description="Of the older form, which has no body.")
    ] = None,
    weight: Annotated[float | None, Query()] = None,
    lora_weight: Annotated[float | None, Query()] = None,
) -> dict[str, Any]:
    """The LoRAs are in the body, or in the query as `lora_name` and `weight`."""
    if body is None:
        body = _of_query(lora_name, lora_weight if weight is None else weight)
    choices = body.choices() or ()
    await services.plan.loras.apply(choices)
    names = ", ".join(choice.name for choice in choices)
    told = f"LoRA {names} applied successfully" if names else "no LoRA is applied"
    return {**await _status(services), "message": told, "status": "applied"}


@router.post("/remove-lora", summary="End a default LoRA, or all of them")
async def remove_lora(services: ServicesDep, body: RemoveLoraBody | None = None) -> dict[str, Any]:
    await services.plan.loras.take_back(None if body is None else body.name)
    done = {"message": "LoRA removed successfully", "status": "removed"}
    return {**await _status(services), **done}


def _of_query(name: str | None, weight: float | None) -> ApplyLoraBody:
    if name is None:
        raise InvalidRequest.of(
            "body",
            'is missing; send {"name": "…", "weight": 1.0} with `Content-Type: application/json`',
        )
    try:
        return ApplyLoraBody.model_validate(
            {"lora_name": name} if weight is None else {"lora_name": name, "lora_weight": weight}
        )
    except ValidationError as error:
        raise RequestValidationError(
            [{**item, "loc": ("query", *item["loc"])} for item in error.errors()]
        ) from error


async def _status(services: Services) -> dict[str, Any]:
    loras = services.plan.loras
    await loras.refresh()
    default = [answers.default_lora_json(each, loras.library) for each in loras.defaults]
    first = default[0] if default else None
    return {
        "applied": bool(default),
        "loras": default,
        # The older words, which know one LoRA.
        "lora_applied": bool(default),
        "lora_name": first["name"] if first else None,
        "lora_weight": first["weight"] if first else None,
        "current_lora": {"name": first["name"], "weight": first["weight"]} if first else None,
    }


def _json(services: Services, entry: LoraEntry) -> dict[str, Any]:
    return answers.lora_json(entry, services.plan.loras.compatible_models(entry))
