"""Each key's work in other programs' APIs is its own: neither seen nor ended by another's."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest

from tests.api.dialects.comfy_prompts import ksampler, with_image
from tests.api.dialects.conftest import KEY
from tests.pictures import file_of, gradient
from tests.service import RunningService


@pytest.fixture(scope="module")
def keys(keyed: RunningService) -> Iterator[tuple[httpx2.Client, httpx2.Client]]:
    """Clients of two keys that may draw and see their own."""
    clients, ids = [], []
    admin = {"X-API-Key": KEY}
    for name in ("dialects-a", "dialects-b"):
        made = keyed.client.post(
            "/admin/keys", json={"name": name, "scopes": ["generate"]}, headers=admin
        )
        assert made.status_code == 201, made.text
        ids.append(made.json()["id"])
        headers = {"Authorization": f"Bearer {made.json()['key']}"}
        clients.append(httpx2.Client(base_url=keyed.url, headers=headers, timeout=120))
    yield tuple(clients)
    for client, key_id in zip(clients, ids, strict=True):
        client.close()
        keyed.client.delete(f"/admin/keys/{key_id}", headers=admin)


def status_of(client: httpx2.Client, job_id: str) -> str:
    return client.get(f"/jobs/{job_id}").json()["status"]


def test_task_of_another_key_is_not_found(
    keyed: RunningService, keys: tuple[httpx2.Client, httpx2.Client]
) -> None:
    ours, theirs = keys
    told = ours.post("/v1/embedded", json={"prompt": "x", "width": 128, "height": 128}).json()
    keyed.wait_until(lambda: ours.get(told["polling_url"]).json()["status"] == "Ready")
    answer = theirs.get(told["polling_url"])
    assert (answer.status_code, answer.json()["status"]) == (404, "Task not found")
    sample = ours.get(told["polling_url"]).json()["result"]["sample"]
    assert keyed.client.get(sample).status_code == 200, "who was given the link may follow it"


def test_run_of_another_key_is_neither_seen_nor_ended(
    keyed: RunningService, keys: tuple[httpx2.Client, httpx2.Client]
) -> None:
    ours, theirs = keys
    body = {"prompt": "hold owners-sdapi", "width": 128, "height": 128}
    with ThreadPoolExecutor(1) as pool:
        drawing = pool.submit(lambda: ours.post("/sdapi/v1/txt2img", json=body))
        try:
            keyed.wait_until(
                lambda: ours.get("/sdapi/v1/progress").json()["state"]["sampling_step"]
            )
            seen = theirs.get("/sdapi/v1/progress").json()
            assert (seen["progress"], seen["state"]["job_count"], seen["current_image"]) == (
                0.0,
                0,
                None,
            )
            theirs.post("/sdapi/v1/interrupt")
            theirs.post("/sdapi/v1/skip")
            theirs.post("/interrupt")
        finally:
            keyed.release("owners-sdapi")
        assert drawing.result(120).status_code == 200


def test_prompt_of_another_key_is_neither_seen_nor_ended(
    keyed: RunningService, keys: tuple[httpx2.Client, httpx2.Client]
) -> None:
    ours, theirs = keys
    told = ours.post("/prompt", json={"prompt": ksampler("hold owners-comfy")}).json()
    keyed.wait_until(lambda: status_of(ours, told["job_id"]) == "running")
    waits = ours.post("/prompt", json={"prompt": ksampler("waits")}).json()
    queue = theirs.get("/queue").json()
    assert (queue["queue_running"], queue["queue_pending"]) == ([], [])
    theirs.post("/interrupt", json={"prompt_id": told["prompt_id"]})
    theirs.post("/queue", json={"clear": True, "delete": [waits["prompt_id"]]})
    assert theirs.post(f"/api/jobs/{waits['prompt_id']}/cancel").status_code == 404
    assert status_of(ours, waits["job_id"]) == "queued"
    keyed.release("owners-comfy")
    for each in (told, waits):
        keyed.wait_until(lambda each=each: ours.get(f"/history/{each['prompt_id']}").json())
        assert theirs.get(f"/history/{each['prompt_id']}").json() == {}
    assert theirs.get("/history").json() == {}
    [image] = ours.get(f"/history/{told['prompt_id']}").json()[told["prompt_id"]]["outputs"]["9"][
        "images"
    ]
    assert ours.get("/view", params=image).status_code == 200
    assert theirs.get("/view", params=image).status_code == 404


def test_upload_of_another_key_is_not_found_by_its_name(
    keys: tuple[httpx2.Client, httpx2.Client],
) -> None:
    ours, theirs = keys
    files = {"image": ("mine.png", file_of(gradient(128, 128)), "image/png")}
    assert ours.post("/upload/image", files=files).status_code == 200
    body = {"prompt": with_image(ksampler(), "mine.png", 0.5)}
    assert ours.post("/prompt", json=body).status_code == 200
    assert theirs.post("/prompt", json=body).status_code == 400


def test_model_that_one_key_sets_is_not_anothers(
    keys: tuple[httpx2.Client, httpx2.Client],
) -> None:
    ours, theirs = keys
    ours.post("/sdapi/v1/options", json={"sd_model_checkpoint": "stable-diffusion-v1-5"})
    try:
        chosen = ours.get("/sdapi/v1/options").json()["sd_model_checkpoint"]
        assert chosen == "stable-diffusion-v1-5"
        assert theirs.get("/sdapi/v1/options").json()["sd_model_checkpoint"] == "embedded"
    finally:
        ours.post("/sdapi/v1/options", json={"sd_model_checkpoint": "embedded"})


def test_key_without_the_scope_draws_nothing(keyed: RunningService) -> None:
    admin = {"X-API-Key": KEY}
    made = keyed.client.post(
        "/admin/keys", json={"name": "dialects-loras", "scopes": ["loras"]}, headers=admin
    ).json()
    key = {"Authorization": f"Bearer {made['key']}"}
    for path in ("/v1/images/generations", "/v1/embedded", "/sdapi/v1/txt2img", "/prompt"):
        assert keyed.client.post(path, json={"prompt": "x"}, headers=key).status_code == 403
    assert keyed.client.post("/free", headers=key).status_code == 403
    keyed.client.delete(f"/admin/keys/{made['id']}", headers=admin)
