"""Models: what there is, what is loaded, load and unload."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from config.catalog import load_catalog
from config.settings import ROOT
from tests.service import ENGINE_MAIN, RunningService

Start = Callable[..., RunningService]


def loaded(service: RunningService) -> str | None:
    return service.client.get("/model-status").json()["workers"][0]["model"]


def test_models_are_all_listed_with_what_runs_here(engine_service: RunningService) -> None:
    answer = engine_service.client.get("/api/models").json()
    rows = {row["id"]: row for row in answer["models"]}
    assert list(rows) == list(load_catalog().ids)
    assert answer["default_model"] == "embedded"
    assert "GPU" in answer["default_model_reason"]
    assert rows["embedded"]["available"] and rows["embedded"]["is_default"]
    assert rows["embedded"]["reason"] is None
    assert not rows["flux-schnell"]["available"]
    assert "GPU" in rows["flux-schnell"]["reason"]
    assert rows["embedded"]["limits"] == {
        "min_size": 128,
        "max_size": 512,
        "size_multiple": 16,
        "max_pixels": None,
    }


def test_models_tell_no_path_of_this_machine(engine_service: RunningService) -> None:
    assert str(ROOT) not in engine_service.client.get("/api/models").text


def test_backends_are_listed_with_their_models(engine_service: RunningService) -> None:
    answer = engine_service.client.get("/api/backends").json()
    assert answer["default_backend"] == "flux"
    (flux,) = [backend for backend in answer["backends"] if backend["id"] == "flux"]
    assert "embedded" in flux["models"]


def test_backend_named_in_a_request_is_taken(engine_service: RunningService) -> None:
    answer = engine_service.generate(backend="flux", model="embedded")
    assert (answer.json()["backend"], answer.json()["model"]) == ("flux", "embedded")


def test_load_model_while_the_worker_starts_waits_and_says_so(
    start_engine: Start, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    service = start_engine(
        wait_for_workers=False, TEST_ENGINE="waits_at_start", TEST_GATE=str(gate)
    )
    assert service.client.get("/model-status").json()["loaded"] is False
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(service.client.post, "/load-model")
        assert [each["state"] for each in service.workers()] == ["starting"]
        gate.touch()
        answer = asking.result()
    assert answer.status_code == 200
    assert answer.json() == {
        "model": "embedded",
        "loaded": True,
        "workers": [{"name": "cpu", "done": True, "reason": None}],
    }
    status = service.client.get("/model-status").json()
    assert status["loaded"] is True
    (worker,) = status["workers"]
    assert (worker["model"], worker["engine"], worker["state"]) == ("embedded", "scripted", "idle")
    assert worker["memory_mib"] > 0
    assert service.client.get("/health").json()["model_loaded"] is True


def test_load_model_already_loaded_is_done(engine_service: RunningService) -> None:
    engine_service.wait_for_workers()
    answers = [
        engine_service.client.post("/load-model", json={"model": "embedded"}) for _ in range(2)
    ]
    assert [answer.json()["loaded"] for answer in answers] == [True, True]


def test_load_model_unknown_is_refused(engine_service: RunningService) -> None:
    answer = engine_service.client.post("/load-model", json={"model": "nothing"})
    assert answer.status_code in (400, 404)
    assert answer.json()["errors"][0]["field"] == "model"


def test_load_model_that_needs_a_gpu_is_409(engine_service: RunningService) -> None:
    answer = engine_service.client.post("/load-model", json={"model": "flux-schnell"})
    assert (answer.status_code, answer.json()["code"]) == (409, "unsupported_gpu")


def test_load_model_wrong_body_is_refused(engine_service: RunningService) -> None:
    for body in ({"model": 5}, {"modell": "embedded"}, [], {"model": ""}):
        answer = engine_service.client.post("/load-model", json=body)
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")


def test_load_model_on_a_busy_worker_is_503_with_the_reason(engine_service: RunningService) -> None:
    gate = uuid.uuid4().hex
    job_id = engine_service.submit(f"hold {gate}")
    # Not until the job is running: that is written down a moment before its worker has it.
    engine_service.wait_until(lambda: engine_service.workers()[0]["state"] == "busy")
    answer = engine_service.client.post("/load-model")
    engine_service.release(gate)
    engine_service.wait_for_job(job_id)
    engine_service.wait_for_workers()
    assert answer.status_code == 503
    assert "busy" in answer.text


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """A service whose model is not on the machine until `release("weights")`."""
    running = RunningService(
        tmp_path_factory.mktemp("bare"), main=ENGINE_MAIN, TEST_ENGINE="needs_weights"
    ).start()
    yield running
    running.close()


def test_load_model_that_fails_is_503_as_a_problem(bare: RunningService) -> None:
    answer = bare.client.post("/load-model")
    assert answer.status_code == 503
    assert "its files are not here" in answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == "model_unavailable"
    assert int(answer.headers["Retry-After"]) >= 1


def test_model_that_failed_to_load_says_why_in_its_status(bare: RunningService) -> None:
    bare.client.post("/load-model")
    (worker,) = bare.client.get("/model-status").json()["workers"]
    assert worker["state"] == "idle" and worker["model"] is None
    assert "its files are not here" in worker["load_error"]


def test_generate_whose_model_fails_to_load_is_503(bare: RunningService) -> None:
    answer = bare.generate()
    assert (answer.status_code, answer.json()["code"]) == (503, "model_unavailable")
    assert "its files are not here" in answer.json()["detail"]
    assert int(answer.headers["Retry-After"]) >= 1


def test_model_that_failed_to_load_is_loaded_when_it_is_there(bare: RunningService) -> None:
    assert bare.generate().status_code == 503
    bare.release("weights")
    assert bare.client.post("/load-model").json()["loaded"] is True
    assert bare.generate().status_code == 200


def test_load_model_that_ends_its_worker_is_503(start_engine: Start) -> None:
    service = start_engine(TEST_ENGINE="exits_while_loading")
    answer = service.client.post("/load-model")
    assert answer.status_code == 503
    assert "exit status 3" in answer.text


def test_unload_model_gives_back_and_generate_loads_again(service: RunningService) -> None:
    """On the real model: the picture after is the picture before."""
    body = {"width": 128, "height": 128, "steps": 1, "seed": 1}
    before = service.generate(**body).json()["image"]
    answer = service.client.post("/unload-model")
    assert answer.json()["unloaded"] is True
    assert loaded(service) is None
    assert service.client.get("/model-status").json()["loaded"] is False
    after = service.generate(**body).json()
    assert after["image"] == before and after["timings_ms"]["load"] > 0
    assert loaded(service) == "embedded"


def test_unload_model_with_nothing_loaded_is_done(engine_service: RunningService) -> None:
    engine_service.wait_for_workers()
    answers = [engine_service.client.post("/unload-model").json() for _ in range(2)]
    assert [answer["unloaded"] for answer in answers] == [True, True]


def test_preload_loads_at_start(start_engine: Start) -> None:
    service = start_engine(FLUX_PRELOAD="true")
    service.wait_until(lambda: loaded(service) == "embedded")
