"""`python -m scripts.keys`: a key made by it works in services that run already, and ends at once."""

from __future__ import annotations

import contextlib
from pathlib import Path

import httpx2
import pytest

from scripts import keys
from tests.service import KeyedService, RunningService
from utils.keys import Limits, Scope, key_file


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLUX_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    status = keys.main(arguments)
    said = capsys.readouterr()
    return status, said.out, said.err


def test_make_prints_the_key_alone_and_keeps_its_limits(data_dir: Path, capsys) -> None:
    flags = "--scope generate --scope admin --rate 60 --max-queued 5 --daily-images 100 --daily-usd 2.5 --expires-days 30"
    status, out, err = run(capsys, "make", "laptop", *flags.split())
    assert status == 0 and out.startswith("flux_") and out.count("\n") == 1
    assert "not shown again" in err and out.strip() not in err
    (key,) = key_file(data_dir).all()
    assert key.name == "laptop" and key.scopes == {Scope.GENERATE, Scope.ADMIN}
    assert key.limits == Limits(
        requests_per_minute=60, max_queued=5, daily_images=100, daily_usd=2.5
    )
    assert key.expires_at is not None and key.expires_at > key.created_at


def test_make_without_flags_is_for_drawing_and_loras(data_dir: Path, capsys) -> None:
    run(capsys, "make", "laptop")
    (key,) = key_file(data_dir).all()
    assert (key.scopes, key.limits) == ({Scope.GENERATE, Scope.LORAS}, Limits())
    assert key.expires_at is None


def test_list_shows_keys_without_their_secrets(data_dir: Path, capsys) -> None:
    _, secret, _ = run(capsys, "make", "laptop", "--rate", "60", "--daily-usd", "0")
    status, out, _ = run(capsys, "list")
    assert status == 0 and secret.strip() not in out
    assert all(word in out for word in ("laptop", "60 requests a minute", "0 USD a day", "in use"))
    assert secret[:10] in out


@pytest.mark.parametrize("by_name", [True, False])
def test_revoke_ends_a_key(data_dir: Path, capsys, by_name: bool) -> None:
    run(capsys, "make", "laptop")
    (key,) = key_file(data_dir).all()
    status, out, err = run(capsys, "revoke", "laptop" if by_name else key.id)
    assert status == 0 and "does not work any more" in out and "last one" in err
    assert "revoked" in run(capsys, "list")[1]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("revoke", "nobody"), "nobody"),
        (("make", ""), "name"),
        (("make", "a\nb"), "name"),
        (("make", "taken"), "taken"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(data_dir: Path, capsys, arguments, word) -> None:
    run(capsys, "make", "taken")
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (1, "") and word in err and "Traceback" not in err


@pytest.mark.parametrize(
    "flags",
    [
        "--rate 0",
        "--rate x",
        "--daily-usd nan",
        "--daily-usd -1",
        "--scope root",
        "--expires-days 0",
    ],
)
def test_make_with_an_odd_limit_is_refused_and_makes_none(
    data_dir: Path, capsys, flags: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(capsys, "make", "laptop", *flags.split())
    assert ended.value.code == 2
    assert key_file(data_dir).all() == []


def test_file_that_cannot_be_read_is_named(data_dir: Path, capsys) -> None:
    data_dir.mkdir()
    (data_dir / "keys.sqlite3").write_bytes(b"no database at all" * 100)
    status, _, err = run(capsys, "list")
    assert status == 78 and str(data_dir / "keys.sqlite3") in err


def test_key_made_while_a_service_runs_works_there_and_ends_there(
    keyed_service: KeyedService, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setenv("FLUX_DATA_DIR", str(keyed_service.data_dir))
    _, secret, _ = run(capsys, "make", "of the script")
    with keyed_service.as_key(secret.strip()) as client:
        assert client.get("/jobs").status_code == 200
        run(capsys, "revoke", "of the script")
        keyed_service.wait_until(lambda: client.get("/jobs").status_code == 401)


def until_refused(service: RunningService, headers: dict[str, str]) -> None:
    service.wait_until(lambda: service.client.get("/jobs", headers=headers).status_code == 401)


def test_first_key_closes_services_that_run_and_opens_them_to_its_holder(
    start_engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """Both services of a machine, which share the folder."""
    shared = str(tmp_path / "shared")
    monkeypatch.setenv("FLUX_DATA_DIR", shared)
    services: list[RunningService] = [
        start_engine(wait_for_workers=False, FLUX_DATA_DIR=shared),
        start_engine(wait_for_workers=False, FLUX_DATA_DIR=shared, TEST_PRECISION="fp4"),
    ]
    for service in services:
        assert service.client.get("/jobs").status_code == 200
        refused = service.client.post("/admin/keys", json={"name": "from outside"})
        assert refused.status_code == 403 and "scripts.keys" in refused.json()["detail"]
    _, secret, _ = run(capsys, "make", "first")
    for service in services:
        until_refused(service, {})
        assert service.client.get("/health/live").status_code == 200
        headers = {"Authorization": f"Bearer {secret.strip()}"}
        assert service.client.get("/jobs", headers=headers).status_code == 200
    run(capsys, "revoke", "first")
    for service in services:
        until_refused(service, headers)
        assert service.client.get("/jobs").status_code == 401, "nor does it open them again"


def test_open_address_with_a_key_of_the_script_starts(
    start_engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setenv("FLUX_DATA_DIR", str(tmp_path / "data"))
    _, secret, _ = run(capsys, "make", "phone")
    service = start_engine(
        wait_for_workers=False, FLUX_HOST="0.0.0.0", FLUX_DATA_DIR=str(tmp_path / "data")
    )
    with contextlib.closing(httpx2.Client(base_url=service.url, timeout=120)) as client:
        assert client.get("/info").status_code == 401
        assert client.get("/info", headers={"x-key": secret.strip()}).status_code == 200
