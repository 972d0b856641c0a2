"""`/admin/cleanup`: what the last cleanup did, and one now."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query

from api.services import ServicesDep

router = APIRouter(tags=["service"], prefix="/admin/cleanup")


@router.get("", summary="What the last cleanup removed")
async def last_cleanup(services: ServicesDep) -> dict[str, Any]:
    last = services.cleanup.last
    return {"last": None if last is None else last.to_json()}


@router.post("", summary="Remove now what is too old or too much")
async def clean_up(
    services: ServicesDep,
    dry_run: Annotated[bool, Query(description="Say what would go, and remove nothing.")] = False,
) -> dict[str, Any]:
    return (await services.cleanup.run(dry_run=dry_run)).to_json()
