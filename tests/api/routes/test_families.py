"""Families of models in requests: a backend alone, what one takes, and what cannot run here."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator

import pytest
from PIL import Image

from api.services import Plan, make_plan
from config.catalog import load_catalog
from config.errors import ConfigurationError, InvalidRequest, UnsupportedHardware
from config.settings import ROOT, load_settings
from models.families import mflux_command
from models.precision import profile_of
from tests.service import RunningService
from tests.tiny_models import tiny_model
from utils import main_memory
from utils.requests import Wanted


@pytest.fixture(autouse=True)
def much_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What models need is refused elsewhere; here every machine has it."""
    monkeypatch.setattr(main_memory, "total_gib", lambda: 256.0)


def plan(precision: str = "bf16", **environ: str) -> Plan:
    environ = {"FLUX_GPUS": "none", **environ}
    return make_plan(load_settings(precision, environ), profile_of(precision))


def model_of(plan: Plan, **wanted: object) -> str:
    return plan.resolver.resolve(Wanted(prompt="a cat", **wanted)).model  # type: ignore[arg-type]


def test_backend_sd_alone_draws_with_its_first_model() -> None:
    assert model_of(plan(), backend="sd") == "stable-diffusion-v1-5"


@pytest.mark.parametrize("name", ["SD_MODEL_ID", "FLUX_SD_MODEL_ID"])
def test_backend_sd_alone_draws_with_the_configured_model(name: str) -> None:
    configured = plan(**{name: "stabilityai/stable-diffusion-xl-base-1.0"})
    assert model_of(configured, backend="sd") == "sdxl-base"
    assert (
        model_of(configured, backend="sd", model="stable-diffusion-2-1") == "stable-diffusion-2-1"
    )
    assert model_of(configured) == "embedded"


def test_backend_default_that_is_no_model_of_it_stops_the_start() -> None:
    with pytest.raises(ConfigurationError, match="SD_MODEL_ID.*no such model"):
        plan(SD_MODEL_ID="nobody/nothing")


def test_sd_request_has_its_own_size_steps_and_guidance() -> None:
    request = plan().resolver.resolve(Wanted(prompt="a cat", backend="sd", negative_prompt="a dog"))
    assert (request.width, request.height, request.num_inference_steps) == (512, 512, 30)
    assert (request.guidance_scale, request.true_cfg_scale) == (7.5, 1.0)


@pytest.mark.parametrize("model", ["sdxl-base", "z-image-turbo", "mflux-schnell"])
def test_fp4_service_refuses_what_has_no_fp4_weights_and_says_who_draws_it(model: str) -> None:
    with pytest.raises(UnsupportedHardware, match=f"{model} has no FP4 weights.*the BF16 service"):
        model_of(plan("fp4"), model=model)


def test_mflux_elsewhere_than_on_a_mac_is_refused_with_the_machine(service: RunningService) -> None:
    answer = service.generate(backend="mflux")
    assert answer.status_code == 409 and answer.json()["code"] == "unsupported_gpu"
    assert "mflux-schnell needs Apple Silicon" in answer.json()["detail"]


def test_models_of_mflux_are_listed_with_why_they_cannot_run(service: RunningService) -> None:
    rows = {row["id"]: row for row in service.client.get("/api/models").json()["models"]}
    assert not rows["mflux-z-image-turbo"]["available"]
    assert "Apple Silicon" in rows["mflux-z-image-turbo"]["reason"]
    assert rows["sdxl-base"]["ways"] == ["text", "image", "mask"]


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch) -> Iterator[Plan]:
    monkeypatch.setattr(mflux_command, "is_apple_silicon", lambda: True)
    monkeypatch.setattr(mflux_command, "find", lambda command: f"/opt/{command}")
    yield plan()


def test_mflux_on_a_mac_is_taken(mac: Plan) -> None:
    assert model_of(mac, backend="mflux") == "mflux-schnell"


def test_mflux_takes_no_mask_and_no_negative_prompt(mac: Plan) -> None:
    with pytest.raises(InvalidRequest) as refused:
        mac.resolver.checked(
            Wanted(prompt="a", model="mflux-dev", negative_prompt="b", image=b"", mask=b"")
        )
    assert {error.field for error in refused.value.fields} == {"negative_prompt", "mask"}


# Stable Diffusion in a service, on tiny weights where the Hub's cache would have them

SIZE = {"width": 256, "height": 256, "num_inference_steps": 3}
COMMIT = "0" * 40


@pytest.fixture(scope="module")
def sd_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    folder = tmp_path_factory.mktemp("sd")
    row = load_catalog()["stable-diffusion-2-1"]
    cached = folder / "models" / f"models--{row.source.replace('/', '--')}"
    (cached / "snapshots" / COMMIT).mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(COMMIT)
    tiny_model(row.id, cached / "snapshots" / COMMIT)
    running = RunningService(
        folder,
        main=ROOT / "tests" / "main_roomy.py",
        SD_MODEL_ID="stabilityai/stable-diffusion-2-1",
    ).start()
    try:
        running.wait_for_workers()
        yield running
    finally:
        running.close()


def test_sd_request_is_drawn_and_the_same_again(sd_service: RunningService) -> None:
    first = sd_service.generate(backend="sd", seed=4, negative_prompt="a dog", **SIZE).json()
    second = sd_service.generate(backend="sd", seed=4, negative_prompt="a dog", **SIZE).json()
    assert (first["model"], first["guidance_scale"]) == ("stable-diffusion-2-1", 7.5)
    assert first["image"] == second["image"]


def test_sd_mask_leaves_every_black_pixel(sd_service: RunningService) -> None:
    begun = sd_service.generate(backend="sd", seed=5, **SIZE).json()["image"]
    mask, data = Image.new("L", (256, 256), 0), io.BytesIO()
    mask.paste(255, (0, 0, 128, 256))
    mask.save(data, "PNG")
    told = sd_service.generate(
        backend="sd", image=begun, mask=base64.b64encode(data.getvalue()).decode(), seed=6, **SIZE
    ).json()
    before, after = (
        Image.open(io.BytesIO(base64.b64decode(each))) for each in (begun, told["image"])
    )
    black, white = (128, 0, 256, 256), (0, 0, 128, 256)
    assert after.crop(black).tobytes() == before.crop(black).tobytes()
    assert after.crop(white).tobytes() != before.crop(white).tobytes()


def test_sd_model_whose_files_are_not_here_says_how_to_get_them(sd_service: RunningService) -> None:
    def jobs() -> list[str]:
        return [job["id"] for job in sd_service.client.get("/jobs").json()["jobs"]]

    before, body = jobs(), {"prompt": "a cat", "model": "stable-diffusion-v1-5"}
    for route in ("/generate", "/jobs", "/api/txt2img"):
        answer = sd_service.client.post(route, json=body)
        assert answer.status_code == 503, answer.text
        assert "download_models stable-diffusion-v1-5" in answer.text
    assert jobs() == before  # none was put into the queue


def test_sd_models_are_told_by_what_is_here(sd_service: RunningService) -> None:
    models = {row["id"]: row for row in sd_service.client.get("/api/models").json()["models"]}
    there, missing = models["stable-diffusion-2-1"], models["sdxl-base"]
    assert there["available"] and there["downloaded"] and there["reason"] is None
    assert not missing["available"] and not missing["downloaded"]
    assert "download_models sdxl-base" in missing["reason"]
    backends = sd_service.client.get("/api/backends").json()["backends"]
    (told,) = [backend for backend in backends if backend["id"] == "sd"]
    assert told["available"] and told["downloaded"] == ["stable-diffusion-2-1"]
