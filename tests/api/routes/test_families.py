"""Families of models in requests: a backend alone, what one takes, and what cannot run here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from api.services import Plan, make_plan
from config.errors import ConfigurationError, InvalidRequest, UnsupportedHardware
from config.settings import load_settings
from models.families import mflux_command
from models.precision import profile_of
from tests.service import RunningService
from utils.requests import Wanted


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
