"""Several models in one worker, one of them fetched when it is asked for: on a real worker and a stand-in Hub."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from config.catalog import load_catalog
from config.settings import ROOT
from tests import hub as stand_in
from tests.hub import Hub
from tests.service import ENGINE_MAIN, RunningService
from tests.tiny_models import tiny_model

ROW = load_catalog()["stable-diffusion-v1-5"]
SIZE = {"width": ROW.min_size, "height": ROW.min_size, "steps": 1, "seed": 1}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    folder = tmp_path_factory.mktemp("tiny")
    tiny_model(ROW.id, folder)
    with stand_in.serving() as serving:
        stand_in.put_folder(serving, ROW.source, folder)
        serving.files[f"{ROW.source}/v1-5-pruned.ckpt"] = b"x" * 1000
        serving.files[f"{ROW.source}/unet/diffusion_pytorch_model.bin"] = b"x" * 1000
        yield serving


@pytest.fixture(scope="module")
def service(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """It knows the row's size, and neither how small the stand-in for its weights is nor how much others leave free."""
    running = RunningService(
        tmp_path_factory.mktemp("memory"),
        main=ROOT / "tests" / "main_roomy.py",
        HF_ENDPOINT=hub.url,
        HF_HUB_OFFLINE="0",
        FLUX_ALLOW_DOWNLOAD="true",
    ).start()
    try:
        running.wait_for_workers()
        yield running
    finally:
        running.close()


@pytest.fixture(autouse=True)
def _nothing_loaded(service: RunningService) -> Iterator[None]:
    yield
    service.wait_for_workers()
    service.client.post("/unload-model")


def held(service: RunningService) -> dict[str, dict]:
    (worker,) = service.client.get("/model-status").json()["workers"]
    return {each["model"]: each for each in worker["models"]}


def row_of(service: RunningService, model: str) -> dict:
    rows = service.client.get("/api/models").json()["models"]
    return next(row for row in rows if row["id"] == model)


def hold(hub: Hub) -> None:
    """Weights stop before their end until `hub.gate` is set."""
    hub.held.add(f"{ROW.source}/unet/diffusion_pytorch_model.safetensors")
    hub.gate.clear()


def test_job_that_is_cancelled_while_its_model_is_fetched_ends_and_its_worker_lives(
    service: RunningService, hub: Hub
) -> None:
    """The first test: nothing is here yet."""
    hold(hub)
    (before,) = service.workers()
    job_id = service.submit(model=ROW.id, **SIZE)
    service.wait_until(lambda: hub.got and service.job(job_id)["status"] == "running")
    assert service.client.post(f"/jobs/{job_id}/cancel").json()["cancelled"] is True
    service.wait_for_workers()
    hub.gate.set()
    (after,) = service.workers()
    assert after["pid"] == before["pid"] and after["last_death"] is None
    assert service.job(job_id)["status"] == "cancelled"
    assert row_of(service, ROW.id)["downloaded"] is False


def test_model_is_fetched_when_a_job_needs_it_and_its_listener_is_told(
    service: RunningService, hub: Hub
) -> None:
    """Nothing is in use yet."""
    before = row_of(service, ROW.id)
    assert (before["downloaded"], before["disk_bytes"]) == (False, 0)
    hold(hub)
    job_id = service.submit(model=ROW.id, **SIZE)
    told = []
    with service.client.stream("GET", f"/jobs/{job_id}/events") as events:
        for line in events.iter_lines():
            if line.startswith("data:"):
                told.append(json.loads(line.removeprefix("data:")))
                if (told[-1].get("what") or "").startswith(f"fetching {ROW.source}: "):
                    assert 0 <= told[-1]["fraction"] <= 1 and told[-1]["model"] == ROW.id
                    hub.gate.set()
    assert hub.gate.is_set(), "nobody was told that it is fetched"
    job = service.wait_for_job(job_id)
    assert job["status"] == "succeeded", job["error"]
    after = row_of(service, ROW.id)
    assert after["downloaded"] is True and after["disk_bytes"] > 1000
    fetched = {name.removeprefix(f"{ROW.source}/") for name, _ in hub.got}
    assert "v1-5-pruned.ckpt" not in fetched and not [n for n in fetched if n.endswith(".bin")]


def test_models_stay_beside_each_other_and_say_what_they_take(service: RunningService) -> None:
    for model in ("embedded", ROW.id):
        assert service.client.post("/load-model", json={"model": model}).status_code == 200
    models = held(service)
    assert list(models) == [ROW.id, "embedded"], "most recently used first"
    assert all(0 <= each["memory_gib"] < 1 for each in models.values())
    assert models["embedded"]["last_used_at"] <= models[ROW.id]["last_used_at"]


def test_model_that_is_used_again_is_not_loaded_again(service: RunningService) -> None:
    for model in ("embedded", ROW.id):
        service.client.post("/load-model", json={"model": model})
    small = {"width": 128, "height": 128, "steps": 1, "seed": 1}
    first = service.generate(model="embedded", **small).json()
    other = service.generate(model=ROW.id, **SIZE).json()
    again = service.generate(model="embedded", **small).json()
    assert [answer["timings_ms"]["load"] for answer in (first, other, again)] == [0.0] * 3
    assert again["image"] == first["image"] and other["model"] == ROW.id
    (worker,) = service.client.get("/model-status").json()["workers"]
    assert worker["model"] == "embedded" and worker["engine"] == "diffusers"


def test_one_model_is_let_go_of_by_name(service: RunningService) -> None:
    for model in ("embedded", ROW.id):
        service.client.post("/load-model", json={"model": model})
    answer = service.client.post("/unload-model", json={"model": ROW.id}).json()
    assert answer["unloaded"] is True and answer["model"] == ROW.id
    assert list(held(service)) == ["embedded"]
    assert service.client.get("/model-status").json()["loaded"] is True
    assert service.client.post("/unload-model").json()["unloaded"] is True
    assert held(service) == {}
    assert service.client.get("/model-status").json()["loaded"] is False


def test_model_that_is_unknown_is_not_let_go_of(service: RunningService) -> None:
    answer = service.client.post("/unload-model", json={"model": "nothing"})
    assert answer.status_code in (400, 404) and answer.json()["errors"][0]["field"] == "model"


def test_backends_say_what_they_can_and_what_is_here(service: RunningService) -> None:
    backends = {each["id"]: each for each in service.client.get("/api/backends").json()["backends"]}
    assert "embedded" in backends["flux"]["downloaded"]
    assert backends["flux"]["available"] is True and "mask" in backends["flux"]["ways"]
    assert backends["mflux"]["available"] is False and backends["mflux"]["reason"]


def test_model_without_room_is_refused_with_numbers(tmp_path: Path) -> None:
    """It is not loaded, so a stand-in's worker says the same."""
    running = RunningService(
        tmp_path, main=ENGINE_MAIN, TEST_ENGINE="scripted",
        FLUX_MODEL_MEMORY_GIB="0.5", FLUX_MODEL="embedded",
    ).start()  # fmt: skip
    try:
        answer = running.generate()
        assert (answer.status_code, answer.json()["code"]) == (409, "unsupported_gpu")
        assert "needs 0.6 GiB in BF16, and FLUX_MODEL_MEMORY_GIB allows 0.5" in answer.text
    finally:
        running.close()
