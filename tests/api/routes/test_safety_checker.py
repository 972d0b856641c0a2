"""A service with a safety checker: what of a flagged picture is stored, shown and said."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.safety_weights import classifier
from tests.service import ENGINE_MAIN, RunningService
from utils.metadata import read_request


def prompt_of(is_red: bool) -> str:
    """A prompt that the stand-in model draws in a colour that is red, or is not."""
    for number in range(1000):
        prompt = f"colour {number}"
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


def test_flagged_picture_says_so_in_answer_job_and_file(flagging: RunningService) -> None:
    answer = draw(flagging, RED)
    assert answer["http"] == 200, answer
    assert answer["nsfw_flagged"] is True and answer["images"][0]["nsfw_flagged"] is True
    assert flagging.job(answer["id"])["result"]["nsfw_flagged"] is True
    stored = (flagging.output_dir / answer["filename"]).read_bytes()
    assert read_request(stored)["nsfw_flagged"] is True


def test_picture_that_is_not_flagged_says_that_it_was_looked_at(flagging: RunningService) -> None:
    answer = draw(flagging, OTHER)
    assert answer["nsfw_flagged"] is False
    stored = (flagging.output_dir / answer["filename"]).read_bytes()
    assert read_request(stored)["nsfw_flagged"] is False


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
