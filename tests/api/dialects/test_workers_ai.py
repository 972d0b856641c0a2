"""The plan of a Workers AI service: `/generate` with a Bearer key, in both formats, with CORS and usage per day."""

from __future__ import annotations

import base64
from datetime import UTC, datetime

import pytest

from tests.api.dialects.conftest import KEY
from tests.service import RunningService

BEARER = {"Authorization": f"Bearer {KEY}"}
BODY = {"prompt": "a cat astronaut", "width": 256, "height": 256}
ORIGIN = "http://127.0.0.1:9000"


def test_generate_answers_json(keyed: RunningService) -> None:
    answer = keyed.client.post("/generate", json=BODY, headers=BEARER)
    told = answer.json()
    assert base64.b64decode(told["image"]).startswith(b"\x89PNG")
    assert (told["prompt"], told["width"], told["height"]) == ("a cat astronaut", 256, 256)
    assert told["dimensions"] == {"width": 256, "height": 256}
    assert told["model"] == "embedded"


def test_generate_answers_the_picture_itself(keyed: RunningService) -> None:
    answer = keyed.client.post("/generate?format=raw", json=BODY, headers=BEARER)
    assert answer.headers["content-type"] == "image/png"
    assert answer.content.startswith(b"\x89PNG")


@pytest.mark.parametrize("path", ["/generate", "/generate?format=raw"])
def test_generate_without_a_key_is_401(keyed: RunningService, path: str) -> None:
    assert keyed.client.post(path, json=BODY).status_code == 401


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": "x" * 2001}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"width": 64}, "width"),
        ({"height": 4096}, "height"),
        ({"width": "wide"}, "width"),
    ],
)
def test_generate_with_a_bad_field_is_400(keyed: RunningService, changed: dict, field: str) -> None:
    answer = keyed.client.post("/generate", json={**BODY, **changed}, headers=BEARER)
    assert answer.status_code == 400
    assert [fault["field"] for fault in answer.json()["errors"]] == [field]


def test_preflight_is_answered_without_a_key(keyed: RunningService) -> None:
    headers = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    answer = keyed.client.options("/generate", headers=headers)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert "authorization" in answer.headers["access-control-allow-headers"].lower()


def test_page_reads_the_answer(keyed: RunningService) -> None:
    headers = {**BEARER, "Origin": ORIGIN}
    answer = keyed.client.post("/generate?format=raw", json=BODY, headers=headers)
    assert answer.headers["access-control-allow-origin"] == ORIGIN


def test_usage_counts_the_day(keyed: RunningService) -> None:
    today = datetime.now(UTC).date().isoformat()

    def images() -> int:
        usage = keyed.client.get(f"/usage?from={today}", headers=BEARER).json()
        return usage["totals"]["images"]

    before = images()
    keyed.client.post("/generate", json=BODY, headers=BEARER)
    assert images() == before + 1


def test_health_answers(keyed: RunningService) -> None:
    assert keyed.client.get("/health", headers=BEARER).status_code == 200
