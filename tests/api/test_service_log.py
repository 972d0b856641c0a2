"""The log of a real service: ids in the lines of requests and jobs, and what stands in no line at any level."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.service import ENGINE_MAIN, START_SECONDS, RunningService

KEY = "key-that-is-in-no-line-0123456789"
PROMPT = "a walled garden behind the seventh gate"
NEGATIVE = "no gardener of that name"


class Telling(RunningService):
    def lines(self) -> list[dict[str, Any]]:
        """What is in the log's file."""
        text = (self.folder / "logs" / "bf16.log").read_text()
        whole, _, _ = text.rpartition("\n")  # the last one may be half there
        return [json.loads(line) for line in whole.splitlines()]

    def lines_of(self, **fields: object) -> list[dict[str, Any]]:
        return [line for line in self.lines() if fields.items() <= line.items()]

    def everything(self) -> str:
        """Console and file."""
        return self.log_path.read_text() + (self.folder / "logs" / "bf16.log").read_text()


@pytest.fixture(scope="module")
def telling(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Telling]:
    """A service that asks for a key and tells all that it can."""
    service = Telling(
        tmp_path_factory.mktemp("telling"),
        main=ENGINE_MAIN,
        TEST_ENGINE="scripted",
        FLUX_LOG_LEVEL="debug",
        FLUX_API_KEYS=KEY,
    )
    service.client.headers["Authorization"] = f"Bearer {KEY}"
    service.start()
    try:
        service.wait_for_workers()
        yield service
    finally:
        service.close()


def draw(service: RunningService, prompt: str = PROMPT, **body: object) -> httpx2.Response:
    size = {"width": 128, "height": 128}
    return service.client.post("/generate", json={"prompt": prompt, **size, **body})


def test_lines_of_a_request_have_its_id_and_that_of_its_job(telling: Telling) -> None:
    answer = draw(telling).raise_for_status()
    ids = {"request_id": answer.headers["x-request-id"], "job_id": answer.json()["id"]}
    telling.wait_until(lambda: telling.lines_of(action="request", **ids))
    assert telling.lines_of(action="job_queued", **ids)


def test_lines_of_a_job_have_its_id(telling: Telling) -> None:
    job = draw(telling).raise_for_status().json()["id"]
    actions = {line["action"] for line in telling.lines_of(job_id=job)}
    assert {"job_queued", "job_started", "job_succeeded"} <= actions


def test_submits_that_are_stored_together_have_each_its_own_ids(telling: Telling) -> None:
    answers = [draw(telling, seed=number).raise_for_status() for number in range(3)]
    for answer in answers:
        [line] = telling.lines_of(action="job_queued", job_id=answer.json()["id"])
        assert line["request_id"] == answer.headers["x-request-id"]


def test_worker_tells_through_the_service_with_the_jobs_id_and_its_trace(telling: Telling) -> None:
    job = telling.submit("raise")
    telling.wait_for_job(job, "failed")
    telling.wait_until(lambda: telling.lines_of(logger="worker", job_id=job))
    [line] = telling.lines_of(logger="worker", job_id=job)
    assert (line["level"], line["worker"], line["service"]) == ("error", "cpu", "bf16")
    assert "Traceback" in line["exception"]


def test_last_words_of_a_worker_are_told(telling: Telling) -> None:
    said = len(telling.lines_of(action="worker_died"))
    job = telling.submit("kill-once last-words")
    telling.wait_for_job(job)
    telling.wait_for_workers()
    assert len(telling.lines_of(action="worker_died")) == said + 1


def test_prompts_are_in_no_line(telling: Telling) -> None:
    draw(telling, negative_prompt=NEGATIVE, true_cfg_scale=2.0)
    refused = draw(telling, width=7)
    assert refused.status_code == 400
    telling.wait_until(
        lambda: telling.lines_of(request_id=refused.headers["x-request-id"], status=400)
    )
    text = telling.everything()
    for words in (PROMPT, NEGATIVE, "walled garden", "gardener"):
        assert words not in text


def test_keys_are_in_no_line_however_they_are_sent(telling: Telling) -> None:
    made = telling.client.post("/admin/keys", json={"name": "log", "scopes": ["generate"]})
    key = made.raise_for_status().json()["key"]
    bare = httpx2.Client(base_url=telling.url, timeout=START_SECONDS)
    with bare:
        for headers in ({"X-API-Key": key}, {"x-key": key}, {"Authorization": f"Basic {key}"}):
            bare.get("/jobs", headers=headers)
        bare.get("/jobs", params={"key": key})
        bare.post("/generate", json={"prompt": "x", "key": key}, headers={"X-API-Key": key})
    for address, headers in (("/ws", {"X-API-Key": key}), (f"/ws?token={key}", {})):
        try:
            with connect(
                telling.url.replace("http", "ws") + address,
                additional_headers=headers,
                open_timeout=START_SECONDS,
            ):
                pass
        except InvalidStatus:
            pass
    last = telling.client.post("/queue/resume").headers["x-request-id"]
    telling.wait_until(lambda: telling.lines_of(request_id=last))
    text = telling.everything()
    assert key not in text and KEY not in text


def test_links_that_are_keys_are_in_no_line(telling: Telling) -> None:
    answer = telling.client.get("/delivery/123-0123456789abcdef/x-0/x-0.png")
    last = telling.client.post("/queue/resume").headers["x-request-id"]
    telling.wait_until(lambda: telling.lines_of(request_id=last))
    assert answer.status_code == 404 and "0123456789abcdef" not in telling.everything()
    assert telling.lines_of(path="/delivery/…")


def test_reading_is_no_news_and_a_refusal_that_is_repeated_is_told_once(telling: Telling) -> None:
    for _ in range(5):
        assert telling.client.get("/queue").status_code == 200
        assert telling.client.get("/jobs/of-a-poller").status_code == 404
    last = telling.client.post("/queue/resume").headers["x-request-id"]
    telling.wait_until(lambda: telling.lines_of(request_id=last))
    assert {line["level"] for line in telling.lines_of(path="/queue")} == {"debug"}
    levels = [line["level"] for line in telling.lines_of(path="/jobs/of-a-poller")]
    assert levels == ["info", *["debug"] * 4]
