"""Pictures of ComfyUI's clients: uploads for LoadImage, and what was drawn, by its file's name."""

from __future__ import annotations

from typing import Any

from fastapi import Query, Request, Response
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from api.auth import owner_of
from api.dialects.comfy_runs import runs_of
from api.forms import MAX_FIELD_BYTES
from api.routes.images import file_of
from api.services import ServicesDep
from config.errors import InvalidRequest, NotFound


async def view(
    services: ServicesDep, filename: str = Query("", max_length=200), type: str = "output"
) -> Response:
    """A picture that was drawn. Uploads are taken and not given out again."""
    if type not in ("output", "temp"):
        raise NotFound(f"pictures of type {type[:20]!r} are not given out")
    return await file_of(services, await services.image_by_filename(filename))


async def upload_image(request: Request, services: ServicesDep) -> dict[str, Any]:
    """Keeps the picture under its content; the name in the answer is the one to use in LoadImage."""
    reading = request.form(max_files=1, max_fields=10, max_part_size=MAX_FIELD_BYTES)
    try:
        await reading
    except HTTPException as error:
        raise InvalidRequest.of("body", f"is no whole form: {str(error.detail)[:200]}") from error
    async with request.form() as form:  # the same: it is read once
        file = form.get("image")
        if not isinstance(file, UploadFile):
            raise InvalidRequest.of(
                "image", "is missing: the form has no file in the field `image`"
            )
        data, name = await file.read(), (file.filename or "")[:200]
    looked = await services.sources.look("image", data)
    await services.sources.keep(looked)
    runs_of(request).note_upload(owner_of(request), name, looked.picture.sha256)
    return {"name": f"{looked.picture.sha256}.png", "subfolder": "", "type": "input"}
