"""ComfyUI's dialect: the flows of its own API examples, and what clients ask beside."""

from __future__ import annotations

import base64
import io
import json
import struct
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import pytest
import websockets
from PIL import Image
from websockets.sync.client import ClientConnection, connect

from tests.api.dialects.comfy_prompts import custom, ksampler, node, with_image, with_lora
from tests.api.dialects.conftest import KEY
from tests.pictures import file_of, gradient
from tests.service import WAIT_SECONDS, RunningService


@contextmanager
def socket_of(
    service: RunningService, client_id: str, **headers: str
) -> Iterator[ClientConnection]:
    address = f"ws://127.0.0.1:{service.port}/ws?clientId={client_id}"
    with connect(
        address, additional_headers=headers, proxy=None, open_timeout=WAIT_SECONDS
    ) as socket:
        yield socket


def told(socket: ClientConnection) -> Any:
    """The next message: an object, or the bytes of a picture."""
    message = socket.recv(timeout=WAIT_SECONDS)
    return json.loads(message) if isinstance(message, str) else message


def told_until_done(socket: ClientConnection, prompt_id: str) -> list[Any]:
    """As ComfyUI's example waits: until nothing of the prompt is executed any more."""
    messages = []
    while True:
        message = told(socket)
        messages.append(message)
        if isinstance(message, dict) and message["type"] == "executing":
            data = message["data"]
            if data["node"] is None and data["prompt_id"] == prompt_id:
                return messages


def kinds(messages: list[Any]) -> list[str]:
    return [message["type"] for message in messages if isinstance(message, dict)]


def queue_prompt(service: RunningService, prompt: dict, **more: Any) -> dict[str, Any]:
    """As the example sends it: with urllib, which says that it is a form."""
    data = json.dumps({"prompt": prompt, **more}).encode()
    request = urllib.request.Request(f"{service.url}/prompt", data=data)
    return json.loads(urllib.request.urlopen(request, timeout=WAIT_SECONDS).read())


def history_of(service: RunningService, prompt_id: str) -> dict[str, Any]:
    return service.client.get(f"/history/{prompt_id}").json()[prompt_id]


def viewed(service: RunningService, image: dict[str, str]) -> Image.Image:
    values = urllib.parse.urlencode(image)
    with urllib.request.urlopen(f"{service.url}/view?{values}") as answer:
        return Image.open(io.BytesIO(answer.read()))


def ended(service: RunningService, prompt_id: str) -> dict[str, Any]:
    service.wait_until(lambda: service.client.get(f"/history/{prompt_id}").json())
    return history_of(service, prompt_id)


# The examples


def test_example_with_a_websocket(service: RunningService) -> None:
    client_id = str(uuid.uuid4())
    with socket_of(service, client_id) as socket:
        answer = queue_prompt(service, ksampler("a red balloon", steps=30), client_id=client_id)
        messages = told_until_done(socket, answer["prompt_id"])
    assert answer["node_errors"] == {}
    ours = [message for message in kinds(messages) if message != "status"]
    assert ours[:3] == ["execution_start", "execution_cached", "executing"]
    assert ours[-3:] == ["executed", "execution_success", "executing"]
    progress = [each["data"] for each in messages if kinds([each]) == ["progress"]]
    assert progress[-1]["max"] == 30
    assert {each["node"] for each in progress} == {"3"}
    previews = [each for each in messages if isinstance(each, bytes)]
    assert previews, "no preview came"
    assert struct.unpack(">II", previews[0][:8]) == (1, 1)
    assert Image.open(io.BytesIO(previews[0][8:])).format == "JPEG"
    history = history_of(service, answer["prompt_id"])
    assert history["status"]["status_str"] == "success"
    [image] = history["outputs"]["9"]["images"]
    assert viewed(service, image).size == (128, 144)
    [executed] = [each["data"] for each in messages if kinds([each]) == ["executed"]]
    assert executed["output"] == {"images": [image]}


def test_example_with_pictures_over_the_websocket(engine_service: RunningService) -> None:
    prompt = ksampler()
    prompt["9"] = node("SaveImageWebsocket", images=["8", 0])
    with socket_of(engine_service, "pictures") as socket:
        answer = queue_prompt(engine_service, prompt, client_id="pictures")
        messages = told_until_done(socket, answer["prompt_id"])
    after = messages[
        [
            index
            for index, each in enumerate(messages)
            if kinds([each]) == ["executing"] and each["data"]["node"] == "9"
        ][0] :
    ]
    [picture] = [each for each in after if isinstance(each, bytes)]
    assert Image.open(io.BytesIO(picture[8:])).format == "PNG"


def test_example_without_a_websocket(engine_service: RunningService) -> None:
    answer = queue_prompt(engine_service, custom())
    history = ended(engine_service, answer["prompt_id"])
    assert history["prompt"][1] == answer["prompt_id"]
    assert history["prompt"][4] == ["9"]
    job = engine_service.job(answer["job_id"])
    assert job["request"]["num_inference_steps"] == 3
    assert job["request"]["seed"] == 219670278747233


def test_seed_is_the_native_picture(service: RunningService) -> None:
    native = service.generate(prompt="a tree", width=128, height=144, seed=5, steps=4)
    answer = queue_prompt(service, ksampler("a tree"))
    [image] = ended(service, answer["prompt_id"])["outputs"]["9"]["images"]
    data = service.client.get("/view", params=image).content
    assert native.json()["image"] == base64.b64encode(data).decode()


def test_lora_of_the_graph_is_used(engine_service: RunningService) -> None:
    answer = queue_prompt(engine_service, with_lora(ksampler(), "sepia.safetensors", 0.7))
    request = engine_service.job(answer["job_id"])["request"]
    assert [(lora["name"], lora["weight"]) for lora in request["loras"]] == [("sepia", 0.7)]


def upload(service: RunningService, data: bytes, name: str, path: str = "/upload/image") -> Any:
    """As Open WebUI uploads."""
    answer = service.client.post(
        path, files={"image": (name, data, "image/png")}, data={"type": "input"}
    )
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("path", ["/upload/image", "/api/upload/image"])
def test_upload_is_begun_with_under_either_name(engine_service: RunningService, path: str) -> None:
    uploaded = upload(engine_service, file_of(gradient(160, 128)), "holiday.png", path)
    assert uploaded["type"] == "input"
    for name in (uploaded["name"], "holiday.png", f"{uploaded['name']} [input]"):
        answer = queue_prompt(engine_service, with_image(ksampler(), name, 0.5))
        request = engine_service.job(answer["job_id"])["request"]
        assert (request["width"], request["height"]) == (160, 128)
        assert request["strength"] == 0.5
        assert request["image"] in uploaded["name"]


def test_transparent_part_of_an_upload_is_drawn_anew(service: RunningService) -> None:
    picture = gradient(128, 128).convert("RGBA")
    picture.paste((0, 0, 0, 0), (0, 0, 64, 128))
    uploaded = upload(service, file_of(picture), "hole.png")
    prompt = with_image(ksampler("a ball"), uploaded["name"], 1.0)
    prompt["52"] = node("SetLatentNoiseMask", samples=["51", 0], mask=["50", 1])
    prompt["3"]["inputs"]["latent_image"] = ["52", 0]
    answer = queue_prompt(service, prompt)
    [image] = ended(service, answer["prompt_id"])["outputs"]["9"]["images"]
    right = (64, 0, 128, 128)
    drawn = viewed(service, image).crop(right)
    assert drawn.tobytes() == gradient(128, 128).crop(right).tobytes()


# The queue


def test_queue_has_the_fields_of_comfyui_beside_ours(engine_service: RunningService) -> None:
    held = queue_prompt(engine_service, ksampler("hold comfy-queue"))
    engine_service.wait_until_at_work(held["job_id"])
    waits = queue_prompt(engine_service, ksampler("waits"))
    native = engine_service.submit("waits natively")
    queue = engine_service.client.get("/queue").json()
    assert held["job_id"] in queue["running"] and queue["queued"] >= 2
    assert [held["number"], held["prompt_id"]] in [each[:2] for each in queue["queue_running"]]
    pending = {each[1]: each for each in queue["queue_pending"]}
    assert pending[waits["prompt_id"]][2]["3"]["class_type"] == "KSampler"
    assert pending[native][2] == {}
    remaining = engine_service.client.get("/prompt").json()["exec_info"]["queue_remaining"]
    assert remaining == len(queue["queue_running"]) + len(queue["queue_pending"])
    engine_service.client.post("/queue", json={"delete": [waits["prompt_id"]]})
    assert engine_service.job(waits["job_id"])["status"] == "cancelled"
    assert engine_service.job(native)["status"] == "queued"
    engine_service.client.post("/queue", json={"clear": True})
    assert engine_service.job(native)["status"] == "queued", "not a prompt of ComfyUI's"
    engine_service.release("comfy-queue")
    assert ended(engine_service, held["prompt_id"])["status"]["completed"] is True


def test_interrupt_ends_what_runs(engine_service: RunningService) -> None:
    with socket_of(engine_service, "interrupts") as socket:
        answer = queue_prompt(
            engine_service, ksampler("hold comfy-interrupt"), client_id="interrupts"
        )
        engine_service.wait_for_job(answer["job_id"], "running")
        assert engine_service.client.post("/interrupt").json() == {}
        messages = told_until_done(socket, answer["prompt_id"])
    ours = [kind for kind in kinds(messages) if kind != "status"]
    assert ours[-2:] == ["execution_interrupted", "executing"]
    status = history_of(engine_service, answer["prompt_id"])["status"]
    assert (status["status_str"], status["completed"]) == ("error", False)


def test_interrupt_of_another_prompt_ends_nothing(engine_service: RunningService) -> None:
    answer = queue_prompt(engine_service, ksampler("hold comfy-other"))
    engine_service.wait_for_job(answer["job_id"], "running")
    engine_service.client.post("/interrupt", json={"prompt_id": str(uuid.uuid4())})
    assert engine_service.job(answer["job_id"])["status"] == "running"
    cancel = f"/api/jobs/{answer['prompt_id']}/cancel"
    assert engine_service.client.post(cancel).json() == {"cancelled": True}
    assert engine_service.client.post(cancel).json() == {"cancelled": True}


def test_job_that_fails_is_an_execution_error(engine_service: RunningService) -> None:
    with socket_of(engine_service, "fails") as socket:
        answer = queue_prompt(engine_service, ksampler("raise"), client_id="fails")
        messages = told_until_done(socket, answer["prompt_id"])
    [error] = [each["data"] for each in messages if kinds([each]) == ["execution_error"]]
    assert error["node_type"] == "KSampler"
    assert "drawing failed" in error["exception_message"]
    assert history_of(engine_service, answer["prompt_id"])["status"]["status_str"] == "error"


def test_other_client_hears_of_the_queue_alone(engine_service: RunningService) -> None:
    with socket_of(engine_service, "mine") as mine, socket_of(engine_service, "other") as other:
        answer = queue_prompt(engine_service, ksampler(), client_id="mine")
        told_until_done(mine, answer["prompt_id"])
        engine_service.client.get("/health")
        heard = [told(other)["type"]]
        try:
            while True:
                heard.append(json.loads(other.recv(timeout=0.3))["type"])
        except TimeoutError:
            pass
    assert set(heard) == {"status"}


def test_client_that_comes_late_hears_of_the_end(engine_service: RunningService) -> None:
    answer = queue_prompt(engine_service, ksampler(), client_id="late")
    ended(engine_service, answer["prompt_id"])
    with socket_of(engine_service, "late") as socket:
        assert told_until_done(socket, answer["prompt_id"])


def test_history_is_listed_and_forgotten(engine_service: RunningService) -> None:
    ids = [queue_prompt(engine_service, ksampler())["prompt_id"] for _ in range(2)]
    for prompt_id in ids:
        ended(engine_service, prompt_id)
    listed = engine_service.client.get("/history").json()
    assert set(ids) <= set(listed)
    assert list(engine_service.client.get("/api/history?max_items=1").json()) == [ids[-1]]
    engine_service.client.post("/history", json={"delete": [ids[0]]})
    assert engine_service.client.get(f"/history/{ids[0]}").json() == {}
    engine_service.client.post("/history", json={"clear": True})
    assert engine_service.client.get("/history").json() == {}


def test_prompt_id_is_the_clients(engine_service: RunningService) -> None:
    prompt_id = str(uuid.uuid4())
    assert queue_prompt(engine_service, ksampler(), prompt_id=prompt_id)["prompt_id"] == prompt_id
    again = engine_service.client.post(
        "/prompt", json={"prompt": ksampler(), "prompt_id": prompt_id}
    )
    assert again.status_code == 400
    assert "prompt_id" in again.json()["error"]["message"]


# What is asked beside


@pytest.mark.parametrize("prefix", ["", "/api"])
def test_nodes_are_described(engine_service: RunningService, prefix: str) -> None:
    info = engine_service.client.get(f"{prefix}/object_info").json()
    assert "embedded" in info["CheckpointLoaderSimple"]["input"]["required"]["ckpt_name"][0]
    assert "sepia.safetensors" in info["LoraLoader"]["input"]["required"]["lora_name"][0]
    one = engine_service.client.get(f"{prefix}/object_info/KSampler").json()
    assert list(one) == ["KSampler"]
    assert engine_service.client.get(f"{prefix}/object_info/Nothing").json() == {}


def test_system_is_described(engine_service: RunningService) -> None:
    stats = engine_service.client.get("/system_stats").json()
    assert stats["system"]["ram_total"] > 2**30
    assert [device["type"] for device in stats["devices"]][0] == "cpu"
    assert engine_service.client.get("/embeddings").json() == []
    assert isinstance(engine_service.client.get("/features").json(), dict)


# Faults


def post(service: RunningService, **body: Any) -> httpx2.Response:
    return service.client.post("/prompt", json=body)


def test_node_that_is_not_known_is_refused_by_name(engine_service: RunningService) -> None:
    prompt = ksampler()
    prompt["99"] = node("UltimateSDUpscale", image=["8", 0])
    answer = post(engine_service, prompt=prompt)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "prompt_outputs_failed_validation"
    assert answer.json()["node_errors"]["99"]["class_type"] == "UltimateSDUpscale"


@pytest.mark.parametrize(
    ("key", "inputs", "name"),
    [
        ("4", {"ckpt_name": "dreamshaper.safetensors"}, "ckpt_name"),
        ("4", {"ckpt_name": "flux1-dev-fp8.safetensors"}, "ckpt_name"),
        ("5", {"width": 1024}, "width"),
        ("5", {"width": 136}, "width"),
        ("6", {"text": ""}, "text"),
        ("6", {"text": "x" * 2001}, "text"),
    ],
)
def test_value_that_the_model_does_not_take_is_told_at_its_node(
    engine_service: RunningService, key: str, inputs: dict, name: str
) -> None:
    prompt = ksampler()
    prompt[key]["inputs"] |= inputs
    answer = post(engine_service, prompt=prompt)
    assert answer.status_code == 400, answer.text
    [error] = answer.json()["node_errors"][key]["errors"]
    assert error["extra_info"]["input_name"] == name


def test_weights_that_do_not_run_here_are_refused_with_the_reason(
    engine_service: RunningService,
) -> None:
    prompt = ksampler()
    prompt["4"]["inputs"]["ckpt_name"] = "flux1-schnell-fp8.safetensors"
    message = post(engine_service, prompt=prompt).json()["error"]["message"]
    assert "flux-schnell needs a GPU" in message and "embedded" in message


def test_weights_of_a_known_name_are_that_model(anywhere: RunningService) -> None:
    for file, model in (
        ("flux1-schnell-fp8.safetensors", "flux-schnell"),
        ("FLUX1\\flux1-dev.safetensors", "flux-dev"),
        ("flux-2-klein-4b-fp8.safetensors", "flux2-klein-4b"),
        ("z_image_turbo_bf16.safetensors", "z-image-turbo"),
        ("sd_xl_base_1.0.safetensors", "sdxl-base"),
    ):
        prompt = ksampler()
        prompt["4"]["inputs"]["ckpt_name"] = file
        prompt["5"]["inputs"] |= {"width": 512, "height": 512}
        answer = queue_prompt(anywhere, prompt)
        assert anywhere.wait_for_job(answer["job_id"])["request"]["model"] == model


def test_model_of_the_cloud_is_not_taken_for_weights_of_that_name(anywhere: RunningService) -> None:
    prompt = ksampler()
    prompt["4"]["inputs"]["ckpt_name"] = "bfl/flux-2-klein-4b"
    answer = post(anywhere, prompt=prompt)
    assert answer.status_code == 400 and "cloud needs a key" in answer.json()["error"]["message"]


def test_lora_that_is_not_there_is_told_at_its_node(engine_service: RunningService) -> None:
    answer = post(engine_service, prompt=with_lora(ksampler(), "nobody.safetensors", 1.0))
    assert answer.status_code == 400
    assert list(answer.json()["node_errors"]) == ["40"]


@pytest.mark.parametrize("name", ["nothing.png", "../../etc/passwd", "a" * 64 + ".png", ""])
def test_picture_that_is_not_there_is_told_at_its_node(
    engine_service: RunningService, name: str
) -> None:
    answer = post(engine_service, prompt=with_image(ksampler(), name, 0.5))
    assert answer.status_code == 400, answer.text
    assert list(answer.json()["node_errors"]) == ["50"]


@pytest.mark.parametrize(
    "body", [{}, {"prompt": {}}, {"prompt": ksampler(), "front": True}, {"prompt": ksampler(), "prompt_id": "1"}],
    ids=["none", "empty", "front", "no uuid"],
)  # fmt: skip
def test_prompt_that_is_wrong_as_a_whole_is_400(engine_service: RunningService, body: dict) -> None:
    answer = post(engine_service, **body)
    assert answer.status_code == 400
    assert set(answer.json()) == {"error", "node_errors"}
    assert set(answer.json()["error"]) == {"type", "message", "details", "extra_info"}


@pytest.mark.parametrize(
    "filename", ["", "nothing.png", "../service.log", "..%2f..%2fservice.log", "/etc/passwd"]
)
def test_view_of_what_is_not_there_is_404(engine_service: RunningService, filename: str) -> None:
    answer = engine_service.client.get("/view", params={"filename": filename, "type": "output"})
    assert answer.status_code == 404
    assert set(answer.json()) == {"error", "node_errors"}


def test_upload_that_is_no_picture_is_refused(engine_service: RunningService) -> None:
    answer = engine_service.client.post("/upload/image", files={"image": ("a.png", b"none")})
    assert answer.status_code == 415
    answer = engine_service.client.post("/upload/image", data={"type": "input"})
    assert (answer.status_code, "image" in answer.json()["error"]["message"]) == (400, True)


# Who may


def test_socket_without_a_key_is_refused(keyed: RunningService) -> None:
    with pytest.raises(websockets.InvalidStatus) as raised:
        with socket_of(keyed, "x"):
            pass
    assert raised.value.response.status_code == 401


def test_socket_of_a_foreign_page_is_refused(engine_service: RunningService) -> None:
    with pytest.raises(websockets.InvalidStatus) as raised:
        with socket_of(engine_service, "x", Origin="http://evil.example"):
            pass
    assert raised.value.response.status_code == 403


def test_key_in_a_sockets_url_is_refused_and_not_logged(keyed: RunningService) -> None:
    address = f"ws://127.0.0.1:{keyed.port}/ws?clientId=in-the-url&api_key={KEY}"
    with pytest.raises(websockets.InvalidStatus) as raised:
        with connect(address, proxy=None, open_timeout=WAIT_SECONDS):
            pass
    assert raised.value.response.status_code == 401
    keyed.wait_until(lambda: "socket_refused" in keyed.log_path.read_text())
    assert KEY not in keyed.log_path.read_text()


def test_flow_with_a_key(keyed: RunningService) -> None:
    bearer = {"Authorization": f"Bearer {KEY}"}
    with socket_of(keyed, "keyed", **bearer) as socket:
        answer = keyed.client.post(
            "/prompt", json={"prompt": ksampler(), "client_id": "keyed"}, headers=bearer
        ).json()
        told_until_done(socket, answer["prompt_id"])
    assert keyed.client.get(f"/history/{answer['prompt_id']}").status_code == 401


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/queue", {"clear": "true"}, "clear"),
        ("/queue", {"delete": "all"}, "delete"),
        ("/history", {"delete": [7]}, "delete"),
        ("/api/history", {"clear": 1}, "clear"),
        ("/prompt", {"prompt": ksampler("refused"), "extra_data": []}, "extra_data"),
        ("/prompt", {"prompt": ksampler("refused"), "client_id": 7}, "client_id"),
        ("/prompt", {"prompt": ksampler("refused"), "prompt_id": "7"}, "prompt_id"),
    ],
)
def test_body_that_says_something_else_is_refused_and_does_nothing(
    engine_service: RunningService, path: str, body: dict[str, Any], field: str
) -> None:
    answer = engine_service.client.post(path, json=body)
    assert answer.status_code == 400, answer.text
    said = answer.json()
    assert field in (said["error"]["message"] if "error" in said else said["detail"])
    jobs = engine_service.client.get("/jobs?limit=20").json()["jobs"]
    assert "refused" not in [job["request"]["prompt"] for job in jobs]


def test_socket_ends_with_its_key(keyed: RunningService) -> None:
    """Whoever listens already hears nothing more."""
    admin = {"X-API-Key": KEY}
    made = keyed.client.post(
        "/admin/keys", json={"name": "comfy listens", "scopes": ["admin"]}, headers=admin
    ).json()
    with socket_of(keyed, "revoked", Authorization=f"Bearer {made['key']}") as socket:
        assert told(socket)["type"] == "status"
        keyed.client.delete(f"/admin/keys/{made['id']}", headers=admin)
        keyed.client.post("/queue/resume", headers=admin)  # something happens
        with pytest.raises(websockets.ConnectionClosed) as raised:
            while True:  # what was on its way before
                told(socket)
    assert raised.value.rcvd is not None and raised.value.rcvd.code == 1008


def test_socket_that_says_much_is_closed(engine_service: RunningService) -> None:
    with socket_of(engine_service, "loud") as socket:
        with pytest.raises(websockets.ConnectionClosed):
            socket.send("x" * 2**20)
            while True:
                socket.recv(timeout=WAIT_SECONDS)


def test_socket_answers_what_features_it_has(engine_service: RunningService) -> None:
    with socket_of(engine_service, "features") as socket:
        socket.send(json.dumps({"type": "feature_flags", "data": {}}))
        while (message := told(socket))["type"] != "feature_flags":
            pass
    assert message["data"] == {"supports_preview_metadata": False}
