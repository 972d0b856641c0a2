"""OpenAI's dialect, by OpenAI's own client and by the bodies that other clients are known to send."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator

import httpx2
import openai
import pytest
from PIL import Image

from tests.api.dialects.conftest import KEY
from tests.pictures import file_of, gradient
from tests.service import RunningService

JPEG = b"\xff\xd8\xff"


@pytest.fixture(scope="module")
def client(service: RunningService) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{service.url}/v1", api_key="any", max_retries=0) as client:
        yield client


def opened(b64_json: str) -> Image.Image:
    picture = Image.open(io.BytesIO(base64.b64decode(b64_json)))
    picture.load()
    return picture


# The official client


def test_client_generates_with_a_name_of_openais(client: openai.OpenAI) -> None:
    answer = client.images.generate(model="gpt-image-1", prompt="a red balloon", size="128x128")
    assert opened(answer.data[0].b64_json).size == (128, 128)
    assert (answer.size, answer.output_format, answer.background) == ("128x128", "png", "opaque")
    assert answer.usage.total_tokens == 0
    assert answer.model == "embedded"


def test_client_seed_is_the_native_picture(service: RunningService, client: openai.OpenAI) -> None:
    ours = service.generate(prompt="a blue house", width=128, height=128, seed=5).json()["image"]
    answer = client.images.generate(
        prompt="a blue house", size="128x128", extra_body={"seed": 5, "steps": 4}
    )
    assert answer.data[0].b64_json == ours


def test_client_asks_for_several(client: openai.OpenAI) -> None:
    answer = client.images.generate(prompt="a tree", size="128x128", n=2, extra_body={"seed": 1})
    assert [datum.seed for datum in answer.data] == [1, 2]
    assert answer.data[0].b64_json != answer.data[1].b64_json


@pytest.mark.parametrize(
    ("size", "drawn"),
    [("1024x1024", (512, 512)), ("1536x1024", (512, 336)), ("100x200", (128, 256))],
)
def test_client_size_that_the_model_does_not_draw_is_the_nearest(
    engine_service: RunningService, size: str, drawn: tuple[int, int]
) -> None:
    answer = post(engine_service, prompt="x", size=size).json()
    assert answer["size"] == f"{drawn[0]}x{drawn[1]}"
    assert opened(answer["data"][0]["b64_json"]).size == drawn


def test_client_webp_is_compressed_as_asked(client: openai.OpenAI) -> None:
    sizes = []
    for compression in (10, 95):
        answer = client.images.generate(
            prompt="a car",
            size="128x128",
            output_format="webp",
            output_compression=compression,
            extra_body={"seed": 3},
        )
        picture = opened(answer.data[0].b64_json)
        assert picture.format == "WEBP"
        sizes.append(len(answer.data[0].b64_json))
    assert sizes[0] < sizes[1]


def test_client_edits_a_picture(client: openai.OpenAI) -> None:
    picture = file_of(gradient(160, 128))
    answer = client.images.edit(
        image=("a.png", picture, "image/png"), prompt="a red ball", extra_body={"seed": 1}
    )
    assert opened(answer.data[0].b64_json).size == (160, 128)


def test_client_edits_where_the_mask_is_transparent(client: openai.OpenAI) -> None:
    picture = gradient(128, 128)
    mask = Image.new("RGBA", (128, 128), (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 0, 64, 128))
    answer = client.images.edit(
        image=[("a.png", file_of(picture), "image/png")],
        mask=("m.png", file_of(mask), "image/png"),
        prompt="a red ball",
        size="auto",
        extra_body={"seed": 1},
    )
    drawn = opened(answer.data[0].b64_json)
    right = (64, 0, 128, 128)
    assert drawn.crop(right).tobytes() == picture.crop(right).tobytes()
    left = (0, 0, 64, 128)
    assert drawn.crop(left).tobytes() != picture.crop(left).tobytes()


def test_client_streams_previews_of_the_steps(client: openai.OpenAI) -> None:
    stream = client.images.generate(
        prompt="a red balloon",
        size="256x256",
        stream=True,
        partial_images=2,
        extra_body={"steps": 20, "seed": 1},
    )
    events = list(stream)
    partial, completed = events[:-1], events[-1]
    assert 1 <= len(partial) <= 2
    assert [event.partial_image_index for event in partial] == list(range(len(partial)))
    assert all(event.type == "image_generation.partial_image" for event in partial)
    assert all(base64.b64decode(event.b64_json).startswith(JPEG) for event in partial)
    assert completed.type == "image_generation.completed"
    assert opened(completed.b64_json).size == (256, 256)
    assert completed.usage.total_tokens == 0


def test_client_streams_an_edit(client: openai.OpenAI) -> None:
    stream = client.images.edit(
        image=("a.png", file_of(gradient(128, 128)), "image/png"),
        prompt="a ball",
        stream=True,
        partial_images=0,
    )
    assert [event.type for event in stream] == ["image_edit.completed"]


def test_client_stream_of_a_job_that_fails_ends_in_an_error(engine_service: RunningService) -> None:
    with openai.OpenAI(base_url=f"{engine_service.url}/v1", api_key="x", max_retries=0) as client:
        with pytest.raises(openai.APIError, match="drawing failed"):
            list(client.images.generate(prompt="raise", size="128x128", stream=True))


def test_client_lists_models(client: openai.OpenAI) -> None:
    models = client.models.list().data
    assert models[0].id == "embedded"
    assert client.models.retrieve("embedded").object == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-image-9")


def test_client_retrieves_the_models_that_are_listed_and_no_others(client: openai.OpenAI) -> None:
    listed = {model.id for model in client.models.list().data}
    assert "z-image-turbo" not in listed
    with pytest.raises(openai.NotFoundError, match="z-image-turbo needs a GPU"):
        client.models.retrieve("z-image-turbo")


def test_client_url_is_fetched_without_a_key(keyed: RunningService) -> None:
    with openai.OpenAI(base_url=f"{keyed.url}/v1", api_key=KEY, max_retries=0) as client:
        answer = client.images.generate(prompt="x", size="128x128", response_format="url")
    url = answer.data[0].url
    assert keyed.client.get(url).headers["content-type"] == "image/png"
    signed, _, rest = url.partition("-")
    assert keyed.client.get(f"{signed}-{'0' * 64}{rest[64:]}").status_code == 404


def test_client_with_a_wrong_key_is_told_in_openais_shape(keyed: RunningService) -> None:
    with openai.OpenAI(base_url=f"{keyed.url}/v1", api_key="wrong", max_retries=0) as client:
        with pytest.raises(openai.AuthenticationError) as raised:
            client.models.list()
    assert raised.value.body["code"] == "invalid_api_key"


# What other clients send


def post(service: RunningService, path: str = "generations", **body) -> httpx2.Response:
    return service.client.post(f"/v1/images/{path}", json=body)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(
            {
                "model": "dall-e-2",
                "prompt": "a lighthouse",
                "n": 1,
                "size": "512x512",
                "response_format": "b64_json",
            },
            id="Open WebUI",
        ),
        pytest.param(
            {
                "model": "dall-e-2",
                "prompt": "a lighthouse",
                "n": 1,
                "size": "512x512",
                "response_format": "b64_json",
                "steps": 2,
                "seed": 9,
                "loras": [],
            },
            id="Open WebUI with its extra parameters",
        ),
        pytest.param(
            {
                "model": "gpt-image-1",
                "prompt": "a lighthouse",
                "n": 1,
                "background": "auto",
                "output_format": "png",
                "quality": "auto",
                "size": "auto",
            },
            id="LibreChat",
        ),
        pytest.param(
            {"prompt": "a lighthouse", "model": "gpt-image-1-mini", "n": 1, "quality": "medium"},
            id="n8n",
        ),
        pytest.param(
            {
                "prompt": "a lighthouse",
                "model": "dall-e-3",
                "response_format": "b64_json",
                "n": 1,
                "size": "1024x1024",
                "style": "vivid",
                "quality": "hd",
            },
            id="n8n with an older model",
        ),
    ],
)
def test_body_of_a_client_is_answered_in_base64(engine_service: RunningService, body: dict) -> None:
    answer = post(engine_service, **body)
    assert answer.status_code == 200, answer.text
    [datum] = answer.json()["data"]
    assert opened(datum["b64_json"]).format == "PNG"
    assert answer.json()["created"] > 1_700_000_000


@pytest.mark.parametrize("quality", [[], ["high"], {}, 1, True])
def test_quality_of_another_type_is_that_of_the_model(
    engine_service: RunningService, quality: object
) -> None:
    answer = post(engine_service, prompt="a lighthouse", quality=quality)
    assert (answer.status_code, answer.json()["quality"]) == (200, "auto")


def test_edit_of_open_webui_with_one_picture(engine_service: RunningService) -> None:
    answer = engine_service.client.post(
        "/v1/images/edits",
        data={"model": "dall-e-2", "prompt": "x", "n": "1", "response_format": "b64_json"},
        files={"image": ("image.png", file_of(gradient(128, 128)), "image/png")},
    )
    assert answer.status_code == 200, answer.text


def test_edit_of_librechat_with_brackets(engine_service: RunningService) -> None:
    answer = engine_service.client.post(
        "/v1/images/edits",
        data={"model": "gpt-image-1", "prompt": "x", "quality": "auto", "size": "auto"},
        files=[("image[]", ("image.png", file_of(gradient(128, 128)), "image/png"))],
    )
    assert answer.status_code == 200, answer.text


def test_edit_in_json(engine_service: RunningService) -> None:
    url = "data:image/png;base64," + base64.b64encode(file_of(gradient(144, 128))).decode()
    answer = post(engine_service, "edits", prompt="x", images=[{"image_url": url}])
    assert answer.json()["size"] == "144x128", answer.text


# Faults


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": 3}, "prompt"),
        ({"prompt": "x" * 2001}, "prompt"),
        ({"prompt": "x", "n": 9}, "n"),
        ({"prompt": "x", "n": 0}, "n"),
        ({"prompt": "x", "n": "two"}, "n"),
        ({"prompt": "x", "n": 1e999}, "n"),
        ({"prompt": "x", "size": "big"}, "size"),
        ({"prompt": "x", "size": "0x64"}, "size"),
        ({"prompt": "x", "size": ["64x64"]}, "size"),
        ({"prompt": "x", "output_format": "gif"}, "output_format"),
        ({"prompt": "x", "output_compression": 101}, "output_compression"),
        ({"prompt": "x", "response_format": "file"}, "response_format"),
        ({"prompt": "x", "background": "transparent"}, "background"),
        ({"prompt": "x", "stream": True, "partial_images": 4}, "partial_images"),
        ({"prompt": "x", "stream": "yes"}, "stream"),
        ({"prompt": "x", "seed": -5}, "seed"),
        ({"prompt": "x", "loras": [{"name": "nobody"}]}, "loras.0.name"),
        ({"prompt": "x", "model": "flux-schnell"}, "model"),
        ({"prompt": "x", "model": 7}, "model"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_fault_names_the_field_in_openais_shape(
    engine_service: RunningService, body: dict, param: str
) -> None:
    answer = engine_service.client.post("/v1/images/generations", content=json.dumps(body))
    assert answer.status_code in (400, 404), answer.text
    error = answer.json()["error"]
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    assert answer.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    ("files", "param"),
    [
        ([], "image"),
        ([("image", b"no picture")], "image"),
        ([("image", file_of(gradient(64, 64))), ("mask", b"none")], "mask"),
        ([("image", file_of(gradient(64, 64))), ("mask", file_of(gradient(64, 64)))], "mask"),
        ([("picture", file_of(gradient(64, 64)))], "picture"),
    ],
    ids=["no picture", "no file of a picture", "no mask", "mask without transparency", "another"],
)
def test_edit_fault_names_the_field(
    engine_service: RunningService, files: list, param: str
) -> None:
    sent = [(name, (f"{name}.png", data, "image/png")) for name, data in files]
    answer = engine_service.client.post(
        "/v1/images/edits", data={"prompt": "x"}, files=sent or {"x": ("", b"", "text/plain")}
    )
    if not sent:
        answer = engine_service.client.post("/v1/images/edits", json={"prompt": "x"})
    assert answer.json()["error"]["param"] == param, answer.text
    assert 400 <= answer.status_code < 500


def test_edit_fetches_no_url(engine_service: RunningService) -> None:
    answer = post(
        engine_service, "edits", prompt="x", images=[{"image_url": "http://127.0.0.1:1/a.png"}]
    )
    assert answer.json()["error"]["param"] == "image"
    assert "nothing is fetched" in answer.json()["error"]["message"]


def test_route_of_openai_that_is_not_here_is_404_in_its_shape(
    engine_service: RunningService,
) -> None:
    answer = engine_service.client.post("/v1/chat/completions", json={})
    assert answer.status_code == 404
    assert "no route" in answer.json()["error"]["message"]
    assert answer.json()["error"]["code"] == "not_found"


def test_body_too_long_is_413_in_its_shape(engine_service: RunningService) -> None:
    """No setting is named: none makes this limit larger."""
    answer = engine_service.client.post("/v1/images/generations", content=b"x" * (3 * 2**20))
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")
    assert answer.json()["error"]["message"] == "the body is longer than 1048576 bytes"


def test_client_that_hangs_up_cancels_its_job(engine_service: RunningService) -> None:
    before = {job["id"] for job in engine_service.client.get("/jobs").json()["jobs"]}
    with engine_service.client.stream(
        "POST",
        "/v1/images/generations",
        json={"prompt": "hold openai-gone", "size": "128x128", "stream": True},
    ) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        [job] = [
            job
            for job in engine_service.client.get("/jobs").json()["jobs"]
            if job["id"] not in before and job["request"]["prompt"] == "hold openai-gone"
        ]
        engine_service.wait_for_job(job["id"], "running")
    assert engine_service.wait_for_job(job["id"])["status"] == "cancelled"
