"""A service with a safety checker: what of a flagged picture is stored, shown and said."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import shutil
import signal
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image, ImageChops
from websockets.sync.client import connect

from api.routes import service as service_routes
from config.catalog import load_catalog
from config.settings import ModelSettings, Settings
from models.safety import HUB_ID
from tests.api.dialects.comfy_prompts import ksampler, node
from tests.safety_weights import classifier
from tests.service import ENGINE_MAIN, START_SECONDS, RunningService
from utils.line import Lane
from utils.metadata import read_request


def prompt_of(is_red: bool, word: str = "colour") -> str:
    """A prompt that the stand-in model draws in a colour that is red, or is not."""
    for number in range(1000):
        prompt = f"{word} {number}"
        red, green, blue = hashlib.sha256(f"{prompt} 1".encode()).digest()[:3]
        if (red > green + blue + 40) if is_red else (red + 40 < min(green, blue)):
            return prompt
    raise AssertionError


RED, OTHER = prompt_of(True), prompt_of(False)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return classifier(tmp_path_factory.mktemp("weights") / "judge")


def service_that_flags(weights: Path, folder: Path) -> RunningService:
    return RunningService(
        folder, main=ENGINE_MAIN, TEST_ENGINE="scripted",
        SD_SAFETY_CHECKER="flag", FLUX_SAFETY_MODEL=str(weights),
    ).start()  # fmt: skip


@pytest.fixture(scope="module")
def flagging(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    running = service_that_flags(weights, tmp_path_factory.mktemp("flag"))
    try:
        running.wait_for_workers()
        yield running
    finally:
        running.close()


def draw(service: RunningService, prompt: str, **body) -> dict:
    answer = service.client.post(
        "/generate", json={"prompt": prompt, "seed": 1, "width": 128, "height": 128, **body}
    )
    return answer.json() | {"http": answer.status_code}


def in_gallery(service: RunningService, answer: dict[str, Any]) -> dict[str, Any]:
    listed = service.client.get("/images").json()["images"]
    return next(each for each in listed if each["filename"] == answer["filename"])


def test_flagged_picture_says_so_in_answer_job_and_file(flagging: RunningService) -> None:
    answer = draw(flagging, RED)
    assert answer["http"] == 200, answer
    assert answer["nsfw_flagged"] is True and answer["images"][0]["nsfw_flagged"] is True
    assert flagging.job(answer["id"])["result"]["nsfw_flagged"] is True
    stored = (flagging.output_dir / answer["filename"]).read_bytes()
    assert read_request(stored)["nsfw_flagged"] is True
    assert in_gallery(flagging, answer)["nsfw_flagged"] is True


def test_picture_that_is_not_flagged_says_that_it_was_looked_at(flagging: RunningService) -> None:
    answer = draw(flagging, OTHER)
    assert answer["nsfw_flagged"] is False
    stored = (flagging.output_dir / answer["filename"]).read_bytes()
    assert read_request(stored)["nsfw_flagged"] is False
    assert in_gallery(flagging, answer)["nsfw_flagged"] is False


def test_of_several_pictures_each_is_looked_at(flagging: RunningService) -> None:
    """The stand-in's colours follow from the seed."""
    answer = draw(flagging, RED, num_images=4)
    flags = [image["nsfw_flagged"] for image in answer["images"]]
    assert flags[0] is True and False in flags and answer["nsfw_flagged"] is True


def test_flagged_picture_is_the_same_blurred_one_everywhere(flagging: RunningService) -> None:
    answer = draw(flagging, RED)
    stored = (flagging.output_dir / answer["filename"]).read_bytes()
    assert base64.b64decode(answer["image"]) == stored
    assert flagging.client.get(answer["download_url"]).content == stored
    assert flagging.client.get(answer["image_url"]).content == stored
    thumbnail = flagging.client.get(f"{answer['image_url']}/thumbnail")
    assert Image.open(io.BytesIO(thumbnail.content)).size == (128, 128)


def test_info_says_who_looks(flagging: RunningService) -> None:
    told = flagging.client.get("/info").json()["safety_checker"]
    assert told == {"mode": "flag", "active": True, "model": "judge", "reason": None}


def test_info_without_weights_says_so_and_how_to_get_some(engine_service: RunningService) -> None:
    told = engine_service.client.get("/info").json()["safety_checker"]
    assert told["mode"] == "flag" and told["active"] is False and told["model"] is None
    assert "download_models --safety-checker" in told["reason"]


def told_of(tmp_path: Path, mode: str, *checkers: tuple[Lane, str | None]) -> dict[str, Any]:
    """What /info says of workers by what looks at their pictures."""
    workers = [
        SimpleNamespace(name=f"w{i}", lane=lane, safety=name, versions={"torch": "2"})
        for i, (lane, name) in enumerate(checkers)
    ]
    settings = Settings(models=ModelSettings(safety_checker=mode, models_dir=tmp_path))
    plan = SimpleNamespace(settings=settings, catalog=load_catalog())
    services: Any = SimpleNamespace(plan=plan, queue=SimpleNamespace(workers=workers))
    return service_routes._safety_json(services)


@pytest.mark.parametrize("unseen", [Lane.LOCAL, Lane.CLOUD])
def test_info_says_whose_pictures_nobody_looks_at(tmp_path: Path, unseen: Lane) -> None:
    """Of a fleet's machines one may lack the weights, or the front door that asks the cloud."""
    told = told_of(tmp_path, "flag", (Lane.LOCAL, "judge"), (unseen, None))
    assert told["active"] is False and told["model"] == "judge"
    assert "of what w1 draws nothing is looked at" in told["reason"]


def test_info_of_a_checker_that_looks_at_all_is_active(tmp_path: Path) -> None:
    told = told_of(tmp_path, "block", (Lane.LOCAL, "judge"), (Lane.CLOUD, "judge"))
    assert told == {"mode": "block", "active": True, "model": "judge", "reason": None}


def test_info_of_a_checker_that_is_off_says_so(tmp_path: Path) -> None:
    told = told_of(tmp_path, "off", (Lane.LOCAL, None), (Lane.CLOUD, None))
    assert told["active"] is False and told["reason"] == "FLUX_SAFETY_CHECKER is off"


def test_picture_that_nobody_looked_at_says_nothing(engine_service: RunningService) -> None:
    answer = draw(engine_service, RED)
    assert answer["nsfw_flagged"] is None
    stored = (engine_service.output_dir / answer["filename"]).read_bytes()
    assert "nsfw_flagged" not in read_request(stored)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"FLUX_SAFETY_CHECKER": "block"}, "FLUX_SAFETY_CHECKER = block: no weights"),
        ({"FLUX_SAFETY_MODEL": "somebody/judge"}, "FLUX_SAFETY_MODEL: somebody/judge is no folder"),
    ],
)
def test_service_without_the_weights_it_must_have_does_not_start(
    tmp_path: Path, settings: dict[str, str], said: str
) -> None:
    from api.services import make_plan
    from config.errors import ConfigurationError
    from config.settings import load_settings
    from models.precision import profile_of

    environ = {"FLUX_MODELS_DIR": str(tmp_path), "FLUX_GPUS": "none", **settings}
    with pytest.raises(ConfigurationError, match=f"{said}.*set FLUX_SAFETY_CHECKER=off"):
        make_plan(load_settings("bf16", environ), profile_of("bf16"))


def test_events_of_a_flagged_job_carry_no_picture_unseen(flagging: RunningService) -> None:
    job_id = flagging.submit(RED, seed=1)
    job = flagging.wait_for_job(job_id)
    assert job["status"] == "succeeded"
    with flagging.client.stream("GET", f"/jobs/{job_id}/events") as stream:
        lines = [line for line in stream.iter_lines() if line.startswith("data:")]
    ended = json.loads(lines[-1].removeprefix("data:"))
    assert ended["result"]["nsfw_flagged"] is True


# Every way by which a picture leaves: what is there to be seen is stripes


def prompt_of_stripes(words: str) -> str:
    """Red enough between black stripes."""
    for number in range(100_000):
        prompt = f"{words}{number}"
        red, green, blue = hashlib.sha256(f"{prompt} 1".encode()).digest()[:3]
        if red > 240 and max(green, blue) < 20:
            return prompt
    raise AssertionError


STRIPES = prompt_of_stripes("striped ")
# Drawn until the file of this name is there: until a preview has come.
HELD = prompt_of_stripes("watched striped-")
SIZE = {"width": 128, "height": 128, "seed": 1}


def has_stripes(data: bytes) -> bool:
    """Whether neighbours differ as no blurred picture's do."""
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    steps = ImageChops.difference(picture, ImageChops.offset(picture, 1, 0))
    inside = steps.crop((1, 0, picture.width, picture.height))
    return max(high for _, high in inside.getextrema()) > 100


def striped_picture() -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((128, 128), 200).convert("RGB").save(buffer, "PNG")
    return buffer.getvalue()


def by_json(service: RunningService, **more: Any) -> list[bytes]:
    return [base64.b64decode(draw(service, STRIPES, **more)["image"])]


def by_raw(service: RunningService) -> list[bytes]:
    body = {"prompt": STRIPES, **SIZE}
    found = []
    for kind in ("png", "jpeg", "webp"):
        answer = service.client.post("/generate?format=raw", json={**body, "output_format": kind})
        assert answer.headers["content-type"] == f"image/{kind}"
        found.append(answer.content)
    return found


def by_address(service: RunningService) -> list[bytes]:
    told = draw(service, STRIPES)
    paths = (told["image_url"], told["download_url"], f"{told['image_url']}/thumbnail")
    paths += (f"/jobs/{told['id']}/image",)
    stored = (service.output_dir / told["filename"]).read_bytes()
    return [stored, *(service.client.get(path).content for path in paths)]


def by_upload(service: RunningService) -> list[bytes]:
    """An edit."""
    answer = service.client.post(
        "/upload-image-generate?format=raw",
        data={"prompt": STRIPES, "seed": "1", "strength": "0.5"},
        files={"image": ("a.png", striped_picture(), "image/png")},
    )
    return [answer.content]


def by_openai(service: RunningService) -> list[bytes]:
    body = {"prompt": STRIPES, "size": "128x128", "seed": 1}
    told = service.client.post("/v1/images/generations", json=body).json()["data"][0]
    body["response_format"] = "url"
    linked = service.client.post("/v1/images/generations", json=body).json()["data"][0]
    return [base64.b64decode(told["b64_json"]), service.client.get(linked["url"]).content]


def hold(service: RunningService) -> Callable[[], None]:
    """Lets what is asked for by HELD go on."""
    name = HELD.partition(" ")[2]
    (service.folder / "models" / name).unlink(missing_ok=True)
    return lambda: service.release(name)


def by_openai_stream(service: RunningService) -> list[bytes]:
    """Partial pictures, and the whole one."""
    body = {"prompt": HELD, "size": "128x128", "seed": 1, "stream": True, "partial_images": 3}
    found, let_go = [], hold(service)
    with service.client.stream("POST", "/v1/images/generations", json=body) as stream:
        for line in stream.iter_lines():
            found += re.findall(r'"b64_json": ?"([^"]+)"', line)
            if found:
                let_go()
    assert len(found) > 1, "no partial picture came"
    return [base64.b64decode(each) for each in found]


def by_a1111(service: RunningService) -> list[bytes]:
    answer = service.client.post("/sdapi/v1/txt2img", json={"prompt": STRIPES, **SIZE})
    return [base64.b64decode(answer.json()["images"][0])]


def by_iti(service: RunningService) -> list[bytes]:
    answer = service.client.post("/api/txt2img", json={"prompt": STRIPES, **SIZE})
    return [base64.b64decode(re.findall(r'"([A-Za-z0-9+/=]{200,})"', answer.text)[0])]


def by_fleet(service: RunningService) -> list[bytes]:
    body = {"prompt": STRIPES, "model": "embedded", **SIZE}
    return [service.client.post("/api/generate-image", json=body).content]


def by_bfl(service: RunningService) -> list[bytes]:
    asked = service.client.post("/v1/embedded", json={"prompt": STRIPES, **SIZE}).json()

    def result() -> dict[str, Any]:
        return service.client.get(f"/v1/get_result?id={asked['id']}").json()

    service.wait_until(lambda: result()["status"] == "Ready")
    return [service.client.get(result()["result"]["sample"]).content]


def by_comfy(service: RunningService) -> list[bytes]:
    """Previews and the picture itself over the websocket, and the address that its page asks."""
    prompt, client, let_go = ksampler(HELD, seed=1), str(uuid.uuid4()), hold(service)
    prompt["5"]["inputs"]["height"] = 128
    prompt["10"] = node("SaveImageWebsocket", images=["8", 0])
    found, names = [], []
    address = f"{service.url.replace('http', 'ws')}/ws?clientId={client}"
    with connect(address, open_timeout=START_SECONDS) as socket:
        body = {"prompt": prompt, "client_id": client}
        prompt_id = service.client.post("/prompt", json=body).json()["prompt_id"]
        for message in socket:
            if isinstance(message, bytes):
                found.append(message[8:])
                let_go()
                continue
            told = json.loads(message)
            if told["type"] == "execution_success" and told["data"]["prompt_id"] == prompt_id:
                break
            if told["type"] == "executed":
                names += told["data"]["output"].get("images", [])
    assert len(found) > 1, "no preview came"
    assert names
    return found + [service.client.get("/view", params=each).content for each in names]


def by_events(service: RunningService) -> list[bytes]:
    """Previews of the page."""
    found, let_go = [], hold(service)
    with service.client.stream("GET", "/events") as stream:
        lines = stream.iter_lines()
        next(lines)  # it listens
        service.submit(HELD, seed=1)
        for line in lines:
            found += re.findall(r"data:image/jpeg;base64,([A-Za-z0-9+/=]+)", line)
            if found:
                let_go()
            if (
                found and line == "event: succeeded"
            ):  # of this job: one before it has no preview here
                break
    assert found, "no preview came"
    return [base64.b64decode(each) for each in found]


WAYS: tuple[Callable[[RunningService], list[bytes]], ...] = (
    by_json, by_raw, by_address, by_upload, by_openai, by_openai_stream, by_a1111, by_iti, by_fleet,
    by_bfl, by_comfy, by_events,
)  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_flagged_picture_leaves_by_no_way_unblurred(
    flagging: RunningService, way: Callable[[RunningService], list[bytes]]
) -> None:
    got = way(flagging)
    assert got and not [len(data) for data in got if has_stripes(data)]


@pytest.mark.parametrize("way", WAYS)
def test_picture_that_nobody_looks_at_shows_what_the_ways_are_tested_by(
    engine_service: RunningService, way: Callable[[RunningService], list[bytes]]
) -> None:
    """Else the test of the flagged ones could not fail."""
    assert all(map(has_stripes, way(engine_service)))


def test_worker_that_begins_anew_without_the_weights_draws_nothing(
    weights: Path, tmp_path: Path
) -> None:
    """They were there when the service started: nobody has said that nobody looks any more."""
    cached = tmp_path / "models" / f"models--{HUB_ID.replace('/', '--')}"
    shutil.copytree(weights, cached / "snapshots" / "c0ffee")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("c0ffee")
    service = RunningService(tmp_path, main=ENGINE_MAIN, TEST_ENGINE="scripted").start()
    try:
        service.wait_for_workers()
        (worker,) = service.workers()
        assert service.client.get("/info").json()["safety_checker"]["model"] == HUB_ID
        shutil.rmtree(cached)
        os.kill(worker["pid"], signal.SIGKILL)
        service.wait_until(lambda: service.workers()[0]["pid"] not in (None, worker["pid"]))
        service.wait_for_workers()
        answer = draw(service, RED)
        assert (
            answer["http"] == 503 and "weights of the safety checker are gone" in answer["detail"]
        )
        told = service.client.get("/info").json()["safety_checker"]
        assert told["active"] is False and "no weights of a safety checker" in told["reason"]
        assert not list(service.output_dir.glob("*.png"))
    finally:
        service.close()


def test_nothing_of_flagged_pictures_lies_about_unblurred(flagging: RunningService) -> None:
    by_address(flagging)
    kept = [path for path in flagging.folder.rglob("*") if path.suffix in (".png", ".jpg", ".webp")]
    assert kept and not [str(path) for path in kept if has_stripes(path.read_bytes())]
