"""A1111's dialect, by the webuiapi client and by the bodies that other clients are known to send."""

from __future__ import annotations

import base64
import io
import json
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest
import webuiapi
from PIL import Image

from tests.api.dialects.conftest import KEY
from tests.pictures import file_of, gradient
from tests.service import RunningService


def client_of(service: RunningService, **options: Any) -> webuiapi.WebUIApi:
    return webuiapi.WebUIApi(host="127.0.0.1", port=service.port, steps=4, **options)


@pytest.fixture(scope="module")
def client(service: RunningService) -> webuiapi.WebUIApi:
    return client_of(service)


@pytest.fixture(scope="module")
def engine(engine_service: RunningService) -> webuiapi.WebUIApi:
    return client_of(engine_service)


def post(service: RunningService, path: str = "txt2img", **body: Any) -> httpx2.Response:
    return service.client.post(f"/sdapi/v1/{path}", json={"prompt": "x", **body})


def opened(text: str) -> Image.Image:
    picture = Image.open(io.BytesIO(base64.b64decode(text)))
    picture.load()
    return picture


def in_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


# The client


def test_client_draws_and_reads_what_was_drawn(client: webuiapi.WebUIApi) -> None:
    result = client.txt2img(
        prompt="a red balloon", seed=7, width=128, height=144, sampler_name="DPM++ 2M"
    )
    assert result.image.size == (128, 144)
    info = result.info
    assert (info["seed"], info["width"], info["height"], info["steps"]) == (7, 128, 144, 4)
    assert info["sampler_name"] == "Euler"
    assert info["infotexts"][0].startswith("a red balloon\nSteps: 4, Sampler: Euler")
    assert "Seed: 7" in info["infotexts"][0]
    assert result.parameters["prompt"] == "a red balloon"
    assert result.image.info["parameters"] == info["infotexts"][0]


def test_client_seed_is_the_native_picture(
    service: RunningService, client: webuiapi.WebUIApi
) -> None:
    native = service.generate(prompt="a tree", width=128, height=128, seed=3, steps=4).json()
    answer = post(service, prompt="a tree", width=128, height=128, seed=3, steps=4).json()
    assert answer["images"] == [native["image"]]


def test_client_begins_with_a_picture(client: webuiapi.WebUIApi) -> None:
    result = client.img2img(
        images=[gradient(128, 128)], prompt="a car", width=128, height=128, denoising_strength=0.0
    )
    assert result.image.size == (128, 128)
    assert result.info["denoising_strength"] == 0.0


def test_client_inpaints_where_the_mask_is_white(client: webuiapi.WebUIApi) -> None:
    picture, mask = gradient(128, 128), Image.new("L", (128, 128), 0)
    mask.paste(255, (0, 0, 64, 128))
    result = client.img2img(
        images=[picture],
        mask_image=mask,
        mask_blur=0,
        prompt="a ball",
        seed=1,
        width=128,
        height=128,
        denoising_strength=1.0,
    )
    drawn, right, left = result.image, (64, 0, 128, 128), (0, 0, 64, 128)
    assert drawn.crop(right).tobytes() == picture.crop(right).tobytes()
    assert drawn.crop(left).tobytes() != picture.crop(left).tobytes()


def test_client_inverted_mask_keeps_what_is_white(client: webuiapi.WebUIApi) -> None:
    picture, mask = gradient(128, 128), Image.new("RGB", (128, 128), 0)
    mask.paste((255, 255, 255), (0, 0, 64, 128))
    result = client.img2img(
        images=[picture],
        mask_image=mask,
        mask_blur=0,
        inpainting_mask_invert=1,
        prompt="a ball",
        seed=1,
        width=128,
        height=128,
        denoising_strength=1.0,
    )
    left = (0, 0, 64, 128)
    assert result.image.crop(left).tobytes() == picture.crop(left).tobytes()


def test_client_reads_parameters_back(client: webuiapi.WebUIApi) -> None:
    drawn = client.txt2img(prompt="a boat", seed=11, width=128, height=128)
    buffer = io.BytesIO()
    text = drawn.image.info["parameters"]
    information = webuiapi.webuiapi.PngImagePlugin.PngInfo()
    information.add_text("parameters", text)
    drawn.image.save(buffer, "PNG", pnginfo=information)
    with Image.open(buffer) as picture:
        result = client.png_info(picture)
    assert result.info == text
    assert result.parameters["Seed"] == "11"
    assert result.parameters["Prompt"] == "a boat"


def test_client_uses_a_lora_of_the_prompt(client: webuiapi.WebUIApi) -> None:
    assert {"sketch", "sepia"} <= {lora["name"] for lora in client.get_loras()}
    plain = client.txt2img(prompt="a house", seed=2, width=128, height=128)
    styled = client.txt2img(prompt="a house <lora:sepia:0.8>", seed=2, width=128, height=128)
    assert "<lora:sepia:0.8>" in styled.info["infotexts"][0]
    assert styled.info["prompt"] == "a house"
    assert styled.image.tobytes() != plain.image.tobytes()


def test_client_asks_for_lists(engine: webuiapi.WebUIApi) -> None:
    assert "embedded" in engine.util_get_model_names()
    assert "flux-dev" not in engine.util_get_model_names()
    assert engine.util_get_sampler_names() == ["Euler"]
    assert engine.util_get_scheduler_names() == ["simple"]
    for ask in (
        engine.get_upscalers,
        engine.get_latent_upscale_modes,
        engine.get_sd_vae,
        engine.get_hypernetworks,
        engine.get_face_restorers,
        engine.get_realesrgan_models,
        engine.get_prompt_styles,
        engine.get_artist_categories,
    ):
        assert ask() == []
    assert engine.get_embeddings()["loaded"] == {}
    assert engine.get_scripts() == {"txt2img": [], "img2img": []}
    assert engine.get_memory()["ram"]["total"] > 2**30
    assert engine.get_cmd_flags()["api"] is True
    engine.refresh_checkpoints()


def test_client_sets_the_model(engine: webuiapi.WebUIApi, capsys: Any) -> None:
    engine.util_set_model("embedded")
    assert engine.util_get_current_model() == "embedded"


def test_client_iterations_go_on_with_the_seed(engine_service: RunningService) -> None:
    answer = post(
        engine_service, width=128, height=128, batch_size=2, n_iter=2, seed=5, steps=2
    ).json()
    info = json.loads(answer["info"])
    assert info["all_seeds"] == [5, 6, 7, 8]
    assert len({hash(image) for image in answer["images"]}) == 4
    assert len(info["infotexts"]) == 4


# Progress and interrupt


def in_background(call: Callable[[], Any]) -> Any:
    pool = ThreadPoolExecutor(1)
    future = pool.submit(call)
    pool.shutdown(wait=False)
    return future


def test_progress_of_nobody_is_none_of_none(engine_service: RunningService) -> None:
    client_of(engine_service).util_wait_for_ready(check_interval=0.05)


def test_interrupt_ends_what_is_drawn(engine_service: RunningService) -> None:
    client = client_of(engine_service)
    drawing = in_background(
        lambda: post(engine_service, prompt="hold sdapi-interrupt", width=128, height=128)
    )
    engine_service.wait_until(lambda: client.get_progress()["current_image"])
    progress = client.get_progress()
    assert progress["state"]["job_count"] == 1
    assert progress["state"]["sampling_steps"] == 4
    assert 0 < progress["progress"] < 1
    assert opened(progress["current_image"]).format == "JPEG"
    without = engine_service.client.get("/sdapi/v1/progress?skip_current_image=true").json()
    assert without["current_image"] is None
    client.interrupt()
    answer = drawing.result(120)
    assert answer.status_code == 409
    assert "interrupted" in answer.json()["errors"]


def test_skip_leaves_one_iteration_out(engine_service: RunningService) -> None:
    client = client_of(engine_service)
    body = {"prompt": "hold sdapi-skip", "width": 128, "height": 128, "n_iter": 2, "seed": 4}
    drawing = in_background(lambda: post(engine_service, **body))
    engine_service.wait_until(lambda: client.get_progress()["state"]["sampling_step"])
    client.skip()
    engine_service.wait_until(lambda: client.get_progress()["state"]["job_no"] == 1)
    engine_service.release("sdapi-skip")
    info = json.loads(drawing.result(120).json()["info"])
    assert info["all_seeds"] == [5]


def test_interrupt_keeps_what_was_finished(engine_service: RunningService) -> None:
    client = client_of(engine_service)
    body = {"prompt": "hold sdapi-keep", "width": 128, "height": 128, "n_iter": 2, "seed": 4}
    drawing = in_background(lambda: post(engine_service, **body))
    engine_service.wait_until(lambda: client.get_progress()["state"]["sampling_step"])
    first = engine_service.client.get("/queue").json()["running"][0]
    engine_service.release("sdapi-keep")
    engine_service.wait_for_job(first, "succeeded")
    client.interrupt()
    # The second may have come to its end as well by then.
    assert json.loads(drawing.result(120).json()["info"])["all_seeds"][0] == 4


def test_client_that_hangs_up_cancels_all_its_iterations(engine_service: RunningService) -> None:
    body = json.dumps({"prompt": "hold sdapi-gone", "n_iter": 3, "width": 128, "height": 128})
    head = (
        f"POST /sdapi/v1/txt2img HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
    )

    def ours() -> list[str]:
        jobs = engine_service.client.get("/jobs").json()["jobs"]
        return [job["id"] for job in jobs if job["request"]["prompt"] == "hold sdapi-gone"]

    with socket.create_connection(("127.0.0.1", engine_service.port)) as connection:
        connection.sendall(head.encode() + body.encode())
        engine_service.wait_until(lambda: len(ours()) == 3)
    assert {engine_service.wait_for_job(job)["status"] for job in ours()} == {"cancelled"}


# What other clients send


def test_body_of_librechat(engine_service: RunningService) -> None:
    body = {
        "prompt": "a lighthouse in a storm",
        "negative_prompt": "people",
        "cfg_scale": 4.5,
        "steps": 22,
        "width": 1024,
        "height": 1024,
    }
    answer = engine_service.client.post("/sdapi/v1/txt2img", json=body).json()
    info = json.loads(answer["info"])
    assert (info["width"], info["height"]) == (512, 512)
    assert info["extra_generation_params"] == {"Requested size": "1024x1024"}
    assert info["infotexts"][0].endswith("Requested size: 1024x1024")
    assert "CFG scale: 4.5" in info["infotexts"][0]
    assert isinstance(info["seed"], int)
    assert opened(answer["images"][0]).size == (512, 512)


def test_body_of_silly_tavern(engine_service: RunningService) -> None:
    body = {
        "prompt": "a lighthouse",
        "negative_prompt": "",
        "sampler_name": "DPM++ 2M Karras",
        "scheduler": "Automatic",
        "steps": 20,
        "cfg_scale": 7,
        "width": 500,
        "height": 300,
        "restore_faces": False,
        "enable_hr": False,
        "hr_upscaler": "Latent",
        "hr_scale": 2,
        "denoising_strength": 0.7,
        "hr_second_pass_steps": 0,
        "seed": -1,
        "override_settings": {"CLIP_stop_at_last_layers": 1},
        "override_settings_restore_afterwards": True,
        "clip_skip": 1,
        "save_images": True,
        "send_images": True,
        "do_not_save_grid": False,
        "do_not_save_samples": False,
    }
    answer = engine_service.client.post("/sdapi/v1/txt2img", json=body)
    assert answer.status_code == 200, answer.text
    assert opened(answer.json()["images"][0]).size == (496, 304)
    lists = "options sd-models samplers schedulers upscalers latent-upscale-modes sd-vae progress"
    for name in lists.split():
        assert engine_service.client.get(f"/sdapi/v1/{name}").status_code == 200


def test_body_of_open_webui(engine_service: RunningService) -> None:
    client = engine_service.client
    options = client.get("/sdapi/v1/options").json()
    models = client.get("/sdapi/v1/sd-models").json()
    options["sd_model_checkpoint"] = models[0]["title"]
    assert client.post("/sdapi/v1/options", json=options).status_code == 200
    body = {"prompt": "a lighthouse", "batch_size": 1, "width": 512, "height": 512, "steps": 4}
    answer = client.post("/sdapi/v1/txt2img", json=body).json()
    assert {"images", "info", "parameters"} <= set(answer)


def test_image_of_another_shape_is_stretched_or_cut(engine_service: RunningService) -> None:
    image = in_base64(file_of(gradient(200, 100)))
    for mode in (0, 1):
        answer = post(
            engine_service,
            "img2img",
            init_images=[f"data:image/png;base64,{image}"],
            resize_mode=mode,
            width=128,
            height=128,
        )
        assert opened(answer.json()["images"][0]).size == (128, 128)


# Keys


def test_key_is_the_password_of_basic(keyed: RunningService) -> None:
    client = client_of(keyed, username="anybody", password=KEY)
    assert client.get_options()["sd_model_checkpoint"] == "embedded"
    assert client.txt2img(prompt="x", width=128, height=128).image.size == (128, 128)


def test_key_that_is_missing_is_asked_for_as_basic(keyed: RunningService) -> None:
    answer = keyed.client.post("/sdapi/v1/txt2img", json={"prompt": "x"})
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"].startswith("Basic")
    assert answer.json()["error"] == "unauthorized"


# Faults


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": "x <lora:nobody:1>"}, "nobody"),
        ({"prompt": "x <lora:sepia:much>"}, "sepia"),
        ({"prompt": "x <lora:sepia:0.5:0.7>"}, "sepia"),
        ({"prompt": "x <lora:sepia:9>"}, "prompt: <lora:sepia:9>: send one weight from -2 to 2"),
        ({"prompt": "x <lora:sepia:nan>"}, "prompt: <lora:sepia:nan>"),
        ({"prompt": "x <lora:nobody:0.8> <lora:none:1>"}, "prompt: there is no LoRA 'nobody'"),
        ({"prompt": "x" + " <lora:sepia:1>" * 9}, "prompt: names 9 LoRAs; at most 8"),
        ({"prompt": "<lora:sepia:1>"}, "prompt: is empty"),
        ({"prompt": "x <hypernet:a:1>"}, "hypernet"),
        ({"steps": 0}, "steps"),
        ({"steps": 101}, "steps"),
        ({"cfg_scale": 50}, "cfg_scale"),
        ({"cfg_scale": "high"}, "cfg_scale"),
        ({"batch_size": 9}, "batch_size"),
        ({"n_iter": 17}, "n_iter"),
        ({"width": 0, "height": 64}, "width"),
        ({"width": 10**6, "height": 64}, "width"),
        ({"seed": 1.5}, "seed"),
        ({"seed": 2**53 - 1, "n_iter": 2}, "seed"),
        ({"enable_hr": True}, "enable_hr"),
        ({"restore_faces": True}, "restore_faces"),
        ({"tiling": True}, "tiling"),
        ({"script_name": "X/Y/Z plot"}, "script_name"),
        ({"styles": ["anime"]}, "styles"),
        ({"subseed_strength": 0.5}, "subseed_strength"),
        ({"alwayson_scripts": {"ControlNet": {"args": [{"image": "x"}]}}}, "ControlNet"),
        ({"override_settings": {"sd_model_checkpoint": "sdxl"}}, "sd_model_checkpoint"),
        ({"override_settings": {"sd_model_checkpoint": "flux-dev"}}, "flux-dev"),
        ({"override_settings": []}, "override_settings"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_fault_is_named_in_a1111s_shape(
    engine_service: RunningService, body: dict, field: str
) -> None:
    answer = post(engine_service, **body)
    assert 400 <= answer.status_code < 500, answer.text
    assert {"error", "detail", "errors", "body"} == set(answer.json())
    assert field in answer.json()["detail"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "init_images"),
        ({"init_images": []}, "init_images"),
        ({"init_images": ["!"]}, "init_images"),
        ({"init_images": [in_base64(b"no picture")]}, "init_images"),
        ({"init_images": ["http://127.0.0.1/x.png"]}, "init_images"),
        ({"resize_mode": 2}, "resize_mode"),
        ({"mask": in_base64(b"none")}, "mask"),
        ({"mask": in_base64(file_of(gradient(32, 32)))}, "mask"),
        ({"mask_blur": 1000, "mask": "x"}, "mask"),
        ({"denoising_strength": 2}, "denoising_strength"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_fault_of_img2img_is_named(engine_service: RunningService, body: dict, field: str) -> None:
    image = in_base64(file_of(gradient(64, 64)))
    full = body if "init_images" in body or not body else {"init_images": [image], **body}
    answer = post(engine_service, "img2img", **full)
    assert 400 <= answer.status_code < 500, answer.text
    assert field in answer.json()["detail"]


@pytest.mark.parametrize(
    ("sides", "drawn"),
    [({"width": 137}, (144, 256)), ({"height": 500}, (256, 496)), ({"width": 9000}, (512, 128))],
)
def test_one_side_is_fitted_beside_the_models_own(
    engine_service: RunningService, sides: dict[str, int], drawn: tuple[int, int]
) -> None:
    """Of both, as where both are sent."""
    answer = engine_service.client.post("/sdapi/v1/txt2img", json={"prompt": "x", **sides})
    assert answer.status_code == 200, answer.text
    info = json.loads(answer.json()["info"])
    assert (info["width"], info["height"]) == drawn


@pytest.mark.parametrize("path", ["extra-single-image", "interrogate"])
def test_what_is_not_here_is_501(engine_service: RunningService, path: str) -> None:
    answer = engine_service.client.post(f"/sdapi/v1/{path}", json={})
    assert (answer.status_code, answer.json()["error"]) == (501, "not_built")


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_route_that_nobody_knows_is_404(engine_service: RunningService, method: str) -> None:
    answer = engine_service.client.request(method, "/sdapi/v1/nothing")
    assert (answer.status_code, answer.json()["error"]) == (404, "not_found")


def test_model_that_is_set_and_not_there_changes_nothing(engine_service: RunningService) -> None:
    answer = engine_service.client.post(
        "/sdapi/v1/options", json={"sd_model_checkpoint": "flux-schnell"}
    )
    assert answer.status_code == 409
    assert "models that run here: embedded" in answer.json()["detail"]
    options = engine_service.client.get("/sdapi/v1/options").json()
    assert options["sd_model_checkpoint"] == "embedded"


def test_reload_that_no_worker_can_do_now_says_so(engine_service: RunningService) -> None:
    held = engine_service.submit("hold sdapi-reload")
    engine_service.wait_until(lambda: engine_service.workers()[0]["state"] == "busy")
    answer = engine_service.client.post("/sdapi/v1/reload-checkpoint")
    engine_service.release("sdapi-reload")
    engine_service.wait_for_job(held)
    engine_service.wait_for_workers()
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "30")
    assert "embedded was not loaded: worker cpu: the worker is busy" in answer.json()["detail"]
    assert engine_service.client.post("/sdapi/v1/reload-checkpoint").json() == {}
