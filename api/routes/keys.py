"""`/admin/keys`: make, list and revoke the keys of this machine's services."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Response
from pydantic import BaseModel, ConfigDict, Field, field_validator

from api.json_body import StrictJsonRoute
from api.schemas import Text
from api.services import ServicesDep
from config.errors import Forbidden, InvalidRequest
from utils.clock import rfc3339
from utils.keys import MAX_NAME_CHARACTERS, Key, Limits, Scope, checked_name

router = APIRouter(tags=["keys"], route_class=StrictJsonRoute, prefix="/admin/keys")

MAX_NUMBER = 1_000_000
Number = Annotated[int, Field(ge=1, le=MAX_NUMBER)]


class NewKeyBody(BaseModel):
    """A key to make. Limits left out or null: none."""

    model_config = ConfigDict(strict=True, extra="forbid")

    name: Annotated[Text, Field(min_length=1, max_length=MAX_NAME_CHARACTERS)] = Field(
        description="What it is for; no two keys in use have the same."
    )
    scopes: Annotated[
        list[Annotated[Scope, Field(strict=False)]], Field(min_length=1, max_length=len(Scope))
    ] = Field(
        [Scope.GENERATE, Scope.LORAS],
        description="`generate`: draw, and see what it drew. `loras`: change the library. `admin`: everything.",
    )
    requests_per_minute: Number | None = None
    max_queued: Number | None = Field(None, description="Jobs that may wait at once.")
    daily_images: Number | None = Field(None, description="Images a day (UTC).")
    daily_usd: Annotated[float, Field(ge=0, le=MAX_NUMBER, allow_inf_nan=False)] | None = Field(
        None, description="What its cloud images may cost a day (UTC); 0: no cloud images."
    )
    expires_at: Annotated[datetime, Field(strict=False)] | None = Field(
        None, description="When it ends, as 2026-12-31T00:00:00Z; left out: never."
    )

    @field_validator("expires_at", mode="before")
    @classmethod
    def _is_a_text(cls, value: Any) -> Any:
        if value is not None and not isinstance(value, str):
            raise ValueError("must be a text such as 2026-12-31T00:00:00Z")
        return value


@router.post("", status_code=201, summary="Make a key; the answer is the only place it is shown")
async def make_key(body: NewKeyBody, services: ServicesDep, response: Response) -> dict[str, Any]:
    keys = services.plan.keys
    if not keys.are_needed:
        # It would shut everybody out who has none, and whoever reaches an open service could do it.
        raise Forbidden(
            "no key is asked for here; make the first one on the machine itself, with "
            "`python -m scripts.keys make NAME --scope admin`"
        )
    key, secret = await keys.make(
        name=checked_name(body.name),
        scopes=frozenset(body.scopes),
        limits=Limits(
            requests_per_minute=body.requests_per_minute,
            max_queued=body.max_queued,
            daily_images=body.daily_images,
            daily_usd=body.daily_usd,
        ),
        expires_at=_end(body.expires_at, keys.now()),
    )
    response.headers["Cache-Control"] = "no-store"
    return {**key_json(key, key.last_used_at), "key": secret}


@router.get("", summary="Every key, without its secret")
async def list_keys(
    services: ServicesDep,
    limit: Annotated[int, Query(ge=1, le=500)] = 500,
    offset: Annotated[int, Query(ge=0, le=2**53)] = 0,
) -> dict[str, Any]:
    """Those of the settings first, then in the order in which they were made; revoked ones too."""
    found = services.plan.keys.all()[offset : offset + limit]
    return {
        "keys": [key_json(key, used) for key, used in found],
        "limit": limit,
        "offset": offset,
    }


@router.delete("/{key_id}", status_code=204, summary="End a key at once")
async def revoke_key(
    key_id: Annotated[str, Path(min_length=1, max_length=64)], services: ServicesDep
) -> None:
    await services.plan.keys.revoke(key_id)


def key_json(key: Key, last_used_at: str | None) -> dict[str, Any]:
    return {
        "id": key.id,
        "prefix": key.shown or None,
        "name": key.name,
        "scopes": sorted(key.scopes),
        "requests_per_minute": key.limits.requests_per_minute,
        "max_queued": key.limits.max_queued,
        "daily_images": key.limits.daily_images,
        "daily_usd": key.limits.daily_usd,
        "created_at": key.created_at or None,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
        "last_used_at": last_used_at,
    }


def _end(moment: datetime | None, now: str) -> str | None:
    if moment is None:
        return None
    try:
        at = rfc3339(moment if moment.tzinfo else moment.replace(tzinfo=UTC))
    except OverflowError:  # the first and the last day there is, in another time zone
        raise InvalidRequest.of("expires_at", "is no day that a clock will show") from None
    if at <= now:
        raise InvalidRequest.of("expires_at", f"{at} is over; it is {now}")
    return at
