"""`GET /usage`: what a service tells of what was used, as JSON and CSV, and the budgets of keys."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

import httpx2
import pytest

from tests.service import KeyedService, RunningService

SMALL = {"prompt": "a", "width": 128, "height": 128}

pytestmark = pytest.mark.usefixtures("one_day")


@pytest.fixture
def client(keyed_service: KeyedService) -> Iterator[httpx2.Client]:
    """With a key that nobody has used."""
    with keyed_service.as_key(keyed_service.make_key("generate")) as client:
        yield client


def draw(client: httpx2.Client, *tags: str, **body: object) -> httpx2.Response:
    answer = client.post("/generate", json={**SMALL, "metadata": {"tags": tags}, **body})
    assert answer.status_code == 200, answer.text
    return answer


def test_usage_of_a_key_is_per_day_key_model_and_tag(client: httpx2.Client) -> None:
    draw(client, "one", num_images=2)
    draw(client)
    answer = client.get("/usage").json()
    assert answer["group"] == ["day", "key", "model", "tag"]
    none, one = answer["rows"]
    assert (none["tag"], none["images"], one["tag"], one["images"]) == ("", 1, "one", 2)
    assert one["day"] == answer["to"] and one["model"] == "embedded" and len(one["key"]) == 16
    assert one["key_name"] and one["cost_usd"] == 0 and one["megapixels"] == 0.032768
    assert answer["totals"]["images"] == 3 and answer["totals"]["jobs"] == 2
    assert answer["today"] == {
        "images": 3,
        "cost_usd": 0.0,
        "daily_images": None,
        "daily_usd": None,
    }


def test_usage_per_day_is_a_count_and_when_it_was_last_changed(client: httpx2.Client) -> None:
    """What a counter per day, kept by hand, would say."""
    draw(client)
    (row,) = client.get("/usage", params={"group": "day"}).json()["rows"]
    assert row["images"] == 1 and row["last_at"].startswith(row["day"])


def test_usage_of_another_key_is_not_told_but_to_an_admin(
    keyed_service: KeyedService, client: httpx2.Client
) -> None:
    draw(client, "private")
    with keyed_service.as_key(keyed_service.make_key("generate")) as other:
        answer = other.get("/usage").json()
        assert answer["rows"] == [] and answer["totals"]["images"] == 0
        assert answer["today"]["images"] == 0
    rows = keyed_service.client.get("/usage", params={"group": "tag"}).json()["rows"]
    assert "private" in [row["tag"] for row in rows]


def test_usage_of_a_job_that_ran_twice_counts_once_also_after_a_crash(start_engine) -> None:
    """Its worker dies, then the service does."""
    service = start_engine()
    job_id = service.submit("kill-once twice", num_images=2)
    assert service.wait_for_job(job_id)["attempts"] == 2
    interrupted = service.submit("hold until-the-crash")
    service.wait_for_job(interrupted, "running")
    service.kill()
    service.release("until-the-crash")
    service.start()
    assert service.wait_for_job(interrupted)["status"] == "succeeded"
    totals = service.client.get("/usage").json()["totals"]
    assert (totals["jobs"], totals["images"]) == (2, 3)


def test_usage_of_work_that_came_to_nothing_is_none(
    keyed_service: KeyedService, client: httpx2.Client
) -> None:
    job_id = client.post("/jobs", json={**SMALL, "prompt": "raise"}).json()["id"]
    keyed_service.wait_for_job(job_id)
    assert client.get("/usage").json()["totals"]["images"] == 0


@pytest.mark.parametrize("how", ["format", "accept"])
def test_usage_as_csv_is_the_same_table(client: httpx2.Client, how: str) -> None:
    draw(client, "tag, with a comma")
    asked = (
        {"params": {"format": "csv"}} if how == "format" else {"headers": {"Accept": "text/csv"}}
    )
    answer = client.get("/usage", **asked)
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert answer.headers["content-disposition"].startswith('attachment; filename="usage-20')
    (row,) = csv.DictReader(io.StringIO(answer.text))
    (same,) = client.get("/usage").json()["rows"]
    assert row == {name: str(value) for name, value in same.items()}
    assert row["tag"] == "tag, with a comma"


@pytest.mark.parametrize("tag", ["=HYPERLINK(1)", "+1", "-1", "@SUM(A1)"])
def test_usage_as_csv_holds_no_formula(client: httpx2.Client, tag: str) -> None:
    draw(client, tag)
    (row,) = csv.DictReader(io.StringIO(client.get("/usage?format=csv").text))
    assert row["tag"] == f"'{tag}"


def test_usage_of_days_without_any_is_empty(client: httpx2.Client) -> None:
    draw(client)
    answer = client.get("/usage", params={"from": "2020-01-01", "to": "2020-12-31"}).json()
    assert answer["rows"] == [] and answer["totals"]["jobs"] == 0
    assert client.get("/usage", params={"to": "0001-01-02"}).json()["from"] == "0001-01-01"


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("from=yesterday", "from"), ("from=2026-13-01", "from"), ("to=0", "to"), ("to=20260101", "to"),
        ("from=2026-02-01&to=2026-01-01", "from"), ("group=colour", "group"), ("group=", "group"),
        ("group=day,,colour", "group"), ("limit=0", "limit"), ("limit=10001", "limit"), ("offset=-1", "offset"),
        ("format=xml", "format"),
    ],
)  # fmt: skip
def test_usage_with_a_fault_names_the_parameter(
    client: httpx2.Client, query: str, field: str
) -> None:
    answer = client.get(f"/usage?{query}")
    assert answer.status_code == 400
    assert [error["field"] for error in answer.json()["errors"]] == [field]


def test_usage_where_no_key_is_asked_for_is_told_to_whoever_asks(
    engine_service: RunningService,
) -> None:
    engine_service.wait_for_job(engine_service.submit())
    row, *_ = engine_service.client.get("/usage", params={"group": "key"}).json()["rows"]
    assert (row["key"], row["key_name"]) == ("", None) and row["images"] >= 1


# Budgets


def test_budget_of_images_is_429_until_tomorrow(keyed_service: KeyedService) -> None:
    with keyed_service.as_key(keyed_service.make_key("generate", daily_images=3)) as client:
        draw(client, num_images=2)
        answers = [
            client.post(path, json={**SMALL, "num_images": 2}) for path in ("/generate", "/jobs")
        ]
        for answer in answers:
            assert (answer.status_code, answer.json()["code"]) == (429, "rate_limited")
            assert 1 <= int(answer.headers["Retry-After"]) <= 86_400
            assert "3 images a day" in answer.json()["detail"]
        draw(client)
        assert client.post("/jobs", json=SMALL).status_code == 429
        assert client.get("/usage").json()["today"]["images"] == 3


def test_budget_is_not_slipped_past_by_a_retry(keyed_service: KeyedService) -> None:
    with keyed_service.as_key(keyed_service.make_key("generate", daily_images=1)) as client:
        job_id = draw(client).json()["id"]
        assert client.post(f"/jobs/{job_id}/retry").status_code == 429


def test_budget_of_a_job_that_was_cancelled_is_free_again(keyed_service: KeyedService) -> None:
    with keyed_service.as_key(keyed_service.make_key("generate", daily_images=1)) as client:
        job_id = client.post("/jobs", json={**SMALL, "prompt": "hold budget"}).json()["id"]
        assert client.post("/jobs", json=SMALL).status_code == 429
        client.post(f"/jobs/{job_id}/cancel")
        assert client.post("/jobs", json=SMALL).status_code == 202
