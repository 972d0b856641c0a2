"""`flux lora`, `models`, `gpu`, `usage`: what a service has."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from cli.failures import Status
from tests.lora_files import lora
from tests.service import RunningService


@pytest.fixture
def content() -> bytes:
    return lora(secrets.randbelow(1000) / 1024)


def names(service: RunningService) -> set[str]:
    return {each["name"] for each in service.client.get("/loras").json()["loras"]}


def test_lora_add_list_and_rm(engine, engine_service: RunningService, content: bytes) -> None:
    Path("mine.safetensors").write_bytes(content)
    done = engine("lora", "add", "mine.safetensors", "--trigger", "in my style", "--json")
    (added,) = done.json["loras"]
    assert (added["trigger_words"], added["compatible_models"]) == (["in my style"], ["embedded"])
    (line,) = [
        line for line in engine("lora", "list").out.splitlines() if line.startswith(added["name"])
    ]
    assert "in my style" in line
    assert engine("lora", "rm", added["name"]).status == 0
    assert added["name"] not in names(engine_service)


def test_lora_add_with_a_name_that_cannot_be_leaves_none(
    engine, engine_service: RunningService, content: bytes
) -> None:
    before = names(engine_service)
    Path("mine.safetensors").write_bytes(content)
    done = engine("lora", "add", "mine.safetensors", "--name", "Not A Name")
    assert done.status == Status.REFUSED and "name" in done.err
    assert names(engine_service) == before


@pytest.mark.parametrize(
    ("name", "status", "word"),
    [
        ("model.ckpt", Status.USAGE, ".safetensors"),
        ("nowhere.safetensors", Status.WRONG, "nowhere.safetensors"),
        ("junk.safetensors", Status.REFUSED, "safetensors"),
    ],
)
def test_lora_add_of_what_is_none_is_refused(
    engine, engine_service: RunningService, name: str, status: Status, word: str
) -> None:
    before = names(engine_service)
    for junk in ("model.ckpt", "junk.safetensors"):
        Path(junk).write_bytes(b"PK\x03\x04 no LoRA at all")
    done = engine("lora", "add", name)
    assert done.status == status and word in done.err and "Traceback" not in done.err
    assert names(engine_service) == before


def test_lora_add_of_several_where_one_is_missing_sends_none(
    engine, engine_service: RunningService, content: bytes
) -> None:
    before = names(engine_service)
    Path("mine.safetensors").write_bytes(content)
    assert engine("lora", "add", "mine.safetensors", "nowhere.safetensors").status == Status.WRONG
    assert names(engine_service) == before


def test_lora_rm_of_one_that_is_not_there_removes_none(
    engine, engine_service: RunningService, content: bytes
) -> None:
    Path("mine.safetensors").write_bytes(content)
    name = engine("lora", "add", "mine.safetensors", "--json").json["loras"][0]["name"]
    done = engine("lora", "rm", name, "nonesuch")
    assert done.status == Status.REFUSED and "nonesuch" in done.err
    assert name in names(engine_service)
    assert engine("lora", "rm", name, "--json").json == {"removed": [name]}


def test_models_list_says_what_runs_here_and_why_not(at) -> None:
    done = at("models", "list")
    lines = {line.split()[0]: line for line in done.out.splitlines()}
    assert "runs here" in lines["embedded"]
    assert "needs a GPU" in lines["flux-dev"]
    assert at("models", "list", "--json").json["default_model"] == "embedded"


def test_models_download_of_what_ships_with_the_project_fetches_nothing(flux) -> None:
    done = flux("models", "download", "embedded", "--json")
    assert (done.status, done.json["ok"]) == (0, True)
    assert "comes with the project" in done.err


@pytest.mark.parametrize(
    ("arguments", "status", "word"),
    [
        ((), Status.USAGE, "name a model"),
        (("embedded", "--precision", "int8"), Status.USAGE, "bf16"),
        (("nonesuch",), Status.WRONG, "nonesuch"),
    ],
)
def test_models_download_that_cannot_be_says_why(flux, arguments, status, word: str) -> None:
    done = flux("models", "download", *arguments)
    assert done.status == status and word in done.err


def test_gpu_shows_workers_and_why_there_is_no_card(at) -> None:
    done = at("gpu")
    assert "cpu" in done.out and "no GPU" in done.err
    assert at("gpu", "--json").json["services"][0]["workers"][0]["name"] == "cpu"


def test_usage_counts_what_was_drawn(engine, engine_service: RunningService) -> None:
    tag = secrets.token_hex(8)
    job_id = engine_service.submit("counted", num_images=2, metadata={"tags": [tag]})
    engine_service.wait_for_job(job_id, "succeeded")
    rows = engine("usage", "--group", "tag", "--json").json["rows"]
    assert [row["images"] for row in rows if row["tag"] == tag] == [2]
    assert "together" in engine("usage").out


def test_usage_of_no_day_names_the_field(engine) -> None:
    done = engine("usage", "--from", "yesterday")
    assert done.status == Status.REFUSED and "from" in done.err


def test_usage_in_other_groups(engine, engine_service: RunningService) -> None:
    engine_service.wait_for_job(engine_service.submit("grouped"), "succeeded")
    assert engine("usage", "--group", "model,key").out.split()[:2] == ["model", "key"]
