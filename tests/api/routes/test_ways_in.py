"""Pictures that come with a request, over HTTP: taken in every form, kept, shown by hash, refused by name."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import numpy
import pytest
from PIL import Image

from tests.pictures import file_of, gradient, turned
from tests.service import RunningService
from utils.metadata import read_png_texts, read_request

SIZE = (144, 160)
IMAGE = file_of(gradient(*SIZE))
SHA256 = hashlib.sha256(IMAGE).hexdigest()


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def left_half(size: tuple[int, int] = SIZE) -> bytes:
    mask = Image.new("L", size, 0)
    mask.paste(255, (0, 0, size[0] // 2, size[1]))
    return file_of(mask)


def refused(answer: httpx2.Response, status: int, code: str, field: str) -> str:
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (status, code), answer.text
    assert field in {error["field"] for error in problem["errors"]}
    return problem["detail"]


def picture_of(answer: httpx2.Response) -> Image.Image:
    assert answer.status_code == 200, answer.text
    return Image.open(io.BytesIO(base64.b64decode(answer.json()["image"])))


def inputs(service: RunningService) -> set[str]:
    folder = service.folder / "data" / "inputs"
    return {path.name for path in folder.rglob("*") if path.is_file()}


# Drawn


def test_generate_image_with_a_mask_keeps_the_rest_to_the_bit(service: RunningService) -> None:
    answer = service.generate(
        image=text(IMAGE), mask=text(left_half()), num_inference_steps=2, seed=1
    )
    picture = picture_of(answer)
    assert picture.size == SIZE
    before, after = numpy.asarray(gradient(*SIZE)), numpy.asarray(picture)
    assert (before[:, 72:] == after[:, 72:]).all() and (before[:, :72] != after[:, :72]).any()


def test_generate_image_is_shown_by_hash_and_told_in_the_file(service: RunningService) -> None:
    answer = service.generate(image=text(IMAGE), strength=0.4, num_inference_steps=2, seed=1)
    data = base64.b64decode(answer.json()["image"])
    request = service.job(answer.json()["id"])["request"]
    assert (request["image"], request["mask"], request["strength"]) == (SHA256, None, 0.4)
    written = read_request(data)["request"]
    assert (written["image"], written["strength"], "mask" in written) == (SHA256, 0.4, False)
    parameters = read_png_texts(data)["parameters"]
    assert f"Denoising strength: 0.4, Init image hash: {SHA256}" in parameters
    listed = service.client.get("/images?limit=1").json()["images"][0]["request"]
    assert listed["image"] == SHA256


def test_generate_without_an_image_tells_nothing_of_one(service: RunningService) -> None:
    answer = service.generate(width=128, height=128, num_inference_steps=1)
    data = base64.b64decode(answer.json()["image"])
    assert {"image", "strength"}.isdisjoint(read_request(data)["request"])
    assert "Denoising" not in read_png_texts(data)["parameters"]


def test_generate_forms_of_one_picture_give_the_same_bytes(service: RunningService) -> None:
    first = service.generate(width=128, height=128, num_inference_steps=1, seed=1).json()
    data = base64.b64decode(first["image"])
    sha256 = hashlib.sha256(data).hexdigest()
    forms = [text(data), f"data:image/png;base64,{text(data)}", first["images"][0]["id"], sha256]
    drawn = {
        service.generate(image=form, num_inference_steps=1, seed=2).json()["image"]
        for form in forms
    }
    form = {"prompt": "a red balloon", "num_inference_steps": "1", "seed": "2"}
    answer = service.client.post(
        "/upload-image-generate", data=form, files={"file": ("a.png", data)}
    )
    assert drawn == {answer.json()["image"]}


def test_generate_image_with_a_lora_draws_with_both(service: RunningService) -> None:
    body = {"image": text(IMAGE), "strength": 0.8, "num_inference_steps": 2, "seed": 1}
    plain = service.generate(**body).json()
    styled = service.generate(**body, loras=[{"name": "sketch"}]).json()
    assert styled["loras_applied"][0]["unmatched_keys"] == 0
    assert styled["image"] != plain["image"]


def test_jobs_image_steps_are_those_that_run(service: RunningService) -> None:
    job_id = service.submit(
        image=text(IMAGE), strength=0.5, num_inference_steps=4, num_images=3, seed=5
    )
    job = service.wait_for_job(job_id)
    assert job["status"] == "succeeded" and len(job["result"]["images"]) == 3
    assert [image["seed"] for image in job["result"]["images"]] == [5, 6, 7]


def test_generate_image_of_a_phone_is_upright(engine_service: RunningService) -> None:
    data = file_of(gradient(320, 160), "JPEG", exif=turned(6))
    answer = engine_service.generate(image=text(data))
    assert (answer.json()["width"], answer.json()["height"]) == (160, 320)


@pytest.mark.parametrize(
    ("size", "asked", "drawn"),
    [
        ((210, 150), {}, (208, 144)),
        ((4000, 2000), {}, (512, 256)),
        ((60, 90), {}, (128, 192)),
        ((1000, 50), {}, (512, 128)),
        ((300, 300), {"width": 128}, (128, 128)),
        ((300, 150), {"height": 160}, (320, 160)),
        ((300, 150), {"width": 128, "height": 256}, (128, 256)),
    ],
)
def test_generate_size_follows_the_image(
    engine_service: RunningService,
    size: tuple[int, int],
    asked: dict[str, int],
    drawn: tuple[int, int],
) -> None:
    answer = engine_service.generate(image=text(file_of(Image.new("RGB", size))), **asked).json()
    assert (answer["width"], answer["height"]) == drawn


@pytest.mark.parametrize(("mask", "strength"), [(False, 0.6), (True, 1.0)])
def test_generate_strength_that_is_left_out(
    engine_service: RunningService, mask: bool, strength: float
) -> None:
    masked = {"mask": text(left_half())} if mask else {}
    answer = engine_service.generate(image=text(IMAGE), **masked).json()
    assert engine_service.job(answer["id"])["request"]["strength"] == strength


def test_upload_answers_raw_when_asked(engine_service: RunningService) -> None:
    answer = engine_service.client.post(
        "/upload-image-generate?format=raw",
        data={"prompt": "a", "strength": "0.5", "loras": "[]", "metadata": '{"tags": ["x"]}'},
        files={"image": ("a.png", IMAGE, "image/png"), "mask": ("m.png", left_half())},
    )
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    request = engine_service.job(answer.headers["x-job-id"])["request"]
    assert request["strength"] == 0.5 and request["metadata"] == {"tags": ["x"]}
    assert request["mask"] == hashlib.sha256(left_half()).hexdigest()


# Refused


@pytest.mark.parametrize("field", ["image", "mask"])
@pytest.mark.parametrize("path", ["/generate", "/jobs"])
@pytest.mark.parametrize(
    ("value", "status", "code", "words"),
    [
        ("http://example.org/a.png", 400, "invalid_request", "is a URL (http:)"),
        ("file:///etc/passwd", 400, "invalid_request", "is a URL (file:)"),
        ("no base64!", 400, "invalid_request", "neither base64"),
        ("abcdef012345-0", 404, "not_found", "there is no picture"),
        ("ab" * 32, 404, "not_found", "not here any more"),
        (text(b"hello"), 415, "bad_file", "no PNG, JPEG or WebP"),
        (text(file_of(gradient(8, 8), "TIFF")), 415, "bad_file", "no PNG, JPEG or WebP"),
        (text(IMAGE[:-30]), 422, "bad_file", "cut off"),
        (5, 400, "invalid_request", "string"),
    ],
)
def test_picture_is_refused_by_name(
    engine_service: RunningService,
    path: str,
    field: str,
    value: Any,
    status: int,
    code: str,
    words: str,
) -> None:
    body = {"prompt": "a", "image": text(IMAGE)} | {field: value}
    answer = engine_service.client.post(path, json=body)
    assert words in refused(answer, status, code, field)


def test_picture_with_too_many_pixels_is_413(engine_service: RunningService) -> None:
    data = file_of(Image.new("1", (8200, 8200)))
    answer = engine_service.generate(image=text(data))
    assert "8200x8200" in refused(answer, 413, "too_large", "image")


def test_picture_over_the_bodys_limit_is_413(start_engine: Callable[..., RunningService]) -> None:
    service = start_engine(FLUX_MAX_BODY_BYTES="4096")
    noise = file_of(Image.effect_noise((100, 100), 90))
    assert len(noise) > 4096
    answer = service.generate(image=text(noise))
    assert "FLUX_MAX_BODY_BYTES" in refused(answer, 413, "too_large", "body")
    answer = service.client.post(
        "/upload-image-generate", data={"prompt": "a"}, files={"image": ("a.png", noise)}
    )
    assert "FLUX_MAX_BODY_BYTES" in refused(answer, 413, "too_large", "body")
    assert inputs(service) == set()


def test_mask_of_another_size_is_refused(engine_service: RunningService) -> None:
    before, image = inputs(engine_service), file_of(gradient(150, 172))
    answer = engine_service.generate(image=text(image), mask=text(left_half((172, 150))))
    assert inputs(engine_service) == before
    assert "send a mask of the image's size" in refused(answer, 422, "bad_file", "mask")


@pytest.mark.parametrize("field", ["mask", "strength"])
def test_mask_and_strength_need_an_image(engine_service: RunningService, field: str) -> None:
    value = text(left_half()) if field == "mask" else 0.5
    answer = engine_service.generate(**{field: value})
    assert "goes with image" in refused(answer, 400, "invalid_request", field)


@pytest.mark.parametrize("strength", [-0.1, 1.01, "0.5", True])
def test_strength_out_of_range_is_refused(engine_service: RunningService, strength: Any) -> None:
    answer = engine_service.generate(image=text(IMAGE), strength=strength)
    refused(answer, 400, "invalid_request", "strength")


def test_image_with_wrong_fields_is_not_kept(engine_service: RunningService) -> None:
    before = inputs(engine_service)
    answer = engine_service.generate(image=text(file_of(gradient(150, 171))), width=100)
    refused(answer, 400, "invalid_request", "width")
    assert inputs(engine_service) == before


@pytest.mark.parametrize(
    ("form", "files", "field"),
    [
        ({"prompt": "a"}, {"mask": left_half()}, "image"),
        ({"prompt": "a"}, {"picture": IMAGE}, "picture"),
        ({"prompt": "a", "width": "wide"}, {"image": IMAGE}, "width"),
        ({"prompt": "a", "width": "100"}, {"image": IMAGE}, "width"),
        ({"prompt": "a", "strength": "2"}, {"image": IMAGE}, "strength"),
        ({"prompt": "a", "stepz": "2"}, {"image": IMAGE}, "stepz"),
        ({"strength": "0.5"}, {"image": IMAGE}, "prompt"),
        ({"prompt": "a"}, {"image": IMAGE, "file": IMAGE}, "file"),
    ],
)
def test_upload_with_wrong_fields_is_refused_by_name(
    engine_service: RunningService, form: dict[str, str], files: dict[str, bytes], field: str
) -> None:
    sent = {name: (f"{name}.png", data) for name, data in files.items()}
    answer = engine_service.client.post("/upload-image-generate", data=form, files=sent)
    refused(answer, 400, "invalid_request", field)


def test_upload_of_a_picture_under_both_its_names_is_refused(
    engine_service: RunningService,
) -> None:
    files = [("file", ("a.png", IMAGE)), ("image", ("b.png", IMAGE))]
    answer = engine_service.client.post("/upload-image-generate", data={"prompt": "a"}, files=files)
    assert "the same as file" in refused(answer, 400, "invalid_request", "image")


def test_upload_of_a_form_that_is_cut_is_refused(engine_service: RunningService) -> None:
    answer = engine_service.client.post(
        "/upload-image-generate",
        content=b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na'
        b"\r\n--x\r\nContent-Disposition: form-data\r\n\r\nb\r\n--x--\r\n",
        headers={"Content-Type": "multipart/form-data; boundary=x"},
    )
    assert "is no whole form" in refused(answer, 400, "invalid_request", "body")


def test_upload_that_is_no_form_is_refused(engine_service: RunningService) -> None:
    answer = engine_service.client.post("/upload-image-generate", json={"prompt": "a"})
    assert "multipart/form-data" in refused(answer, 415, "bad_file", "body")


def test_generate_image_that_cannot_be_decoded_is_422(engine_service: RunningService) -> None:
    start = IMAGE.index(b"IDAT") + 8
    damaged = IMAGE[:start] + bytes(60) + IMAGE[start + 60 :]
    answer = engine_service.generate(image=text(damaged))
    assert (answer.status_code, answer.json()["code"]) == (422, "bad_file")
    assert "image: the picture cannot be decoded" in answer.json()["detail"]
    (fault,) = answer.json()["errors"]
    assert fault["field"] == "image" and fault["message"].startswith("the picture cannot be")
    assert engine_service.generate(image=text(IMAGE)).status_code == 200  # the worker lives on


# Kept


def test_jobs_keep_their_pictures_over_a_restart(
    start_engine: Callable[..., RunningService], tmp_path: Path
) -> None:
    service = start_engine(folder=tmp_path / "kept")
    service.client.post("/queue/pause")
    job_id = service.submit(image=text(IMAGE), mask=text(left_half()))
    assert inputs(service) == {SHA256, hashlib.sha256(left_half()).hexdigest()}
    service.kill()
    again = start_engine(folder=tmp_path / "kept")
    again.client.post("/queue/resume")
    assert again.wait_for_job(job_id)["status"] == "succeeded"


def test_retry_draws_the_same_picture_while_its_input_is_there(
    engine_service: RunningService,
) -> None:
    service, data = engine_service, file_of(gradient(150, 170))
    sha256 = hashlib.sha256(data).hexdigest()
    job_id = service.submit(image=text(data))
    service.wait_for_job(job_id)
    again = service.client.post(f"/jobs/{job_id}/retry")
    assert again.status_code == 202
    assert service.wait_for_job(again.json()["id"])["status"] == "succeeded"
    next((service.folder / "data" / "inputs").rglob(sha256)).unlink()
    gone = service.client.post(f"/jobs/{job_id}/retry")
    assert sha256 in refused(gone, 404, "not_found", "image")


def test_jobs_same_key_and_picture_is_the_same_job(engine_service: RunningService) -> None:
    def submit(**body: Any) -> httpx2.Response:
        return engine_service.client.post(
            "/jobs",
            json={"prompt": "a", "image": text(IMAGE), **body},
            headers={"Idempotency-Key": "a picture"},
        )

    first, again = submit(), submit()
    assert first.json()["id"] == again.json()["id"]
    assert submit(image=text(left_half())).status_code == 422
    assert submit(mask=text(left_half())).status_code == 422


# Read back


def inspect(service: RunningService, data: bytes, name: str = "file") -> httpx2.Response:
    return service.client.post("/images/inspect", files={name: ("a.png", data)})


def test_inspect_gives_a_request_that_draws_the_same_picture(service: RunningService) -> None:
    body = {"image": text(IMAGE), "strength": 0.5, "num_inference_steps": 2, "seed": 3}
    drawn = service.generate(negative_prompt="fog", **body).json()["image"]
    answer = inspect(service, base64.b64decode(drawn)).json()
    assert answer["made_by"]["precision"] == "bf16"
    assert "Steps: 2" in answer["parameters"]
    again = service.client.post("/generate", json=answer["request"])
    assert again.json()["image"] == drawn


@pytest.mark.parametrize("output_format", ["jpeg", "webp"])
def test_inspect_reads_the_comment_of_jpeg_and_webp(
    engine_service: RunningService, output_format: str
) -> None:
    body = {"prompt": "größer 🎈\nflux_api: {}", "seed": 7, "output_format": output_format}
    drawn = engine_service.generate(**body).json()["image"]
    answer = inspect(engine_service, base64.b64decode(drawn)).json()
    assert {name: answer["request"][name] for name in body} == body
    assert answer["parameters"].startswith("größer 🎈")


def test_inspect_reads_what_other_programs_write(engine_service: RunningService) -> None:
    from PIL.PngImagePlugin import PngInfo

    texts = PngInfo()
    texts.add_text("parameters", "a boat\nSteps: 20, CFG scale: 7, Seed: 1, Size: 512x512")
    answer = inspect(engine_service, file_of(gradient(8, 8), pnginfo=texts), "image").json()
    assert answer["made_by"] is None
    assert (answer["request"]["prompt"], answer["request"]["seed"]) == ("a boat", 1)


@pytest.mark.parametrize(
    ("data", "status"),
    [(IMAGE, 422), (IMAGE[:-20], 422), (b"hello", 415), (file_of(gradient(8, 8), "JPEG"), 422)],
)
def test_inspect_refuses_what_holds_no_request(
    engine_service: RunningService, data: bytes, status: int
) -> None:
    refused(inspect(engine_service, data), status, "bad_file", "file")


@pytest.mark.parametrize(
    "written",
    [
        "no JSON", "5", "{}", '{"request": 1}', "[" * 100_000,
        r'{"request": {"prompt": "\ud800"}}', '{"request": {"seed": NaN}}',
    ],
)  # fmt: skip
def test_inspect_of_a_forged_request_is_refused(
    engine_service: RunningService, written: str
) -> None:
    from PIL.PngImagePlugin import PngInfo

    texts = PngInfo()
    texts.add_itxt("flux_api", written)
    data = file_of(gradient(8, 8), pnginfo=texts)
    refused(inspect(engine_service, data), 422, "bad_file", "file")


def test_inspect_without_a_file_is_refused(engine_service: RunningService) -> None:
    answer = engine_service.client.post("/images/inspect", data={"a": "b"}, files={"x": b""})
    refused(answer, 400, "invalid_request", "x")


def test_models_tell_which_ways_they_have(engine_service: RunningService) -> None:
    models = engine_service.client.get("/api/models").json()["models"]
    ways = {model["id"]: model["ways"] for model in models}
    assert ways["embedded"] == ways["flux-schnell"] == ["text", "image", "mask"]
