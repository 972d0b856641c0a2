"""`flux-api` over HTTP: what it answers, what it refuses, and that cloud and workers do not wait for each other."""

from __future__ import annotations

import base64
import io
import json
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from PIL import Image

from api.services import make_plan
from config.errors import ConfigurationError
from config.settings import ROOT, load_settings
from models.precision import profile_of
from tests.cloud import KEY, StandIn
from tests.service import ENGINE_MAIN, RunningService


@pytest.fixture(scope="module")
def clouded(
    stand_in: StandIn, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningService]:
    """A service with the cloud and a scripted model."""
    running = RunningService(
        tmp_path_factory.mktemp("clouded"),
        main=ENGINE_MAIN,
        TEST_ENGINE="scripted",
        FLUX_BFL_POLL_TIMEOUT="60",
        **stand_in.environ,
    ).start()
    try:
        running.wait_for_workers()
        yield running
    finally:
        running.close()


def in_cloud(service: RunningService, **body: Any) -> httpx2.Response:
    given = {"backend": "flux-api", "width": 64, "height": 64, "model": "flux-2-klein-4b"}
    return service.generate(**{**given, **body})


def picture_of(size: tuple[int, int]) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", size, "red").save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def faulty_fields(answer: httpx2.Response) -> set[str]:
    assert answer.status_code == 400, answer.text
    return {error["field"] for error in answer.json()["errors"]}


# What it draws


def test_request_of_docs_bfl_md_is_drawn(
    clouded: RunningService, cloud: StandIn, tmp_path: Path
) -> None:
    guide = (ROOT / "docs" / "bfl.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"^curl .*", guide, re.MULTILINE)
    command = command.replace("127.0.0.1:8001", f"127.0.0.1:{clouded.port}")
    command = command.replace("curl ", "curl --fail-with-body ", 1)
    done = subprocess.run(shlex.split(command), cwd=tmp_path, capture_output=True, timeout=180)
    assert done.returncode == 0, done
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.format == "PNG"


def test_cloud_request_is_drawn_with_its_cost(clouded: RunningService, cloud: StandIn) -> None:
    answer = in_cloud(clouded, prompt="over the hills", seed=3)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (body["model"], body["backend"]) == ("bfl/flux-2-klein-4b", "flux-api")
    assert (body["engine"], body["precision"], body["seed"]) == ("bfl", "cloud", 3)
    assert body["cost_usd"] == pytest.approx(0.014)
    with Image.open(io.BytesIO(base64.b64decode(body["image"]))) as picture:
        assert (picture.format, picture.size) == ("PNG", (64, 64))
    assert cloud.submits[0]["prompt"] == "over the hills"


@pytest.mark.parametrize(
    "body",
    [
        {"backend": "flux-api", "model": "flux-2-max"},
        {"backend": "flux-api", "model": "bfl/flux-2-max"},
        {"model": "bfl/flux-2-max"},
        {"model": "flux-2-max"},
    ],
)
def test_cloud_model_goes_by_bfls_name_and_by_ours(
    clouded: RunningService, cloud: StandIn, body: dict[str, str]
) -> None:
    answer = clouded.generate(width=64, height=64, **body)
    assert answer.status_code == 200, answer.text
    assert cloud.submits[0]["model"] == "flux-2-max"


def test_cloud_backend_alone_means_the_default_model(
    clouded: RunningService, cloud: StandIn
) -> None:
    assert clouded.generate(backend="flux-api", width=64, height=64).status_code == 200
    assert cloud.submits[0]["model"] == "flux-2-pro-preview"


def test_cloud_model_that_is_here_as_well_is_the_one_of_the_backend(
    clouded: RunningService, cloud: StandIn
) -> None:
    answer = clouded.generate(backend="flux-api", model="flux-dev", width=256, height=256)
    assert answer.json()["model"] == "bfl/flux-dev"
    assert cloud.submits[0]["model"] == "flux-dev"
    assert {"steps", "guidance"} < set(cloud.submits[0]["fields"])


def test_cloud_picture_of_another_size_is_told_as_it_is(
    clouded: RunningService, cloud: StandIn
) -> None:
    body = in_cloud(clouded, model="flux-kontext-pro", width=1024, height=512).json()
    image = body["images"][0]
    assert (body["width"], body["height"]) == (image["width"], image["height"]) != (1024, 512)
    assert image["width"] / image["height"] == pytest.approx(2, rel=0.05)


def test_cloud_answer_is_raw_where_it_is_asked_for(clouded: RunningService, cloud: StandIn) -> None:
    answer = clouded.client.post(
        "/generate?format=raw",
        json={"prompt": "x", "model": "flux-2-pro", "width": 64, "height": 64},
    )
    assert answer.headers["x-model"] == "bfl/flux-2-pro"
    assert answer.content.startswith(b"\x89PNG")


def test_cloud_edits_the_image_that_is_sent(clouded: RunningService, cloud: StandIn) -> None:
    answer = clouded.generate(
        model="flux-2-pro", image=picture_of((640, 320)), reference_images=[picture_of((64, 64))]
    )
    assert answer.status_code == 200, answer.text
    assert {"input_image", "input_image_2"} < set(cloud.submits[0]["fields"])
    body = answer.json()
    assert body["width"] / body["height"] == pytest.approx(2, rel=0.05)


def test_cloud_fills_what_the_mask_lets_free(clouded: RunningService, cloud: StandIn) -> None:
    answer = clouded.generate(
        model="flux-pro-1.0-fill", image=picture_of((256, 256)), mask=picture_of((256, 256))
    )
    assert answer.status_code == 200, answer.text
    assert {"image", "mask", "steps"} < set(cloud.submits[0]["fields"])


def test_cloud_steps_of_a_model_without_them_are_not_kept(
    clouded: RunningService, cloud: StandIn
) -> None:
    body = in_cloud(clouded, num_inference_steps=28, guidance_scale=7.5).json()
    assert (body["num_inference_steps"], body["guidance_scale"]) == (1, 0.0)
    assert "steps" not in cloud.submits[0]["fields"]


# What it refuses, before it costs anything


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"negative_prompt": "rain"}, "negative_prompt"),
        ({"width": 100}, "width"),
        ({"width": 32}, "width"),
        ({"width": 4096, "height": 2048}, "width"),
        ({"model": "flux-pro-1.1", "width": 272, "height": 256}, "width"),
        ({"model": "flux-kontext-pro", "width": 2048, "height": 256}, "width"),
        ({"model": "flux-2-flex", "num_inference_steps": 51}, "num_inference_steps"),
        ({"model": "flux-2-flex", "guidance_scale": 1.0}, "guidance_scale"),
        ({"model": "flux-pro-1.1", "image": "aaaa", "width": 256, "height": 256}, "image"),
        ({"model": "flux-pro-1.0-fill"}, "mask"),
        ({"model": "flux-2-pro", "mask": "aaaa", "image": "aaaa"}, "mask"),
        ({"model": "flux-2-pro", "image": "aaaa", "strength": 0.5}, "strength"),
        ({"model": "flux-9"}, "model"),
        ({"model": "embedded"}, "backend"),
    ],
)
def test_cloud_request_that_bfl_would_not_take_is_refused_by_field(
    clouded: RunningService, cloud: StandIn, body: dict[str, Any], field: str
) -> None:
    assert field in faulty_fields(in_cloud(clouded, **body))
    assert cloud.submits == []


def test_cloud_takes_no_lora(clouded: RunningService, cloud: StandIn) -> None:
    answer = in_cloud(clouded, loras=[{"name": "sketch"}])
    assert answer.status_code == 409 and "takes no LoRAs" in answer.json()["detail"]
    assert cloud.submits == []


def test_cloud_model_cannot_be_loaded(clouded: RunningService) -> None:
    answer = clouded.client.post("/load-model", json={"model": "bfl/flux-2-pro"})
    assert answer.status_code == 400 and "nothing to load" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("words", "status", "code"),
    [
        ("[[http=402]]", 402, "provider_credits"),
        ("[[http=401]]", 502, "provider_key"),
        ("[[http=422]]", 400, "provider_refused"),
        ("[[moderate=request]]", 502, "moderated"),
        ("[[error]]", 502, "provider_error"),
    ],
)
def test_cloud_failure_is_a_problem_with_its_status(
    clouded: RunningService, cloud: StandIn, words: str, status: int, code: str
) -> None:
    answer = in_cloud(clouded, prompt=words)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert answer.json()["title"] != "The request failed"


# Its own lane


def test_cloud_and_workers_do_not_wait_for_each_other(
    clouded: RunningService, cloud: StandIn
) -> None:
    held = clouded.submit("hold lanes")
    clouded.wait_for_job(held, "running")
    waiting = [clouded.submit("hold lanes") for _ in range(2)]
    slow = clouded.submit("[[never]]", model="flux-2-klein-4b")
    assert in_cloud(clouded, prompt="meanwhile").status_code == 200
    assert [clouded.job(job_id)["position"] for job_id in waiting] == [1, 2]
    assert clouded.job(slow)["status"] == "running"
    clouded.release("lanes")
    assert clouded.wait_for_job(waiting[1])["status"] == "succeeded"
    assert clouded.job(slow)["status"] == "running"
    clouded.client.post(f"/jobs/{slow}/cancel")


def test_cloud_jobs_in_line_are_counted_among_themselves(
    clouded: RunningService, cloud: StandIn
) -> None:
    clouded.client.post("/queue/pause")
    try:
        here = clouded.submit("held back")
        there = [clouded.submit("in line", model="flux-2-klein-4b") for _ in range(2)]
        assert clouded.job(here)["position"] == 1
        assert [clouded.job(job_id)["position"] for job_id in there] == [1, 2]
        assert cloud.submits == []
        assert clouded.client.post("/queue/clear").json()["cleared"] >= 3
    finally:
        clouded.client.post("/queue/resume")
    assert {clouded.job(job_id)["status"] for job_id in there} == {"cancelled"}
    assert cloud.submits == []


def test_cloud_jobs_in_line_take_no_place_of_others_and_keep_to_the_days_budget(
    start_engine: Callable[..., RunningService], cloud: StandIn
) -> None:
    environ = {"FLUX_MAX_QUEUE_SIZE": "2", "FLUX_BFL_DAILY_BUDGET_USD": "0.06", **cloud.environ}
    service = start_engine(wait_for_workers=False, **environ)
    service.client.post("/queue/pause")
    dear = service.client.post("/jobs", json={"prompt": "too dear", "model": "flux-2-max"})
    assert (dear.status_code, dear.json()["code"]) == (429, "rate_limited")
    assert "FLUX_BFL_DAILY_BUDGET_USD" in dear.json()["detail"]
    assert 0 < int(dear.headers["retry-after"]) <= 86_400
    for _ in range(2):
        service.submit("in line", model="flux-2-klein-4b")
    body = {"prompt": "one too many", "model": "flux-2-klein-4b", "width": 64, "height": 64}
    assert service.client.post("/jobs", json=body).json()["code"] == "queue_full"
    service.submit("of this machine")


def test_cloud_cancel_says_that_it_may_be_charged(clouded: RunningService, cloud: StandIn) -> None:
    job_id = clouded.submit("[[never]]", model="flux-2-klein-4b")
    clouded.wait_until(lambda: len(cloud.submits) == 1)
    answer = clouded.client.post(f"/jobs/{job_id}/cancel").json()
    assert answer["cancelled"] is True and "charge" in answer["note"]


def test_cloud_cancel_before_it_was_asked_costs_nothing(
    clouded: RunningService, cloud: StandIn
) -> None:
    clouded.client.post("/queue/pause")
    try:
        job_id = clouded.submit("never sent", model="flux-2-klein-4b")
        answer = clouded.client.post(f"/jobs/{job_id}/cancel").json()
    finally:
        clouded.client.post("/queue/resume")
    assert answer["cancelled"] is True and "note" not in answer
    assert cloud.submits == []


def test_cloud_retry_asks_once_more(clouded: RunningService, cloud: StandIn) -> None:
    job_id = clouded.submit("[[then=500]]", model="flux-2-klein-4b")
    assert clouded.wait_for_job(job_id)["status"] == "failed"
    again = clouded.client.post(f"/jobs/{job_id}/retry").json()["id"]
    assert clouded.wait_for_job(again)["status"] == "failed"
    assert len(cloud.submits) == 2


def test_cloud_job_tells_its_way_as_events(clouded: RunningService, cloud: StandIn) -> None:
    job_id = clouded.submit("[[status=Generating]]", model="flux-2-klein-4b")
    names = []
    with clouded.client.stream("GET", f"/jobs/{job_id}/events") as stream:
        for line in stream.iter_lines():
            if line.startswith("event: "):
                names.append(line.removeprefix("event: "))
    assert names[-1] == "succeeded"


# What it says of itself


def test_cloud_backend_is_told_with_its_default(clouded: RunningService) -> None:
    backends = clouded.client.get("/api/backends").json()["backends"]
    (flux_api,) = [each for each in backends if each["id"] == "flux-api"]
    assert flux_api["available"] is True and flux_api["reason"] is None
    assert flux_api["default_model"] == "bfl/flux-2-pro-preview"
    assert len(flux_api["models"]) == 14


def test_cloud_models_are_told_with_their_price(clouded: RunningService) -> None:
    models = {row["id"]: row for row in clouded.client.get("/api/models").json()["models"]}
    price = models["bfl/flux-2-pro"]["price_usd"]
    assert (price["first_megapixel"], price["default_size"]) == (0.03, 0.03)
    assert models["bfl/flux-pro-1.1"]["limits"]["size_multiple"] == 32
    assert models["bfl/flux-2-pro"]["price"].startswith("$0.03 at 1024x1024")
    assert models["embedded"]["price_usd"] is models["embedded"]["price"] is None


def test_cloud_key_is_in_no_answer_and_no_log(clouded: RunningService, cloud: StandIn) -> None:
    in_cloud(clouded, prompt="[[http=401]]")
    paths = ("/info", "/health", "/queue", "/jobs", "/api/backends", "/api/models", "/openapi.json")
    told = "".join(clouded.client.get(path).text for path in paths)
    assert KEY not in told + clouded.log_path.read_text()
    assert f"127.0.0.1:{cloud.port}/delivery" not in clouded.log_path.read_text()


def test_cloud_key_reaches_no_worker_process(clouded: RunningService) -> None:
    (pid,) = [worker["pid"] for worker in clouded.workers() if worker["pid"]]
    environ = psutil.Process(pid).environ()
    assert KEY not in environ.values() and "SD_BFL_API_KEY" not in environ


def test_cloud_is_no_device_of_this_machine(clouded: RunningService) -> None:
    assert [each["kind"] for each in clouded.client.get("/info").json()["devices"]] == ["cpu"]
    assert len(clouded.client.get("/model-status").json()["workers"]) == 1
    names = [worker["name"] for worker in clouded.workers()]
    assert "bfl" in names and len(names) == 2


# Without a key


def test_no_key_is_the_reason_why_there_is_no_cloud(engine_service: RunningService) -> None:
    backends = engine_service.client.get("/api/backends").json()["backends"]
    (flux_api,) = [each for each in backends if each["id"] == "flux-api"]
    assert flux_api["available"] is False and "SD_BFL_API_KEY" in flux_api["reason"]
    assert engine_service.client.get("/info").json()["cloud"]["available"] is False


def test_no_key_requests_are_refused_at_once(engine_service: RunningService) -> None:
    answer = in_cloud(engine_service)
    assert answer.status_code == 503 and answer.json()["code"] == "model_unavailable"
    assert "SD_BFL_API_KEY" in answer.json()["detail"]
    submitted = engine_service.client.post("/jobs", json={"prompt": "x", "backend": "flux-api"})
    assert submitted.status_code == 503


def test_no_key_answers_are_json_all_the_same(engine_service: RunningService) -> None:
    models = engine_service.client.get("/api/models").json()["models"]
    cloud = [row for row in models if row["backend"] == "flux-api"]
    assert len(cloud) == 14 and not any(row["available"] for row in cloud)
    assert json.loads(json.dumps(cloud)) == cloud


# As the default of a service


def test_cloud_as_default_backend_draws_what_names_nothing(
    start_engine: Callable[..., RunningService], cloud: StandIn
) -> None:
    environ = {
        **cloud.environ,
        "SD_DEFAULT_BACKEND": "flux-api",
        "SD_BFL_DEFAULT_MODEL": "flux-2-flex",
    }
    service = start_engine(wait_for_workers=False, **environ)
    answer = service.generate(width=64, height=64)
    assert answer.json()["model"] == "bfl/flux-2-flex"
    info = service.client.get("/info").json()
    assert info["default_model"] == "bfl/flux-2-flex"
    assert "SD_DEFAULT_BACKEND" in info["default_model_reason"]
    assert service.client.get("/api/backends").json()["default_backend"] == "flux-api"


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"SD_DEFAULT_BACKEND": "flux-9"}, "flux-local"),
        ({"SD_BFL_DEFAULT_MODEL": "flux-9"}, "flux-2-pro"),
    ],
)
def test_cloud_default_that_is_not_there_is_refused_at_start(
    environ: dict[str, str], words: str
) -> None:
    with pytest.raises(ConfigurationError, match=words):
        make_plan(load_settings("bf16", {"FLUX_GPUS": "none", **environ}), profile_of("bf16"))
