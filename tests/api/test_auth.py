"""Who may do what: scopes of routes, rates of keys, and whose jobs and pictures a key sees."""

from __future__ import annotations

from collections.abc import Iterator

import httpx2
import pytest

from api.auth import Rates, is_open, scope_of
from api.server import build_app
from tests.service import KeyedService
from utils.keys import Key, Limits, Scope

SMALL = {"prompt": "a", "width": 128, "height": 128}


@pytest.fixture(scope="module")
def key(keyed_service: KeyedService) -> str:
    return keyed_service.make_key("generate")


@pytest.fixture
def client(keyed_service: KeyedService, key: str) -> Iterator[httpx2.Client]:
    with keyed_service.as_key(key) as client:
        yield client


@pytest.fixture
def other(keyed_service: KeyedService) -> Iterator[httpx2.Client]:
    with keyed_service.as_key(keyed_service.make_key("generate")) as client:
        yield client


# Scopes


@pytest.mark.parametrize(
    ("method", "path", "scope"),
    [
        ("POST", "/generate", Scope.GENERATE), ("POST", "/jobs", Scope.GENERATE),
        ("POST", "/jobs/x/cancel", Scope.GENERATE), ("DELETE", "/images/x", Scope.GENERATE),
        ("POST", "/v1/images/generations", Scope.GENERATE), ("POST", "/nothing", Scope.GENERATE),
        ("GET", "/jobs", None), ("HEAD", "/images", None), ("GET", "/nothing", None),
        ("POST", "/images/inspect", None), ("GET", "/usage", None), ("GET", "/loras", None),
        ("GET", "/loras/x", None), ("PUT", "/loras/x", Scope.LORAS), ("POST", "/loras", Scope.LORAS),
        ("DELETE", "/loras/x", Scope.LORAS), ("PATCH", "/loras/x", Scope.LORAS),
        ("POST", "/upload-lora", Scope.LORAS), ("POST", "/apply-lora", Scope.LORAS),
        ("POST", "/remove-lora", Scope.LORAS),
        ("POST", "/queue/pause", Scope.ADMIN), ("POST", "/queue/clear", Scope.ADMIN),
        ("POST", "/load-model", Scope.ADMIN), ("POST", "/unload-model", Scope.ADMIN),
        ("GET", "/admin/keys", Scope.ADMIN), ("HEAD", "/admin/keys", Scope.ADMIN),
        ("DELETE", "/admin/keys/x", Scope.ADMIN), ("GET", "/metrics", Scope.ADMIN),
    ],
)  # fmt: skip
def test_scope_of_a_route(method: str, path: str, scope: Scope | None) -> None:
    assert scope_of(method, path) is scope


def test_scope_is_told_for_every_route_there_is(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new route is `generate` where it changes something; whoever adds one for the machine sees this list."""
    monkeypatch.setenv("FLUX_DATA_DIR", str(tmp_path))
    paths = build_app("bf16").openapi()["paths"]
    admin = {
        (method.upper(), path)
        for path, operations in paths.items()
        for method in operations
        if scope_of(method.upper(), path) is Scope.ADMIN
    }
    assert {
        ("GET", "/admin/keys"), ("POST", "/admin/keys"), ("DELETE", "/admin/keys/{key_id}"),
        ("POST", "/queue/pause"), ("POST", "/queue/resume"), ("POST", "/queue/clear"),
        ("POST", "/load-model"), ("POST", "/unload-model"),
    } <= admin  # fmt: skip


@pytest.mark.parametrize(
    ("scopes", "method", "path", "status"),
    [
        (("generate",), "POST", "/queue/pause", 403),
        (("generate",), "GET", "/admin/keys", 403),
        (("generate",), "POST", "/apply-lora", 403),
        (("generate",), "PUT", "/loras/x.safetensors", 403),
        (("generate",), "POST", "/unload-model", 403),
        (("loras",), "POST", "/generate", 403),
        (("loras",), "POST", "/jobs", 403),
        (("loras",), "POST", "/submit-request", 403),
        (("loras",), "POST", "/admin/keys", 403),
        (("loras",), "GET", "/loras", 200),
        (("loras",), "POST", "/remove-lora", 200),
        (("generate", "loras"), "GET", "/queue", 200),
        (("admin",), "GET", "/admin/keys", 200),
    ],
)
def test_key_without_the_scope_is_403(
    keyed_service: KeyedService, scopes: tuple[str, ...], method: str, path: str, status: int
) -> None:
    with keyed_service.as_key(keyed_service.make_key(*scopes)) as client:
        answer = client.request(method, path)
    assert answer.status_code == status, answer.text
    if status == 403:
        assert answer.json()["code"] == "forbidden"
        assert "scope" in answer.json()["detail"]


def test_key_without_the_scope_is_told_before_the_body(keyed_service: KeyedService) -> None:
    with keyed_service.as_key(keyed_service.make_key("generate")) as client:
        answer = client.put("/loras/x.safetensors", content=b"x" * 2**20)
    assert answer.status_code == 403


@pytest.mark.parametrize("path", ["/admin/keys", "/admin/keys/", "/admin//keys", "//admin/keys"])
def test_scope_is_not_escaped_by_another_form_of_a_path(client: httpx2.Client, path: str) -> None:
    answer = client.get(path, follow_redirects=True)
    assert answer.status_code in (403, 404)
    assert "keys" not in answer.json()


# Keys in the URL


@pytest.mark.parametrize("name", ["key", "api_key", "api-key", "X-API-Key", "access_token", "x"])
def test_key_in_the_url_is_refused_even_beside_a_good_one(
    client: httpx2.Client, key: str, name: str
) -> None:
    answer = client.get("/jobs", params={name: key})
    assert answer.status_code == 401
    assert "URL" in answer.json()["detail"] and key not in answer.text


def test_key_in_the_url_is_in_no_log(
    keyed_service: KeyedService, client: httpx2.Client, key: str
) -> None:
    answer = client.get("/jobs/in-no-log", params={"key": key})
    keyed_service.wait_until(lambda: answer.json()["request_id"] in keyed_service.log())
    assert key not in keyed_service.log_path.read_text()


def test_query_of_very_many_parameters_is_refused(client: httpx2.Client) -> None:
    answer = client.get("/jobs?" + "&".join(f"a{n}=1" for n in range(2000)))
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")


# Rates


def test_rate_lets_a_minutes_requests_through_and_then_as_they_come_in_again() -> None:
    now = [100.0]
    rates = Rates(lambda: now[0])
    key = Key(
        id="a",
        digest=b"",
        shown="",
        name="",
        scopes=frozenset(),
        limits=Limits(requests_per_minute=6),
    )
    assert [rates.take(key) for _ in range(6)] == [0] * 6
    assert rates.take(key) == 10
    now[0] += 9
    assert rates.take(key) == 1
    now[0] += 1
    assert rates.take(key) == 0
    now[0] += 3600
    assert [rates.take(key) for _ in range(7)] == [0] * 6 + [
        10
    ], "no more is saved up than a minute's"


def test_rate_of_one_key_is_not_anothers() -> None:
    rates = Rates(lambda: 0.0)
    one, two = (
        Key(
            id=name,
            digest=b"",
            shown="",
            name="",
            scopes=frozenset(),
            limits=Limits(requests_per_minute=1),
        )
        for name in "ab"
    )
    assert (rates.take(one), rates.take(two)) == (0, 0)
    assert rates.take(one) == 60


def test_key_over_its_rate_is_429_with_retry_after(keyed_service: KeyedService) -> None:
    with keyed_service.as_key(keyed_service.make_key(requests_per_minute=2)) as client:
        assert [client.get("/jobs").status_code for _ in range(2)] == [200, 200]
        answer = client.post("/jobs", content=b"x" * 100_000)
        assert (answer.status_code, answer.json()["code"]) == (429, "rate_limited")
        assert 1 <= int(answer.headers["Retry-After"]) <= 30
        assert client.get("/health/live").status_code == 200


# The life of a key


def test_key_of_the_admin_route_is_shown_once_and_works(keyed_service: KeyedService) -> None:
    made = keyed_service.client.post("/admin/keys", json={"name": "shown once"})
    assert made.status_code == 201 and made.headers["Cache-Control"] == "no-store"
    secret = made.json()["key"]
    listed = keyed_service.client.get("/admin/keys")
    assert secret not in listed.text
    (row,) = [each for each in listed.json()["keys"] if each["name"] == "shown once"]
    assert secret.startswith(row["prefix"]) and row["scopes"] == ["generate", "loras"]
    with keyed_service.as_key(secret) as client:
        assert client.get("/jobs").status_code == 200


def test_keys_are_listed_in_pages(keyed_service: KeyedService) -> None:
    for _ in range(2):
        keyed_service.make_key("loras")
    every = keyed_service.client.get("/admin/keys").json()["keys"]
    page = keyed_service.client.get("/admin/keys?limit=2&offset=1").json()
    assert page["keys"] == every[1:3] and (page["limit"], page["offset"]) == (2, 1)
    assert keyed_service.client.get("/admin/keys?limit=501").status_code == 400


def test_key_revoked_is_401_at_once(keyed_service: KeyedService) -> None:
    made = keyed_service.client.post("/admin/keys", json={"name": "to end"}).json()
    with keyed_service.as_key(made["key"]) as client:
        assert client.get("/jobs").status_code == 200
        path = f"/admin/keys/{made['id']}"
        assert keyed_service.client.delete(path).status_code == 204
        assert client.get("/jobs").status_code == 401
    assert keyed_service.client.delete(path).status_code == 204, "once more is the same"


def test_key_that_is_not_there_is_404(keyed_service: KeyedService) -> None:
    assert keyed_service.client.delete("/admin/keys/nobody").status_code == 404


def test_key_of_the_settings_is_not_revoked(keyed_service: KeyedService) -> None:
    fixed = keyed_service.client.get("/admin/keys").json()["keys"][0]
    assert fixed["prefix"] is None
    answer = keyed_service.client.delete(f"/admin/keys/{fixed['id']}")
    assert answer.status_code == 400 and "FLUX_API_KEYS" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "name"), ({"name": ""}, "name"), ({"name": "a\nb"}, "name"), ({"name": 1}, "name"),
        ({"name": "a" * 65}, "name"), ({"name": "a", "scopes": []}, "scopes"),
        ({"name": "a", "scopes": ["root"]}, "scopes.0"), ({"name": "a", "scopes": "admin"}, "scopes"),
        ({"name": "a", "requests_per_minute": 0}, "requests_per_minute"),
        ({"name": "a", "requests_per_minute": 1.5}, "requests_per_minute"),
        ({"name": "a", "max_queued": -1}, "max_queued"), ({"name": "a", "daily_images": "3"}, "daily_images"),
        ({"name": "a", "daily_usd": -0.01}, "daily_usd"), ({"name": "a", "daily_usd": 1e300}, "daily_usd"),
        ({"name": "a", "expires_at": "2020-01-01T00:00:00Z"}, "expires_at"),
        ({"name": "a", "expires_at": 4102444800}, "expires_at"),
        ({"name": "a", "expires_at": "0001-01-01T00:00:00+14:00"}, "expires_at"),
        ({"name": "a", "key": "mine"}, "key"),
    ],
)  # fmt: skip
def test_key_body_with_a_fault_names_the_field_and_makes_none(
    keyed_service: KeyedService, body: dict, field: str
) -> None:
    before = len(keyed_service.client.get("/admin/keys").json()["keys"])
    answer = keyed_service.client.post("/admin/keys", json=body)
    assert answer.status_code == 400, answer.text
    assert [error["field"] for error in answer.json()["errors"]] == [field]
    assert len(keyed_service.client.get("/admin/keys").json()["keys"]) == before


# Whose


@pytest.fixture(scope="module")
def drawn(keyed_service: KeyedService, key: str) -> dict:
    """A finished job of `key`."""
    with keyed_service.as_key(key) as client:
        return client.post("/generate", json={**SMALL, "metadata": {"tags": ["mine"]}}).json()


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/jobs/{job}"), ("POST", "/jobs/{job}/cancel"), ("POST", "/jobs/{job}/retry"),
        ("GET", "/jobs/{job}/image"), ("GET", "/jobs/{job}/events"), ("GET", "/images/{image}"),
        ("GET", "/images/{image}/thumbnail"), ("DELETE", "/images/{image}"),
        ("GET", "/download/{file}"), ("GET", "/images?before={image}"),
        ("GET", "/request-status/{job}"), ("POST", "/cancel-request/{job}"),
        ("DELETE", "/cancel-request/{job}"), ("HEAD", "/images/{image}"),
    ],
)  # fmt: skip
def test_job_and_picture_of_another_key_is_404(
    keyed_service: KeyedService, other: httpx2.Client, drawn: dict, method: str, path: str
) -> None:
    path = path.format(job=drawn["id"], image=drawn["images"][0]["id"], file=drawn["filename"])
    answer = other.request(method, path)
    unknown = other.request(method, path.replace(drawn["id"], "0" * 26))
    assert answer.status_code == unknown.status_code == 404
    if method != "HEAD":
        assert answer.json()["code"] == "not_found"
        said, of_unknown = answer.json()["detail"], unknown.json()["detail"]
        assert said.replace(drawn["id"], "0" * 26) == of_unknown, "nobody learns that it is there"
    assert keyed_service.client.get(f"/images/{drawn['images'][0]['id']}").status_code == 200


def test_picture_of_another_key_is_no_input(other: httpx2.Client, drawn: dict) -> None:
    answer = other.post("/generate", json={**SMALL, "image": drawn["images"][0]["id"]})
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


def test_lists_hold_ones_own(other: httpx2.Client, client: httpx2.Client, drawn: dict) -> None:
    assert other.get("/jobs").json()["jobs"] == []
    assert other.get("/jobs?status=succeeded").json()["jobs"] == []
    assert other.get("/images").json()["images"] == []
    assert other.get("/images?q=a").json()["images"] == []
    assert drawn["id"] in [job["id"] for job in client.get("/jobs").json()["jobs"]]
    assert drawn["id"] in [job["id"] for job in client.get("/jobs?status=succeeded").json()["jobs"]]
    assert drawn["id"] in [image["job_id"] for image in client.get("/images").json()["images"]]


def test_admin_sees_everybodys(keyed_service: KeyedService, drawn: dict) -> None:
    assert keyed_service.job(drawn["id"])["status"] == "succeeded"
    assert drawn["id"] in [
        job["id"] for job in keyed_service.client.get("/jobs?limit=500").json()["jobs"]
    ]


def test_running_job_of_another_key_is_seen_nowhere(
    keyed_service: KeyedService, client: httpx2.Client, other: httpx2.Client
) -> None:
    job_id = client.post("/jobs", json={**SMALL, "prompt": "hold seen-nowhere"}).json()["id"]
    try:
        keyed_service.wait_until_at_work(job_id)
        for path in ("/queue", "/health", "/jobs", "/images", "/model-status", "/queue-stats"):
            assert job_id not in other.get(path).text, path
        assert job_id in client.get("/queue").json()["running"]
        assert job_id in keyed_service.client.get("/health").text
    finally:
        keyed_service.release("seen-nowhere")
        keyed_service.wait_for_job(job_id)


def events_until(client: httpx2.Client, last: str, **headers: str) -> str:
    """Everything that `/events` told until it told of `last`."""
    told = ""
    with client.stream("GET", "/events", headers=headers) as stream:
        for piece in stream.iter_text():
            told += piece
            if (
                f'"{last}"' in told
                and "event: succeeded" in told.split(f'"{last}"')[0][-200:] + told
            ):
                if told.count(f'"id":"{last}"'):
                    return told
    raise AssertionError(f"the stream ended: {told}")


def test_events_of_another_key_are_not_told(
    keyed_service: KeyedService, client: httpx2.Client, other: httpx2.Client
) -> None:
    """Nor when one comes back and asks for what it missed."""
    first_id = str(int(_first_event_id(other)) - 1)
    theirs = client.post("/jobs", json=SMALL).json()["id"]
    keyed_service.wait_for_job(theirs)
    mine = other.post("/jobs", json=SMALL).json()["id"]
    keyed_service.wait_for_job(mine)
    told = events_until(other, mine, **{"Last-Event-ID": first_id})
    assert theirs not in told and mine in told
    both = events_until(keyed_service.client, mine, **{"Last-Event-ID": first_id})
    assert theirs in both and mine in both


def _first_event_id(client: httpx2.Client) -> str:
    with client.stream("GET", "/events") as stream:
        told = ""
        for piece in stream.iter_text():
            told += piece
            for line in told.splitlines():
                if line.startswith("id: "):
                    return line.removeprefix("id: ")
    raise AssertionError(told)


@pytest.mark.parametrize("scope", ["generate", "admin"])
def test_events_end_with_the_key(keyed_service: KeyedService, scope: str) -> None:
    """Whoever listens already hears nothing more."""
    made = keyed_service.client.post(
        "/admin/keys", json={"name": f"listens {scope}", "scopes": [scope]}
    ).json()
    with keyed_service.as_key(made["key"]) as client, client.stream("GET", "/events") as stream:
        told = stream.iter_text()
        assert "event: queue" in next(told)
        keyed_service.client.delete(f"/admin/keys/{made['id']}")
        keyed_service.client.post("/queue/pause")  # something happens
        rest = "".join(told)
    keyed_service.client.post("/queue/resume")
    *_, last = rest.split("event: ")
    assert last.startswith("bye") and "key" in last
    assert '"paused":true' not in rest


def test_queue_share_of_a_key_is_its_own(keyed_service: KeyedService) -> None:
    keyed_service.client.post("/queue/pause")
    try:
        with keyed_service.as_key(keyed_service.make_key(max_queued=2)) as client:
            answers = [client.post("/jobs", json=SMALL) for _ in range(3)]
            assert [answer.status_code for answer in answers] == [202, 202, 429]
            assert answers[2].json()["code"] == "queue_full"
            assert "key's own limit" in answers[2].json()["detail"]
            assert int(answers[2].headers["Retry-After"]) >= 1
            client.post(f"/jobs/{answers[0].json()['id']}/cancel")
            assert client.post("/jobs", json=SMALL).status_code == 202
        assert keyed_service.client.post("/jobs", json=SMALL).status_code == 202
    finally:
        keyed_service.client.post("/queue/clear")
        keyed_service.client.post("/queue/resume")


# Where no key is asked for


def test_open_paths_are_open_and_no_more() -> None:
    for path in ("/", "/ui", "/ui/js/main.js", "/dashboard", "/health/live", "/health/ready"):
        assert is_open({"path": path, "method": "GET"})
    for path in (
        "/health",
        "/uix",
        "/jobs",
        "/health/live/x",
        "/dashboard/api/image-stats",
        "/Health/live",
        "/docs",
    ):
        assert not is_open({"path": path, "method": "GET"})
