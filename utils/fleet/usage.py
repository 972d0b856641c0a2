"""What a fleet drew and what it cost, as all of its front doors wrote it into their database.

The same as `utils/usage.py` tells of the services of a machine, from the same columns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from models.precision import FLEET
from utils.job_store import JobStore
from utils.usage import Group, Spent, Sums, alias, columns_of, spent_of, sums_columns, sums_of


class FleetUsage:
    """A `utils.usage.Usage` of one database, whatever services the door's machine has besides."""

    def __init__(self, store: JobStore) -> None:
        self._store = store

    async def spent(self, owner: str | None, day: str) -> Spent:
        [row] = await self._store.read("spent", {"owner": owner, "day": day})
        return spent_of(row)

    async def sums(
        self,
        groups: Sequence[Group],
        *,
        from_day: str,
        to_day: str,
        owner: str | None,
        limit: int,
        offset: int,
    ) -> Sums:
        values = {"from_day": from_day, "to_day": to_day, "owner": owner}
        groups = list(dict.fromkeys(groups))
        [totals] = await self._select(f"SELECT {sums_columns()} {_from(())}", values)
        if not groups:
            return Sums(rows=[], totals=sums_of(totals), has_more=False)
        columns = ", ".join(f"{columns_of(group)} AS {alias(group)}" for group in groups)
        names = ", ".join(map(alias, groups))
        query = (
            f"SELECT {columns}, {sums_columns()} {_from(groups)} GROUP BY {names} ORDER BY {names} "
            "LIMIT :limit OFFSET :offset"
        )
        rows = await self._select(query, {**values, "limit": limit + 1, "offset": offset})
        found = [
            {**{group.value: row[alias(group)] for group in groups}, **sums_of(row)}
            for row in rows[:limit]
        ]
        return Sums(rows=found, totals=sums_of(totals), has_more=len(rows) > limit)

    async def _select(self, query: str, values: Mapping[str, Any]) -> Sequence[Any]:
        return await self._store.select(query, values)


def _from(groups: Sequence[Group]) -> str:
    tags = ""
    if Group.TAG in groups:
        tags = "LEFT JOIN LATERAL json_array_elements_text(CAST(used.tags AS json)) AS tag (value) ON true"
    return (
        f"FROM (SELECT '{FLEET.name}' AS service, usage.* FROM usage) AS used {tags} "
        "WHERE day BETWEEN :from_day AND :to_day "
        "AND (CAST(:owner AS TEXT) IS NULL OR owner = CAST(:owner AS TEXT))"
    )
