"""What a request sends in place of a picture, to the picture's bytes.

A field holds a picture as base64 or as a data URL, or names one: the id of a picture of this service,
or the SHA-256 of an input that is still kept. Nothing is ever fetched for a client, so other URLs are
refused by name.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from dataclasses import dataclass

from config.errors import InvalidRequest, NotFound
from config.settings import Settings
from utils.fleet.shared_files import INPUT, PICTURE, SharedFiles
from utils.input_pictures import SHA256, InputPicture, InputPictures, looked_at
from utils.job_store import JobStore

_URL = re.compile(r"\s*([A-Za-z][A-Za-z0-9+.-]{0,20}):")
_IMAGE_ID = re.compile(r"[0-9a-z]{1,56}-[0-9]{1,2}")  # a job's id and the picture's index
_DATA_URL = re.compile(r"\s*data:[^,]{0,200}?;base64,", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Looked:
    """A picture that a field stands for; `data` is None where the picture is kept already."""

    picture: InputPicture
    data: bytes | None


class InputSources:
    """Finds the pictures that fields stand for, and keeps them. Methods raise FluxError naming the field."""

    def __init__(
        self,
        settings: Settings,
        store: JobStore,
        pictures: InputPictures,
        shared: SharedFiles | None = None,
    ) -> None:
        self._output_dir = settings.storage.output_dir
        self._shared = shared
        self._store = store
        self._pictures = pictures

    async def look(self, field: str, source: str | bytes, owner: str | None = None) -> Looked:
        """With an `owner`, the pictures of this service are that one's alone."""
        if isinstance(source, str) and SHA256.fullmatch(source):
            if self._shared is not None:
                await self._shared.fetch(INPUT, source)
            return Looked(await asyncio.to_thread(self._pictures.read, field, source), None)
        if isinstance(source, str) and _IMAGE_ID.fullmatch(source):
            source = await self._of_this_service(field, source, owner)
        return await asyncio.to_thread(_look, field, source)

    async def data(self, field: str, source: str | bytes, owner: str | None = None) -> bytes:
        """The bytes of the picture that a field stands for."""
        looked = await self.look(field, source, owner)
        if looked.data is not None:
            return looked.data
        return await asyncio.to_thread(self._pictures.data, field, looked.picture.sha256)

    async def keep(self, looked: Looked) -> None:
        if looked.data is not None:
            await asyncio.to_thread(self._pictures.keep, looked.picture, looked.data)

    async def _of_this_service(self, field: str, image_id: str, owner: str | None) -> bytes:
        image = await self._store.image(image_id)
        if image is None or owner not in (None, image.owner):
            raise NotFound.of(field, f"there is no picture {image_id!r}; GET /images lists them")
        path = self._output_dir / image.filename
        if self._shared is not None:
            await self._shared.fetch(PICTURE, image.filename)
        try:
            return await asyncio.to_thread(path.read_bytes)
        except OSError as error:
            raise NotFound.of(field, f"picture {image_id} is not on disk any more") from error


def _look(field: str, source: str | bytes) -> Looked:
    data = source if isinstance(source, bytes) else decoded(field, source)
    return Looked(looked_at(field, data), data)


def decoded(field: str, text: str) -> bytes:
    """The bytes of base64 or a base64 data URL. Raises InvalidRequest for anything else."""
    found = _DATA_URL.match(text)
    if found is None and (url := _URL.match(text)):
        what = "a data URL without base64" if url[1].lower() == "data" else f"a URL ({url[1]}:)"
        raise InvalidRequest.of(
            field,
            f"is {what}; nothing is fetched here, so send the picture itself as base64 or as "
            "data:image/png;base64,…",
        )
    content = text[found.end() :] if found else text
    try:
        return base64.b64decode("".join(content.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest.of(
            field,
            "is neither base64 nor a data URL nor the id of a picture of this service",
        ) from error
