"""A service that runs: whether it answers, and whether its database is its own."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from scripts.diagnosis import databases
from scripts.diagnosis.machine import ROOT, Finding, State

ANSWER_SECONDS = 5.0
ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def look_at(precision: str, host: str, port: int, data_dir: Path) -> list[Finding]:
    """Nothing to say of one that rests and whose database nobody has."""
    pids = _own_pids(precision, host, port)
    findings = []
    if pids:
        findings.append(_answers(precision, host, port, pids))
    database = data_dir / f"{precision}.sqlite3"
    holder = databases.holder_of(database)
    if holder is not None and holder not in pids and not databases.is_cleanup(database):
        findings.append(
            Finding(
                name="database in use",
                state=State.WRONG,
                text=f"{database} is held by {_described(holder)}, which does not listen on this service's port "
                f"{port}: a second service on one folder does not start",
                fix=f"end it (kill {holder}) if it is an earlier instance; two services need a FLUX_DATA_DIR each",
            )
        )
    return findings


def _own_pids(precision: str, host: str, port: int) -> list[int]:
    try:
        from utils import port_guard

        if port_guard.can_listen(host, port):
            return []
        is_ours = port_guard.runs_script(ROOT / f"main_{precision}.py")
        holders = port_guard.holders(host, port)
        return [holder.pid for holder in holders if holder is not None and is_ours(holder)]
    except Exception:  # what is wrong with a port has a line of its own
        return []


def _answers(precision: str, host: str, port: int, pids: list[int]) -> Finding:
    name, shown = "answers", ", ".join(map(str, pids))
    host = ANY_ADDRESS.get(host, host)
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    status, _ = _get(f"{url}/health/live")
    if status != 200:
        told = "nothing" if status is None else f"status {status}"
        return Finding(
            name=name,
            state=State.FAULT,
            text=f"the service runs (pid {shown}) and says {told} to GET {url}/health/live within "
            f"{ANSWER_SECONDS:.0f} s: it hangs",
            fix=f"see its last words (logs/{precision}.log, ./scripts/manage_logs.sh), end it (kill {shown}) and start "
            "it again",
        )
    status, body = _get(f"{url}/health/ready")
    if status == 503:
        return Finding(
            name=name,
            state=State.WRONG,
            text=f"it answers, and takes no jobs: {body.get('reason') or 'it does not say why'}",
            fix="do what the reason says; GET /health has the workers' states",
        )
    return Finding(name=name, state=State.OK, text=f"it answers at {url} and takes jobs")


def _get(url: str) -> tuple[int | None, dict[str, Any]]:
    """(status, body) of a GET; no status where nothing came."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # it is this machine
    try:
        with direct.open(url, timeout=ANSWER_SECONDS) as answer:
            return answer.status, _parsed(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, _parsed(error.read())
    except OSError:
        return None, {}


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        found = json.loads(body)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _described(pid: int) -> str:
    try:
        import psutil

        from utils import port_guard

        return port_guard.describe(psutil.Process(pid))
    except Exception:
        return f"pid {pid}"
