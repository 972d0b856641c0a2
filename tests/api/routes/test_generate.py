"""`POST /generate` with the real model: what is answered, what the picture says, what repeats."""

import base64
import io
import json

import pytest
from PIL import Image

from api.schemas import ALIASES
from tests.service import RunningService
from utils.metadata import PARAMETERS_KEY, REQUEST_KEY, read_png_texts

SMALL = {"width": 128, "height": 128, "num_inference_steps": 1}
EVERY_FIELD = {
    "id", "status", "prompt", "width", "height", "model", "precision", "engine", "seed",
    "num_inference_steps", "guidance_scale", "image", "images", "filename", "image_url",
    "download_url", "loras_applied", "timings_ms", "generation_time_ms",
}  # fmt: skip
EVERY_TIMING = {"queued", "load", "encode", "denoise", "decode", "total"}


def draw(service: RunningService, **body) -> dict:
    answer = service.generate(**{**SMALL, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


def picture(service: RunningService, **body) -> bytes:
    return base64.b64decode(draw(service, **body)["image"])


def pixels(data: bytes) -> bytes:
    return Image.open(io.BytesIO(data)).tobytes()


# The answer


def test_generate_answer_has_every_field_of_the_contract(service: RunningService) -> None:
    answer = draw(service, seed=5)
    assert EVERY_FIELD <= set(answer)
    assert set(answer["timings_ms"]) >= EVERY_TIMING
    assert set(answer["images"][0]) >= {
        "id", "filename", "image_url", "download_url", "seed", "width", "height",
    }  # fmt: skip


def test_generate_answer_reports_what_was_drawn(service: RunningService) -> None:
    answer = draw(service, prompt="  a blue house  ", seed=5, guidance_scale=1.5)
    expected = {
        "status": "succeeded", "prompt": "a blue house", "model": "embedded", "precision": "bf16",
        "engine": "diffusers", "seed": 5, "num_inference_steps": 1, "guidance_scale": 1.5,
        "width": 128, "height": 128, "loras_applied": [],
    }  # fmt: skip
    assert {name: answer[name] for name in expected} == expected


def test_generate_left_out_fields_take_the_models_defaults(service: RunningService) -> None:
    rows = {row["id"]: row for row in service.client.get("/api/models").json()["models"]}
    answer = service.generate(seed=1).json()
    defaults = rows["embedded"]["defaults"]
    assert {name: answer[name] for name in defaults} == defaults


def test_generate_times_are_a_whole_and_its_parts(service: RunningService) -> None:
    ms = draw(service)["timings_ms"]
    parts = sum(ms[name] for name in ms if name != "total")
    assert all(value >= 0 for value in ms.values())
    assert 0 < parts <= ms["total"] + 5  # the whole is measured in whole milliseconds


@pytest.mark.parametrize("link", ["image_url", "download_url"])
def test_generate_links_lead_to_the_same_bytes(service: RunningService, link: str) -> None:
    answer = draw(service)
    assert service.client.get(answer[link]).content == base64.b64decode(answer["image"])


@pytest.mark.parametrize("ask", ["query", "accept"])
def test_generate_raw_answer_has_bytes_and_headers(service: RunningService, ask: str) -> None:
    options = (
        {"params": {"format": "raw"}} if ask == "query" else {"headers": {"Accept": "image/*"}}
    )
    body = {"prompt": "a red balloon", "seed": 3, **SMALL}
    answer = service.client.post("/generate", json=body, **options)
    assert answer.content == picture(service, seed=3)
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["X-Seed"] == "3"
    assert answer.headers["X-Model"] == answer.headers["X-Fleet-Model"] == "embedded"
    assert answer.headers["X-Fleet-Node"]
    assert int(answer.headers["X-Generation-Time"]) > 0
    assert service.job(answer.headers["X-Job-Id"])["status"] == "succeeded"


@pytest.mark.parametrize("accept", ["*/*", "application/json", "application/json, image/png"])
def test_generate_accept_that_takes_json_gets_json(service: RunningService, accept: str) -> None:
    body = {"prompt": "a red balloon", **SMALL}
    answer = service.client.post("/generate", json=body, headers={"Accept": accept})
    assert answer.headers["content-type"] == "application/json"


def test_generate_query_json_wins_over_accept(service: RunningService) -> None:
    answer = service.client.post(
        "/generate?format=json",
        json={"prompt": "a red balloon", **SMALL},
        headers={"Accept": "image/png"},
    )
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize("name", ["png", "jpeg", "webp"])
def test_generate_format_decodes_at_the_size_asked_for(service: RunningService, name: str) -> None:
    body = {"prompt": "a red balloon", **SMALL, "width": 160, "height": 128, "output_format": name}
    answer = service.client.post("/generate?format=raw", json=body)
    image = Image.open(io.BytesIO(answer.content))
    image.load()
    assert (image.format.lower(), image.size, image.mode) == (name, (160, 128), "RGB")
    assert answer.headers["content-type"] == f"image/{name}"


@pytest.mark.parametrize("name", ["jpeg", "webp"])
def test_generate_lower_quality_makes_a_smaller_file(service: RunningService, name: str) -> None:
    sizes = [
        len(picture(service, seed=1, output_format=name, output_quality=quality))
        for quality in (5, 100)
    ]
    assert sizes[0] < sizes[1]


@pytest.mark.parametrize("name", ["jpeg", "webp"])
def test_generate_format_without_text_chunks_carries_the_request(
    service: RunningService, name: str
) -> None:
    data = picture(service, prompt="ein grüner Würfel 🎈", seed=9, output_format=name)
    comment = Image.open(io.BytesIO(data)).getexif().get_ifd(0x8769)[0x9286]
    text = comment.removeprefix(b"UNICODE\0").decode("utf-16-be")
    described = json.loads(text.partition(f"{REQUEST_KEY}: ")[2])
    assert described["request"]["prompt"] == "ein grüner Würfel 🎈"
    assert described["request"]["seed"] == 9


def test_generate_longest_prompts_fit_into_a_jpeg(service: RunningService) -> None:
    data = picture(
        service, prompt="🎈" * 2000, negative_prompt='"' * 2000, output_format="jpeg", seed=1
    )
    assert Image.open(io.BytesIO(data)).size == (128, 128)


# Seeds


@pytest.mark.parametrize("body", [{}, {"seed": None}, {"seed": -1}], ids=["absent", "null", "-1"])
def test_generate_seed_left_open_is_drawn_and_reported(service: RunningService, body: dict) -> None:
    first, second = draw(service, **body), draw(service, **body)
    assert first["seed"] != second["seed"]
    assert 0 <= first["seed"] <= 2**53 - 1
    assert draw(service, seed=first["seed"])["image"] == first["image"]


@pytest.mark.parametrize("seed", [0, 2**53 - 1])
def test_generate_seed_at_its_limit_is_taken(service: RunningService, seed: int) -> None:
    assert draw(service, seed=seed)["seed"] == seed


def test_generate_num_images_each_equals_its_single_image(service: RunningService) -> None:
    answer = draw(service, seed=40, num_images=3)
    assert [image["seed"] for image in answer["images"]] == [40, 41, 42]
    for image in answer["images"]:
        file = service.client.get(image["image_url"]).content
        assert file == picture(service, seed=image["seed"])


def test_generate_first_of_many_is_the_answers_image(service: RunningService) -> None:
    answer = draw(service, seed=40, num_images=2)
    assert answer["filename"] == answer["images"][0]["filename"]
    assert answer["images"][0]["image_url"] == answer["image_url"]
    assert base64.b64decode(answer["image"]) == picture(service, seed=40)


def test_generate_same_request_twice_gives_equal_bytes(service: RunningService) -> None:
    assert picture(service, seed=7) == picture(service, seed=7)


def test_generate_other_seed_gives_another_picture(service: RunningService) -> None:
    assert pixels(picture(service, seed=7)) != pixels(picture(service, seed=8))


# Words


@pytest.mark.parametrize(("alias", "name"), ALIASES.items())
def test_generate_alias_means_its_field(service: RunningService, alias: str, name: str) -> None:
    body = {"prompt": "a red balloon", "width": 128, "height": 128, "seed": 1, alias: 2}
    answer = service.client.post("/generate", json=body).json()
    assert answer[name] == 2


def test_generate_aliases_are_those_of_the_contract() -> None:
    assert ALIASES == {"steps": "num_inference_steps", "guidance": "guidance_scale"}


@pytest.mark.parametrize(("alias", "name"), ALIASES.items())
def test_generate_alias_and_name_with_one_value_are_taken(
    service: RunningService, alias: str, name: str
) -> None:
    assert draw(service, **{alias: 1, name: 1})[name] == 1


def test_generate_negative_prompt_changes_the_picture(service: RunningService) -> None:
    plain = picture(service, seed=3, num_inference_steps=2)
    pushed = picture(
        service, seed=3, num_inference_steps=2, negative_prompt="green hills", true_cfg_scale=4
    )
    assert pixels(plain) != pixels(pushed)


@pytest.mark.parametrize("scale", [0, 1])
def test_generate_negative_prompt_without_true_cfg_is_inert(
    service: RunningService, scale: float
) -> None:
    plain = picture(service, seed=3)
    inert = picture(service, seed=3, negative_prompt="green hills", true_cfg_scale=scale)
    assert pixels(plain) == pixels(inert)


def test_generate_true_cfg_without_negative_prompt_is_inert(service: RunningService) -> None:
    assert pixels(picture(service, seed=3)) == pixels(picture(service, seed=3, true_cfg_scale=9))


@pytest.mark.parametrize("empty", [None, "", "   "])
def test_generate_empty_negative_prompt_means_none(service: RunningService, empty) -> None:
    answer = draw(service, seed=3, negative_prompt=empty)
    assert answer["negative_prompt"] is None
    assert base64.b64decode(answer["image"]) == picture(service, seed=3)


def test_generate_empty_loras_mean_none(service: RunningService) -> None:
    assert draw(service, seed=3, loras=[])["loras_applied"] == []


def test_generate_metadata_tags_are_kept_with_the_job(service: RunningService) -> None:
    answer = draw(service, metadata={"tags": ["a", "ü" * 64]})
    assert service.job(answer["id"])["request"]["metadata"]["tags"] == ["a", "ü" * 64]


@pytest.mark.parametrize(
    "field",
    [
        "negative_prompt", "model", "backend", "width", "height", "num_inference_steps",
        "guidance_scale", "true_cfg_scale", "num_images", "output_format", "output_quality",
        "metadata", "loras", "image",
    ],
)  # fmt: skip
def test_generate_null_means_left_out(engine_service: RunningService, field: str) -> None:
    assert engine_service.generate(**{field: None}).status_code == 200


# What a PNG says about itself


@pytest.fixture(scope="module")
def told(service: RunningService) -> tuple[bytes, dict[str, str]]:
    """A PNG and its texts, of a request with every word that a PNG can carry."""
    data = picture(
        service,
        prompt="ein grüner Würfel, 立方体",
        negative_prompt="snow",
        true_cfg_scale=2.5,
        seed=123,
        num_inference_steps=2,
    )
    return data, read_png_texts(data)


def test_generate_png_carries_both_texts(told: tuple[bytes, dict[str, str]]) -> None:
    assert set(told[1]) == {PARAMETERS_KEY, REQUEST_KEY} == {"parameters", "flux_api"}


def test_generate_png_parameters_are_as_a1111_writes_them(
    told: tuple[bytes, dict[str, str]],
) -> None:
    prompt, negative, parameters = told[1]["parameters"].splitlines()
    assert prompt == "ein grüner Würfel, 立方体"
    assert negative == "Negative prompt: snow"
    pairs = dict(pair.split(": ") for pair in parameters.split(", "))
    assert (pairs["Steps"], pairs["Seed"], pairs["Size"]) == ("2", "123", "128x128")
    assert (pairs["CFG scale"], pairs["Model"]) == ("2.5", "embedded")


def test_generate_png_request_sent_again_gives_the_same_bytes(
    service: RunningService, told: tuple[bytes, dict[str, str]]
) -> None:
    request = json.loads(told[1]["flux_api"])["request"]
    answer = service.client.post("/generate?format=raw", json=request)
    assert answer.content == told[0]


def test_generate_png_says_what_drew_it_and_why(told: tuple[bytes, dict[str, str]]) -> None:
    said = json.loads(told[1]["flux_api"])
    assert (said["model"], said["precision"], said["engine"]) == ("embedded", "bf16", "diffusers")
    assert "no GPU is used" in said["model_reason"]


def test_generate_png_holds_nothing_that_varies(
    service: RunningService, told: tuple[bytes, dict[str, str]]
) -> None:
    """Neither id nor time: the same picture as one of two, under tags, in another job."""
    request = json.loads(told[1]["flux_api"])["request"]
    request |= {"num_images": 2, "seed": 122, "metadata": {"tags": ["other"]}}
    answer = service.client.post("/generate", json=request).json()
    assert service.client.get(answer["images"][1]["image_url"]).content == told[0]
