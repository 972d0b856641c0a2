"""`/images`: the gallery of everything on disk, and `/download/{filename}`."""

from __future__ import annotations

import asyncio
from pathlib import PurePath
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import FileResponse

from api import answers, forms, inspection
from api.services import Services, ServicesDep
from config.errors import InvalidRequest, NotFound
from models.types import OutputFormat
from utils import images
from utils.job import StoredImage

router = APIRouter(tags=["images"])

ImageId = Annotated[str, Path(min_length=1, max_length=64)]

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
_MEDIA_TYPES = {output_format.suffix: output_format.media_type for output_format in OutputFormat}
# A picture never changes under its name; it may be deleted, so caches ask again after a day.
_CACHE = "private, max-age=86400"


@router.get("/images", summary="Pictures, newest first")
async def list_images(
    services: ServicesDep,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    before: Annotated[
        str | None, Query(max_length=64, description="The id of the last picture seen.")
    ] = None,
    q: Annotated[str | None, Query(max_length=200, description="Words of the prompt.")] = None,
) -> dict[str, Any]:
    if before is not None:
        await services.image(before)
    found = await services.queue.store.images(
        limit=limit, before=before, words=q or None, owner=services.only_of
    )
    return {
        "images": [answers.stored_image_json(image) for image in found],
        "limit": limit,
    }


@router.post(
    "/images/inspect",
    summary="The request that a picture of a service was drawn from",
    openapi_extra=_FORM_BODY,
)
async def inspect_image(request: Request) -> dict[str, Any]:
    """`request` is what POST /generate takes; `made_by` is null for a picture of another program."""
    files, _ = await forms.read_files(request, ("file", "image"))
    if len(files) != 1:
        raise InvalidRequest.of("file", "is missing: the form has no picture in the field `file`")
    [(field, data)] = files.items()
    return await asyncio.to_thread(inspection.inspected, field, data)


@router.get("/images/{image_id}", summary="A picture's file", response_class=FileResponse)
async def read_image(image_id: ImageId, services: ServicesDep) -> Response:
    return await file_of(services, await services.image(image_id))


@router.get("/images/{image_id}/thumbnail", summary="A small JPEG", response_class=FileResponse)
async def read_thumbnail(image_id: ImageId, services: ServicesDep) -> Response:
    image = await services.image(image_id)
    await file_of(services, image)  # says so when the file is gone
    output_dir = services.plan.settings.storage.output_dir
    path = await asyncio.to_thread(images.thumbnail, output_dir, image.filename)
    if path is None:
        raise NotFound(f"picture {image.id} is damaged on disk and has no thumbnail")
    return FileResponse(path, media_type="image/jpeg", headers={"Cache-Control": _CACHE})


@router.put(
    "/images/{image_id}/pin", status_code=204, summary="Keep a picture from being cleaned up"
)
async def pin_image(image_id: ImageId, services: ServicesDep) -> None:
    image = await services.image(image_id)
    await services.queue.store.pin_image(image.id, True)


@router.delete(
    "/images/{image_id}/pin", status_code=204, summary="Let cleanup have a picture again"
)
async def unpin_image(image_id: ImageId, services: ServicesDep) -> None:
    image = await services.image(image_id)
    await services.queue.store.pin_image(image.id, False)


@router.delete("/images/{image_id}", status_code=204, summary="Delete a picture")
async def delete_image(image_id: ImageId, services: ServicesDep) -> None:
    image = await services.image(image_id)
    output_dir = services.plan.settings.storage.output_dir
    await services.queue.store.delete_image(
        image.id, lambda: images.remove(output_dir, image.filename)
    )
    if services.shared is not None:
        await services.shared.remove_picture(image.filename)


@router.get(
    "/download/{filename}",
    summary="A picture as an attachment",
    response_class=FileResponse,
)
async def download(
    filename: Annotated[str, Path(max_length=200)], services: ServicesDep
) -> Response:
    image = await services.image_by_filename(filename)
    answer = await file_of(services, image)
    answer.headers["Content-Disposition"] = f'attachment; filename="{image.filename}"'
    return answer


async def file_of(services: Services, image: StoredImage) -> FileResponse:
    """The file of a row; the name is the row's, never the client's."""
    path = await services.picture(image.filename)
    if not path.is_file():
        raise NotFound(f"picture {image.id} is not on disk any more")
    media_type = _MEDIA_TYPES[PurePath(image.filename).suffix]
    return FileResponse(
        path,
        media_type=media_type,
        headers={"Cache-Control": _CACHE, "X-Seed": str(image.seed)},
    )
