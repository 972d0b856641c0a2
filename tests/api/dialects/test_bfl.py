"""BFL's dialect: the flow of its clients, our own adapter among them."""

from __future__ import annotations

import asyncio
import base64
import io
import time
from typing import Any

import httpx2
import pytest
from PIL import Image
from pydantic import SecretStr

from config.catalog import ModelRow, load_catalog
from config.settings import CloudSettings
from models.bfl import Bfl
from models.bfl_request import body_of
from models.types import GenerationRequest, OutputFormat
from tests.api.dialects.conftest import KEY
from tests.pictures import file_of, gradient
from tests.service import WAIT_SECONDS, RunningService


def submit(service: RunningService, model: str = "embedded", **body: Any) -> httpx2.Response:
    return service.client.post(f"/v1/{model}", json={"prompt": "x", **body})


def got(url: str, **headers: str) -> httpx2.Response:
    """By a client that knows nothing but the address."""
    return httpx2.get(url, headers=headers, timeout=WAIT_SECONDS)


def polled(polling_url: str, key: str = "") -> dict[str, Any]:
    """As BFL's own example polls: until the status is none of those that go on."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        result = got(polling_url, accept="application/json", **{"x-key": key})
        if result.json()["status"] not in ("Pending", "Queued", "Processing"):
            return result.json()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def drawn(service: RunningService, model: str = "embedded", **body: Any) -> Image.Image:
    answer = submit(service, model, **body)
    assert answer.status_code == 200, answer.text
    result = polled(answer.json()["polling_url"])
    assert result["status"] == "Ready", result
    picture = Image.open(io.BytesIO(got(result["result"]["sample"]).content))
    picture.load()
    return picture


def in_base64(picture: Image.Image) -> str:
    return base64.b64encode(file_of(picture)).decode()


def test_flow_of_a_client_with_a_key(keyed: RunningService) -> None:
    """Key in `x-key`; the picture's address is fetched without it."""
    answer = keyed.client.post(
        "/v1/embedded",
        headers={"accept": "application/json", "x-key": KEY, "Content-Type": "application/json"},
        json={"prompt": "a cat on its back legs", "width": 128, "height": 144, "seed": 7},
    )
    told = answer.json()
    assert set(told) >= {"id", "polling_url"}
    assert told["polling_url"] == f"{keyed.url}/v1/get_result?id={told['id']}"
    assert got(told["polling_url"]).status_code == 401
    result = polled(told["polling_url"], KEY)
    assert result["id"] == told["id"]
    assert result["result"]["seed"] == 7
    assert result["result"]["prompt"] == "a cat on its back legs"
    assert result["result"]["duration"] >= 0
    picture = got(result["result"]["sample"])
    assert picture.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(picture.content)).size == (128, 144)


async def by_our_adapter(service: RunningService, model: str, body: dict[str, Any]) -> bytes:
    """Submit, look, download: as this project's own client of BFL does it."""
    settings = CloudSettings(bfl_api_key=SecretStr(KEY), bfl_api_base=f"{service.url}/v1")
    cloud = Bfl(settings)
    try:
        task = await cloud.submit(model, body)
        async with asyncio.timeout(WAIT_SECONDS):
            while (look := await cloud.look(task)).picture_url is None:
                await asyncio.sleep(0.05)
        return await cloud.download(look.picture_url)
    finally:
        await cloud.close()


def test_our_own_adapter_is_a_client(keyed: RunningService) -> None:
    body = {"prompt": "x", "width": 128, "height": 128, "seed": 3, "output_format": "png"}
    data = asyncio.run(by_our_adapter(keyed, "embedded", body))
    assert Image.open(io.BytesIO(data)).size == (128, 128)


def test_our_own_adapter_edits_with_the_open_model(anywhere: RunningService) -> None:
    """The body is the one that the cloud is sent for the same request."""
    row = load_catalog()["bfl/flux-2-klein-4b"]
    pictures = [file_of(gradient(64, 64)), file_of(gradient(96, 64))]
    body = body_of(row, request_for(row), 5, pictures, None)
    assert {"input_image", "input_image_2"} <= set(body)
    data = asyncio.run(by_our_adapter(anywhere, "flux-2-klein-4b", body))
    assert Image.open(io.BytesIO(data)).size == (512, 256)
    [job] = anywhere.client.get("/jobs?limit=1").json()["jobs"]
    assert job["request"]["model"] == "flux2-klein-4b"
    assert len(job["request"]["reference_images"]) == 2
    assert job["request"]["seed"] == 5


def request_for(row: ModelRow) -> GenerationRequest:
    return GenerationRequest(
        prompt="x",
        negative_prompt=None,
        model=row.id,
        backend=row.backend,
        width=512,
        height=256,
        num_inference_steps=row.num_inference_steps,
        guidance_scale=row.guidance_scale,
        true_cfg_scale=row.true_cfg_scale,
        seed=5,
        num_images=1,
        output_format=OutputFormat.PNG,
        output_quality=95,
        tags=(),
    )


def test_default_is_this_services_own(engine_service: RunningService) -> None:
    assert drawn(engine_service, "default", output_format="png").size == (256, 256)


@pytest.mark.parametrize(
    ("ratio", "size"), [("1:1", (256, 256)), ("16:9", (336, 192)), ("9:21", (160, 384))]
)
def test_aspect_ratio_keeps_the_pixels(
    engine_service: RunningService, ratio: str, size: tuple[int, int]
) -> None:
    assert drawn(engine_service, aspect_ratio=ratio).size == size


def test_picture_is_begun_with(engine_service: RunningService) -> None:
    picture = in_base64(gradient(160, 128))
    assert drawn(engine_service, input_image=picture, strength=0.5).size == (160, 128)
    mask = in_base64(Image.new("L", (160, 128), 255))
    assert drawn(engine_service, image=picture, mask=mask).size == (160, 128)


def test_progress_is_told_while_it_is_drawn(engine_service: RunningService) -> None:
    told = submit(engine_service, prompt="hold bfl-progress", width=128, height=128).json()
    engine_service.wait_until(lambda: got(told["polling_url"]).json()["progress"])
    result = got(told["polling_url"]).json()
    assert (result["status"], result["result"]) == ("Pending", None)
    assert 0 < result["progress"] < 1
    engine_service.release("bfl-progress")
    assert polled(told["polling_url"])["status"] == "Ready"


def test_job_that_fails_says_why(engine_service: RunningService) -> None:
    result = polled(submit(engine_service, prompt="raise").json()["polling_url"])
    assert (result["status"], result["details"]["code"]) == ("Error", "internal")
    assert "drawing failed" in result["details"]["error"]


def test_job_that_was_cancelled_is_an_error(engine_service: RunningService) -> None:
    told = submit(engine_service, prompt="hold bfl-cancelled").json()
    engine_service.client.post(f"/jobs/{told['id']}/cancel")
    assert polled(told["polling_url"])["details"]["code"] == "cancelled"


@pytest.mark.parametrize("task", ["nobody", "", "../../etc/passwd"])
def test_task_that_is_unknown_is_not_found(engine_service: RunningService, task: str) -> None:
    answer = engine_service.client.get("/v1/get_result", params={"id": task})
    assert answer.status_code == 404
    assert answer.json()["status"] == "Task not found"


@pytest.mark.parametrize(
    ("model", "status", "words"),
    [
        ("flux-schnell", 409, "POST /v1/default asks this service's default, embedded"),
        ("flux-2-klein-4b", 409, "POST /v1/bfl/flux-2-klein-4b asks BFL's cloud"),
        ("flux-2-pro", 503, "FLUX_BFL_API_KEY"),
        ("flux-9", 404, "GET /api/models"),
    ],
)
def test_model_that_does_not_run_here_is_refused_by_name(
    engine_service: RunningService, model: str, status: int, words: str
) -> None:
    answer = submit(engine_service, model)
    assert answer.status_code == status, answer.text
    assert words in answer.json()["detail"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"width": 100}, "width"),
        ({"width": 4096, "height": 128}, "width"),
        ({"aspect_ratio": "wide"}, "aspect_ratio"),
        ({"aspect_ratio": "100:1"}, "aspect_ratio"),
        ({"aspect_ratio": "0:0"}, "aspect_ratio"),
        ({"steps": 0}, "steps"),
        ({"guidance": 99}, "guidance"),
        ({"seed": -2}, "seed"),
        ({"output_format": "tiff"}, "output_format"),
        ({"safety_tolerance": 9}, "safety_tolerance"),
        ({"prompt_upsampling": True}, "prompt_upsampling"),
        ({"webhook_url": "https://example.org"}, "webhook_url"),
        ({"input_image": "https://example.org/a.png"}, "input_image"),
        ({"input_image": "a", "input_image_2": "b"}, "input_image"),
        ({"mask": "a"}, "mask"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_fault_has_its_place_in_bfls_shape(
    engine_service: RunningService, body: dict, field: str
) -> None:
    answer = submit(engine_service, **body)
    assert answer.status_code == 422, answer.text
    [fault] = answer.json()["detail"]
    assert fault["loc"] == ["body", field]
    assert fault["msg"]


def test_key_that_is_missing_is_told_in_bfls_shape(keyed: RunningService) -> None:
    answer = keyed.client.post("/v1/embedded", json={"prompt": "x"})
    assert answer.status_code == 401
    assert isinstance(answer.json()["detail"], str)
