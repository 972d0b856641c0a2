"""`flux keys`: the file of this machine's keys."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.failures import Status
from utils.keys import Limits, Scope, key_file


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return tmp_path / "data"  # which the command is told of


def test_create_prints_the_key_alone(flux, data_dir: Path) -> None:
    done = flux(
        "keys", "create", "laptop", "--scope", "generate", "--rate", "60", "--daily-usd", "0"
    )
    assert done.status == 0 and done.out.startswith("flux_") and done.out.count("\n") == 1
    (key,) = key_file(data_dir).all()
    assert (key.name, key.scopes) == ("laptop", {Scope.GENERATE})
    assert key.limits == Limits(requests_per_minute=60, daily_usd=0.0)


def test_create_as_json_has_the_key_and_its_limits(flux, data_dir: Path) -> None:
    told = flux("keys", "create", "laptop", "--expires-days", "30", "--json").json
    assert told["key"].startswith("flux_") and told["expires_at"] > told["created_at"]
    assert told["scopes"] == ["generate", "loras"]


def test_list_shows_no_secret(flux, data_dir: Path) -> None:
    secret = flux("keys", "create", "laptop").out.strip()
    for shown in (flux("keys", "list"), flux("keys", "list", "--json")):
        assert "laptop" in shown.out and secret not in shown.out


def test_list_of_none_says_so(flux, data_dir: Path) -> None:
    assert "no keys" in flux("keys", "list").err
    assert flux("keys", "list", "--json").json == {"keys": []}
    assert not data_dir.exists()


def test_revoke_ends_a_key_by_name(flux, data_dir: Path) -> None:
    flux("keys", "create", "laptop")
    done = flux("keys", "revoke", "laptop")
    assert done.status == 0 and "last one" in done.err
    assert key_file(data_dir).all()[0].revoked_at is not None


def test_revoke_of_several_where_one_is_not_known_ends_none(flux, data_dir: Path) -> None:
    flux("keys", "create", "laptop")
    done = flux("keys", "revoke", "laptop", "nobody", "--json")
    assert (done.status, done.error["code"]) == (Status.REFUSED, "not_found")
    assert key_file(data_dir).all()[0].revoked_at is None


@pytest.mark.parametrize(
    ("arguments", "status", "word"),
    [
        (("taken",), Status.REFUSED, "taken"),
        (("",), Status.REFUSED, "name"),
        (("new", "--scope", "root"), Status.USAGE, "admin"),
        (("new", "--rate", "0"), Status.USAGE, "--rate"),
        (("new", "--daily-usd", "nan"), Status.USAGE, "--daily-usd"),
        (("new", "--daily-usd", "-1"), Status.USAGE, "--daily-usd"),
        (("new", "--expires-days", "0"), Status.USAGE, "--expires-days"),
    ],
)
def test_create_that_cannot_be_makes_none(flux, data_dir: Path, arguments, status, word) -> None:
    flux("keys", "create", "taken")
    done = flux("keys", "create", *arguments)
    assert (done.status, done.out) == (status, "") and word in done.err
    assert len(key_file(data_dir).all()) == 1
