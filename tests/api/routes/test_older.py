"""The older names of routes: what clients of flux_api send, as they send it."""

from __future__ import annotations

import io
import secrets
from collections.abc import Iterator

import pytest
from PIL import Image

from tests.lora_files import lora
from tests.service import RunningService

SMALL = {"prompt": "a lighthouse", "width": 128, "height": 128}
# What flux_api's own page sends with every request.
OF_ITS_PAGE = {
    **SMALL, "seed": 42, "num_inference_steps": 4, "guidance_scale": 3.5, "upscale": False, "upscale_factor": 2,
    "downscale": True, "remove_background": False, "bg_strength": None, "loras": [],
}  # fmt: skip


def test_request_of_its_page_is_drawn(engine_service: RunningService) -> None:
    answer = engine_service.client.post("/generate", json=OF_ITS_PAGE)
    assert answer.status_code == 200, answer.text
    drawn = answer.json()
    assert drawn["seed"] == 42 and drawn["download_url"] == f"/download/{drawn['filename']}"
    assert engine_service.client.get(drawn["download_url"]).content.startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("switch", "word"), [("upscale", "upscaling"), ("remove_background", "background")]
)
def test_request_for_what_is_not_done_here_is_refused_by_name(
    engine_service: RunningService, switch: str, word: str
) -> None:
    for path in ("/generate", "/submit-request", "/jobs"):
        answer = engine_service.client.post(path, json={**OF_ITS_PAGE, switch: True})
        assert answer.status_code == 400
        (error,) = answer.json()["errors"]
        assert error["field"] == switch and word in error["message"]


def test_request_goes_its_older_way_to_the_end(engine_service: RunningService) -> None:
    submitted = engine_service.client.post("/submit-request", json=OF_ITS_PAGE)
    assert submitted.status_code == 202
    told = submitted.json()
    assert told["status"] == "queued" and told["message"]
    request_id = told["request_id"]
    engine_service.wait_for_job(request_id)
    status = engine_service.client.get(f"/request-status/{request_id}").json()
    assert (status["request_id"], status["status"], status["error"]) == (
        request_id,
        "succeeded",
        None,
    )
    assert (status["prompt"], status["seed"], status["width"]) == ("a lighthouse", 42, 128)
    assert status["completed_at"] == status["finished_at"] is not None
    assert status["result"]["filename"]
    native = engine_service.job(request_id)
    assert {name: status[name] for name in native} == native, "all that the job's own route says"


@pytest.mark.parametrize("method", ["POST", "DELETE"])
def test_request_that_waits_is_cancelled(engine_service: RunningService, method: str) -> None:
    request_id = engine_service.submit("hold never-released")
    engine_service.wait_for_job(request_id, "running")
    answer = engine_service.client.request(method, f"/cancel-request/{request_id}").json()
    assert (answer["request_id"], answer["cancelled"]) == (request_id, True)
    again = engine_service.client.request(method, f"/cancel-request/{request_id}").json()
    assert again["cancelled"] is True and again["status"] == "cancelled"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/request-status/nobody"),
        ("POST", "/cancel-request/nobody"),
        ("DELETE", "/cancel-request/nobody"),
    ],
)
def test_request_unknown_is_404(engine_service: RunningService, method: str, path: str) -> None:
    assert engine_service.client.request(method, path).status_code == 404


def test_submit_is_the_same_with_the_same_key(engine_service: RunningService) -> None:
    headers = {"Idempotency-Key": "older-name"}
    first, second = (
        engine_service.client.post("/submit-request", json=SMALL, headers=headers).json()["id"]
        for _ in range(2)
    )
    assert first == second
    assert engine_service.client.post("/jobs", json=SMALL, headers=headers).json()["id"] == first


def test_picture_form_of_its_page_is_drawn(engine_service: RunningService) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (128, 128), "red").save(picture, "PNG")
    form = {
        "prompt": "a lighthouse", "width": "128", "height": "128", "seed": "7", "upscale": "false",
        "upscale_factor": "2", "image_strength": "0.5", "image_guidance_scale": "1.5", "loras": "[]",
    }  # fmt: skip
    answer = engine_service.client.post(
        "/upload-image-generate",
        data=form,
        files={"file": ("a.png", picture.getvalue(), "image/png")},
    )
    assert answer.status_code == 200, answer.text
    request = engine_service.job(answer.json()["id"])["request"]
    assert (request["strength"], request["guidance_scale"], request["seed"]) == (0.5, 1.5, 7)


# LoRAs


def test_upload_tells_the_name_that_requests_use(
    engine_service: RunningService, uploaded: dict
) -> None:
    assert uploaded["message"] and uploaded["size"] == uploaded["size_bytes"]
    assert uploaded["file_path"] == f"uploads/lora_files/{uploaded['filename']}"


@pytest.fixture
def uploaded(engine_service: RunningService) -> Iterator[dict]:
    data = lora(secrets.randbelow(1000) / 1000)
    answer = engine_service.client.post(
        "/upload-lora", files={"file": ("older style.safetensors", data)}
    )
    assert answer.status_code in (200, 201), answer.text
    yield answer.json()
    engine_service.client.post("/remove-lora")
    engine_service.client.delete(f"/loras/{answer.json()['name']}")


def test_request_names_a_lora_by_its_path(engine_service: RunningService, uploaded: dict) -> None:
    loras = [{"name": uploaded["file_path"], "weight": 0.8}]
    answer = engine_service.client.post("/jobs", json={**SMALL, "loras": loras})
    assert answer.status_code == 202, answer.text
    wanted = engine_service.job(answer.json()["id"])["request"]["loras"]
    assert [lora["sha256"] for lora in wanted] == [uploaded["sha256"]]
    engine_service.wait_for_job(answer.json()["id"])


@pytest.mark.parametrize("form", ["body", "query", "short"])
def test_apply_takes_the_older_forms(
    engine_service: RunningService, uploaded: dict, form: str
) -> None:
    name = uploaded["name"]
    if form == "query":
        answer = engine_service.client.post(
            "/apply-lora", params={"lora_name": name, "weight": 0.7}
        )
    else:
        key = "lora_name" if form == "body" else "name"
        answer = engine_service.client.post("/apply-lora", json={key: name, "weight": 0.7})
    assert answer.status_code == 200, answer.text
    assert answer.json()["status"] == "applied" and name in answer.json()["message"]
    status = engine_service.client.get("/lora-status").json()
    assert (status["lora_applied"], status["lora_name"], status["lora_weight"]) == (True, name, 0.7)
    assert status["current_lora"] == {"name": name, "weight": 0.7}
    removed = engine_service.client.post("/remove-lora").json()
    assert (removed["status"], removed["lora_applied"], removed["current_lora"]) == (
        "removed",
        False,
        None,
    )


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("", "body"),
        ("?lora_name=a&weight=9", "lora_weight"),
        ("?weight=1", "body"),
        ("?lora_name=a&weight=x", "weight"),
    ],
)
def test_apply_with_a_fault_names_it(
    engine_service: RunningService, query: str, field: str
) -> None:
    answer = engine_service.client.post(f"/apply-lora{query}")
    assert answer.status_code == 400
    assert [error["field"] for error in answer.json()["errors"]] == [field]


def test_stats_and_status_have_the_older_words(engine_service: RunningService) -> None:
    stats = engine_service.client.get("/queue-stats").json()
    assert stats["queue_size"] == stats["queued"] and stats["max_concurrent"] == 1
    assert stats["completed_requests"] == stats["succeeded"] + stats["failed"] + stats["cancelled"]
    status = engine_service.client.get("/model-status").json()
    assert status["model_loaded"] == status["loaded"] and status["model_type"] == "bf16"
