"""The stand-in for BFL's cloud: started as the guide says, and held against BFL's document."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

import httpx2
import pytest

from config.settings import ROOT
from scripts import fake_bfl
from tests.cloud import KEY, StandIn
from tests.service import free_port

BODY = {"prompt": "a red balloon", "width": 64, "height": 64}
HEADERS = {"x-key": KEY}


def submitted(cloud: StandIn, prompt: str = "x", model: str = "flux-2-pro") -> dict[str, Any]:
    answer = cloud.client.post(f"/v1/{model}", json={**BODY, "prompt": prompt}, headers=HEADERS)
    assert answer.status_code == 200, answer.text
    return answer.json()


def looked(cloud: StandIn, task: Mapping[str, Any]) -> dict[str, Any]:
    return cloud.client.get(task["polling_url"], headers=HEADERS).json()


def faults(name: str, value: Mapping[str, Any]) -> list[dict[str, Any]]:
    return fake_bfl.faults_of(fake_bfl.FACTS[name], value)


def test_stand_in_starts_as_the_guide_says_and_says_how_to_use_it() -> None:
    port = free_port()
    command = [sys.executable, "-m", "scripts.fake_bfl", "--port", str(port)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        try:
            told = running.stdout.readline() + running.stdout.readline()
            assert f"SD_BFL_API_BASE=http://127.0.0.1:{port}/v1" in told
            # The port is taken from the start: who comes early waits until it is answered.
            answer = httpx2.get(f"http://127.0.0.1:{port}/v1/credits", headers=HEADERS, timeout=30)
            assert answer.json() == {"credits": 1000.0}
            again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
            assert again.returncode == 1 and "--port" in again.stderr
        finally:
            running.terminate()


def test_stand_in_ends_while_somebody_waits_for_an_answer() -> None:
    port = free_port()
    command = [sys.executable, "-m", "scripts.fake_bfl", "--port", str(port)]
    here = f"http://127.0.0.1:{port}"
    body = json.dumps({**BODY, "prompt": "[[then=hang]]"}).encode()
    head = f"POST /v1/flux-2-pro HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nx-key: {KEY}\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        try:
            running.stdout.readline()
            with socket.create_connection(("127.0.0.1", port), timeout=30) as waiting:
                waiting.sendall(head.encode() + body)
                deadline = time.monotonic() + 30
                while not httpx2.get(f"{here}/__calls", timeout=30).json()["tasks"]:
                    assert time.monotonic() < deadline, "the request was not taken"
                running.terminate()
                running.wait(30)
        finally:
            running.kill()


@pytest.mark.parametrize("words", ["", "[[never]]", "[[moderate=content]]", "[[error]]"])
def test_stand_in_answers_are_what_bfls_document_says(cloud: StandIn, words: str) -> None:
    task = submitted(cloud, words)
    assert faults("async_response", task) == []
    result = looked(cloud, task)
    assert faults("result_response", result) == []
    assert result["status"] in fake_bfl.FACTS["statuses"]


def test_stand_in_knows_the_words_of_its_guide() -> None:
    guide = fake_bfl.__doc__ or ""
    assert set(fake_bfl.words_of(guide)) >= {
        "delay",
        "status",
        "never",
        "moderate",
        "then",
        "expire",
    }


def test_stand_in_counts_credits_as_bfl_does(cloud: StandIn) -> None:
    submitted(cloud)
    assert cloud.credits == pytest.approx(997.0)
    looked(cloud, submitted(cloud, "[[moderate=request]]"))
    assert cloud.credits == pytest.approx(997.0)  # what is blocked costs nothing


def test_stand_in_takes_no_more_than_24_at_once(cloud: StandIn) -> None:
    for _ in range(fake_bfl.MAX_TASKS):
        submitted(cloud, "[[never]]")
    answer = cloud.client.post("/v1/flux-2-pro", json=BODY, headers=HEADERS)
    assert answer.status_code == 429


@pytest.mark.parametrize(
    ("model", "body", "field"),
    [
        ("flux-2-pro", {"prompt": 1}, "prompt"),
        ("flux-2-pro", {"prompt": "x", "width": 65}, "width"),
        ("flux-2-pro", {"prompt": "x", "width": 4096, "height": 4096}, "width"),
        ("flux-2-pro", {"prompt": "x", "steps": 4}, "steps"),
        ("flux-2-flex", {"prompt": "x", "guidance": 11}, "guidance"),
        ("flux-2-klein-4b", {"prompt": "x", "input_image_5": "aa"}, "input_image_5"),
        ("flux-3-image", {"prompt": "x", "seed": 1}, "seed"),
        ("flux-3-image", {"prompt": "x", "resolution": "8k"}, "resolution"),
        ("flux-kontext-pro", {"prompt": "x", "aspect_ratio": "3:1"}, "aspect_ratio"),
        ("flux-pro-1.0-fill", {"prompt": "x"}, "image"),
    ],
)
def test_stand_in_refuses_what_bfls_document_refuses(
    model: str, body: dict[str, Any], field: str
) -> None:
    found = fake_bfl.faults_of(fake_bfl.FACTS["models"][model], body)
    assert [fault["loc"] for fault in found] == [["body", field]]
