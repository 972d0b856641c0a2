"""One process of several that claim from the same line: prints what each thread claimed, in order.

`python -m tests.utils.database.claims URL DOOR THREADS`; it begins when its input is closed.
"""

from __future__ import annotations

import asyncio
import json
import sys

from utils.database.postgres import PostgresDatabase
from utils.job_store import JobStore

NOW = "2026-01-31T12:00:00.000Z"


async def main(url: str, door: str, threads: int) -> None:
    stores = []
    for _ in range(threads):
        database = PostgresDatabase(url, door)
        database.epoch = 1  # each thinks that it routes
        stores.append(await JobStore.of(database))
    sys.stdin.read()
    print(json.dumps(await asyncio.gather(*map(claimed, stores))))
    for store in stores:
        await store.close()


async def claimed(store: JobStore) -> list[str]:
    ids: list[str] = []
    while True:
        jobs = await store.claim("w", NOW, models=["embedded"], limit=1, choose=lambda head: head)
        if jobs:
            ids += [job.id for job in jobs]
        elif not (await store.counts())["queued"]:
            return ids


asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
