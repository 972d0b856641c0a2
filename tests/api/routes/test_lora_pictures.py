"""LoRAs from an upload to the picture, with the embedded model."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.lora_files import lora
from tests.models.lora import formats
from tests.service import RunningService

SMALL = {"prompt": "a red balloon", "width": 128, "height": 128, "steps": 1, "seed": 3}
NOWHERE = {"lora_unet_double_blocks_7_img_attn_proj": (192, 192)}  # the model has no such block


@pytest.fixture(scope="module")
def library(service: RunningService, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The service with LoRA `known` in its library."""
    path, _ = formats.write_known(tmp_path_factory.mktemp("loras") / "known.safetensors", "kohya")
    put(service, path.read_bytes(), "known.safetensors")
    yield service
    service.client.delete("/loras/known")


def put(service: RunningService, data: bytes, filename: str) -> None:
    answer = service.client.put(f"/loras/{filename}", content=data)
    assert answer.status_code in (200, 201), answer.text


def pixels(service: RunningService, job_id: str) -> bytes:
    data = service.client.get(f"/jobs/{job_id}/image").content
    return Image.open(io.BytesIO(data)).tobytes()


def drawn(service: RunningService, **body: Any) -> tuple[dict[str, Any], bytes]:
    answer = service.client.post("/generate", json={**SMALL, **body})
    assert answer.status_code == 200, answer.text
    return answer.json(), pixels(service, answer.json()["id"])


def test_lora_changes_the_picture_and_is_told_in_the_answer(library: RunningService) -> None:
    plain, without = drawn(library)
    answer, picture = drawn(library, lora_name="known", lora_weight=0.7)
    assert plain["loras_applied"] == [] and picture != without
    (applied,) = answer["loras_applied"]
    entry = library.client.get("/loras/known").json()
    assert applied == {
        "name": "known", "sha256": entry["sha256"], "weight": 0.7,
        "matched_keys": entry["tensors"], "unmatched_keys": 0,
    }  # fmt: skip
    assert drawn(library)[1] == without  # of that request alone


def test_lora_of_weight_zero_changes_nothing(library: RunningService) -> None:
    assert drawn(library, lora_name="known", lora_weight=0)[1] == drawn(library)[1]


def test_lora_by_default_draws_as_if_it_was_named(library: RunningService) -> None:
    _, named = drawn(library, lora_name="known")
    library.client.post("/apply-lora", json={"name": "known"})
    try:
        assert drawn(library)[1] == named
        assert drawn(library, loras=[])[1] != named
    finally:
        library.client.post("/remove-lora")


def test_lora_deleted_while_its_job_waits_is_drawn_with(
    service: RunningService, tmp_path: Path
) -> None:
    path, _ = formats.write_known(tmp_path / "a.safetensors", "bfl")
    put(service, path.read_bytes(), "brief.safetensors")
    _, expected = drawn(service, lora_name="brief")
    service.client.post("/queue/pause")
    job_id = service.client.post("/jobs", json={**SMALL, "lora_name": "brief"}).json()["id"]
    assert service.client.delete("/loras/brief").status_code == 204
    service.client.post("/queue/resume")
    assert service.wait_for_job(job_id)["status"] == "succeeded"
    assert pixels(service, job_id) == expected


def test_lora_that_matches_no_layer_is_409_that_says_so(service: RunningService) -> None:
    put(service, lora(modules=NOWHERE), "nowhere.safetensors")
    answer = service.client.post("/generate", json={**SMALL, "lora_name": "nowhere"})
    service.client.delete("/loras/nowhere")
    assert (answer.status_code, answer.json()["code"]) == (409, "lora_incompatible"), answer.text
    assert "layer" in answer.json()["detail"]
