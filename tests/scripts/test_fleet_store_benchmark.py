"""What the benchmark of the fleet's store does as a front door."""

from __future__ import annotations

import asyncio
import io
import json
import sqlite3
from pathlib import Path

import pytest

from scripts.bench import fleet_store


def test_a_door_appends_its_jobs_and_says_when_it_began_and_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    store = tmp_path / "fleet.sqlite3"
    asyncio.run(fleet_store._append_as_a_door(str(store), "door0", 40))
    ready, span = capsys.readouterr().out.splitlines()
    began, ended = json.loads(span)
    assert ready == "ready" and began <= ended
    with sqlite3.connect(store) as db:
        assert db.execute("SELECT count(*) FROM job WHERE status = 'queued'").fetchone() == (40,)
    db.close()


def test_claims_are_counted_to_their_ends(tmp_path: Path) -> None:
    store = tmp_path / "fleet.sqlite3"

    async def filled() -> None:
        opened = await fleet_store._store(str(store), "door0")
        for number in range(5):
            await opened.insert(
                f"{number}", fleet_store.REQUEST, fleet_store.NOW, refuse=fleet_store._refuse
            )
        await opened.close()

    asyncio.run(filled())
    assert asyncio.run(fleet_store._claimed(str(store), 5)) > 0
    with sqlite3.connect(store) as db:
        assert db.execute("SELECT count(*) FROM job WHERE status = 'succeeded'").fetchone() == (5,)
    db.close()
