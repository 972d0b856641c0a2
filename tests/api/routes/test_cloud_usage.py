"""What the cloud costs, by key: in `/usage` beside what is drawn here, and held against the key's budget."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from tests.cloud import StandIn
from tests.service import KeyedService

PRICE = 0.014  # of one megapixel of flux-2-klein-4b
IN_CLOUD = {
    "prompt": "a",
    "backend": "flux-api",
    "model": "flux-2-klein-4b",
    "width": 64,
    "height": 64,
}
HERE = {"prompt": "a", "width": 128, "height": 128}

pytestmark = pytest.mark.usefixtures("one_day")


@pytest.fixture(scope="module")
def clouded(stand_in: StandIn, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeyedService]:
    running = KeyedService(
        tmp_path_factory.mktemp("charged"), FLUX_BFL_POLL_TIMEOUT="60", **stand_in.environ
    )
    running.start()
    try:
        running.wait_for_workers()
        yield running
    finally:
        running.close()


def today(client: httpx2.Client) -> dict[str, Any]:
    return client.get("/usage").json()["today"]


def test_usage_has_cloud_and_local_side_by_side(clouded: KeyedService, cloud: StandIn) -> None:
    with clouded.as_key(clouded.make_key()) as client:
        for body in (IN_CLOUD, HERE):
            assert client.post("/generate", json=body).status_code == 200
        answer = client.get("/usage", params={"group": "month,backend,model"}).json()
    here, there = answer["rows"]
    assert (here["backend"], here["model"], here["images"], here["cost_usd"]) == (
        "flux",
        "embedded",
        1,
        0,
    )
    assert (there["backend"], there["images"], there["gpu_seconds"]) == ("flux-api", 1, 0)
    assert there["cost_usd"] == answer["totals"]["cost_usd"] == pytest.approx(PRICE)


def test_budget_of_money_is_429_and_asks_the_cloud_nothing(
    clouded: KeyedService, cloud: StandIn
) -> None:
    with clouded.as_key(clouded.make_key(daily_usd=2.5 * PRICE)) as client:
        for _ in range(2):
            assert client.post("/generate", json=IN_CLOUD).status_code == 200
        asked = len(cloud.submits)
        answer = client.post("/generate", json=IN_CLOUD)
        assert (answer.status_code, answer.json()["code"]) == (429, "rate_limited")
        assert int(answer.headers["Retry-After"]) >= 1 and "USD a day" in answer.json()["detail"]
        assert len(cloud.submits) == asked
        assert client.post("/generate", json=HERE).status_code == 200, "what costs nothing is drawn"
        assert today(client)["cost_usd"] == pytest.approx(2 * PRICE)


def test_budget_of_no_money_keeps_a_key_out_of_the_cloud(
    clouded: KeyedService, cloud: StandIn
) -> None:
    with clouded.as_key(clouded.make_key(daily_usd=0.0)) as client:
        assert client.post("/generate", json=IN_CLOUD).status_code == 429
        assert client.post("/jobs", json={**IN_CLOUD, "num_images": 8}).status_code == 429
        assert client.post("/generate", json=HERE).status_code == 200
    assert cloud.submits == []


def test_budget_of_one_key_is_not_anothers(clouded: KeyedService, cloud: StandIn) -> None:
    with (
        clouded.as_key(clouded.make_key(daily_usd=PRICE)) as one,
        clouded.as_key(clouded.make_key()) as two,
    ):
        assert one.post("/generate", json=IN_CLOUD).status_code == 200
        assert one.post("/generate", json=IN_CLOUD).status_code == 429
        assert two.post("/generate", json=IN_CLOUD).status_code == 200


def test_usage_of_a_picture_that_may_be_charged_and_never_came_is_its_price(
    clouded: KeyedService, cloud: StandIn
) -> None:
    """Cancelled while the cloud drew it: the cloud may charge, so the key's budget counts it."""
    with clouded.as_key(clouded.make_key(daily_usd=1.5 * PRICE)) as client:
        job_id = client.post("/jobs", json={**IN_CLOUD, "prompt": "[[never]]"}).json()["id"]
        clouded.wait_until(lambda: len(cloud.submits) == 1)
        clouded.wait_until(lambda: today(client)["cost_usd"] > 0)
        assert client.post(f"/jobs/{job_id}/cancel").json()["cancelled"] is True
        (row,) = client.get("/usage").json()["rows"]
        assert (row["jobs"], row["images"], row["cost_usd"]) == (0, 0, pytest.approx(PRICE))
        assert client.post("/generate", json=IN_CLOUD).status_code == 429
