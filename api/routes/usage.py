"""`GET /usage`: what was drawn, by day, key, model and tag, and what it cost."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from enum import StrEnum
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Response
from fastapi.responses import JSONResponse
from pydantic import BeforeValidator

from api.services import Services, ServicesDep
from config.errors import InvalidRequest
from utils.usage import Group, Spent, Sums

router = APIRouter(tags=["usage"])

DEFAULT_DAYS = 30
DEFAULT_GROUPS = (Group.DAY, Group.KEY, Group.MODEL, Group.TAG)
MAX_ROWS = 10_000
MEASURES = ("jobs", "images", "megapixels", "gpu_seconds", "cost_usd", "last_at")
GROUPS_PATTERN = f"^({'|'.join(Group)})(,({'|'.join(Group)}))*$"
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_DIGITS = {"megapixels": 6, "gpu_seconds": 3, "cost_usd": 6}
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/json": {}, "text/csv": {"schema": {"type": "string"}}}}
}


def _is_written_as_a_day(value: Any) -> Any:
    """The library would take a number of seconds, too."""
    if isinstance(value, str) and not _DAY.fullmatch(value):
        raise ValueError("must be a day such as 2026-01-31")
    return value


Day = Annotated[date, BeforeValidator(_is_written_as_a_day)]


class UsageFormat(StrEnum):
    JSON = "json"
    CSV = "csv"


@router.get(
    "/usage", summary="Pictures, megapixels, GPU seconds and cost in groups", responses=_ANSWERS
)
async def read_usage(
    services: ServicesDep,
    first: Annotated[
        Day | None, Query(alias="from", description="The first day (UTC); left out: 30 days ago.")
    ] = None,
    last: Annotated[
        Day | None, Query(alias="to", description="The last day (UTC); left out: today.")
    ] = None,
    group: Annotated[
        str,
        Query(
            max_length=200,
            description=f"One or more of {', '.join(Group)}, with commas.",
            json_schema_extra={"pattern": GROUPS_PATTERN},
        ),
    ] = ",".join(DEFAULT_GROUPS),
    limit: Annotated[int, Query(ge=1, le=MAX_ROWS)] = 1000,
    offset: Annotated[int, Query(ge=0, le=2**53)] = 0,
    format: Annotated[UsageFormat | None, Query(description="`json` (default) or `csv`.")] = None,
    accept: Annotated[str | None, Header(include_in_schema=False)] = None,
) -> Response:
    """A key without the scope `admin` sees its own. Pictures drawn here cost nothing; `cost_usd` is the clouds'.

    A job with several tags counts under each of them, and once in `totals`.
    """
    today = services.plan.chance.now().date()
    last = today if last is None else last
    if first is None:
        first = last - timedelta(days=min(DEFAULT_DAYS, last.toordinal() - 1))
    if first > last:
        raise InvalidRequest.of("from", f"{first} is after `to`, {last}")
    groups = _groups(group)
    sums = await services.usage.sums(
        groups,
        from_day=first.isoformat(),
        to_day=last.isoformat(),
        owner=services.only_of,
        limit=limit,
        offset=offset,
    )
    rows = [_row(services, groups, row) for row in sums.rows]
    if format is UsageFormat.CSV or (format is None and _wants_csv(accept)):
        return Response(
            _csv(groups, rows),
            media_type="text/csv; charset=utf-8",
            headers={"Content-Disposition": f'attachment; filename="usage-{first}-{last}.csv"'},
        )
    spent = await services.usage.spent(services.access.owner or None, today.isoformat())
    return _json(services, first, last, groups, rows, sums, spent)


def _groups(text: str) -> list[Group]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in list(Group)]
    if unknown or not names:
        shown = f"knows no {unknown[0][:40]!r}" if unknown else "is empty"
        raise InvalidRequest.of("group", f"{shown}; one or more of {', '.join(Group)}")
    return [Group(name) for name in dict.fromkeys(names)]


def _row(services: Services, groups: Sequence[Group], row: Mapping[str, Any]) -> dict[str, Any]:
    shown = {name: _rounded(name, value) for name, value in row.items()}
    if Group.KEY in groups:
        shown["key_name"] = services.plan.keys.name_of(row["key"])
    return shown


def _json(
    services: Services,
    first: date,
    last: date,
    groups: Sequence[Group],
    rows: list[dict[str, Any]],
    sums: Sums,
    spent: Spent,
) -> Response:
    limits = services.plan.keys.limits_of(services.access.owner)
    return JSONResponse(
        {
            "from": first.isoformat(),
            "to": last.isoformat(),
            "group": [group.value for group in groups],
            "rows": rows,
            "totals": {name: _rounded(name, value) for name, value in sums.totals.items()},
            "has_more": sums.has_more,
            # With what waits and runs, as a budget counts it.
            "today": {
                "images": spent.images,
                "cost_usd": _rounded("cost_usd", spent.usd),
                "daily_images": limits.daily_images,
                "daily_usd": limits.daily_usd,
            },
        }
    )


def _csv(groups: Sequence[Group], rows: Sequence[Mapping[str, Any]]) -> str:
    columns = [group.value for group in groups]
    if Group.KEY in groups:
        columns.insert(columns.index(Group.KEY) + 1, "key_name")
    columns += MEASURES
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows([_cell(row[column]) for column in columns] for row in rows)
    return text.getvalue()


def _cell(value: Any) -> Any:
    """Tags and names come from clients: a spreadsheet must not read one as a formula."""
    if isinstance(value, str) and value.startswith(_FORMULA):
        return f"'{value}"
    return "" if value is None else value


def _rounded(name: str, value: Any) -> Any:
    return round(value, _DIGITS[name]) if name in _DIGITS else value


def _wants_csv(accept: str | None) -> bool:
    kinds = [part.split(";")[0].strip().lower() for part in (accept or "").split(",")]
    return "text/csv" in kinds and "application/json" not in kinds
