"""What is decided before a route sees a request: hosts, origins, keys, headers."""

from __future__ import annotations

import base64
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from api.middleware import SECURITY_HEADERS
from tests.service import ENGINE_MAIN, START_SECONDS, RunningService

KEY = "a-key-of-this-service-0123456789"
OTHER_KEY = "another-key-of-it-0123456789"
JSON = {"Content-Type": "application/json"}
PAGE = "http://127.0.0.1:9000"
BODY = json.dumps({"prompt": "a", "width": 128, "height": 128}).encode()

GOOD_HOSTS = ["127.0.0.1", "127.0.0.1:{port}", "localhost:{port}", "LocalHost", "[::1]:{port}", "127.0.0.53"]  # fmt: skip
BAD_HOSTS = [
    "evil.example",
    "evil.example:{port}",
    "127.0.0.1.evil.example",
    "127.evil.example",
    "localhost.evil.example",
    "evil.example:80@127.0.0.1",
    "user@127.0.0.1",
    "127.0.0.1/?x=",
    "127.0.0.1#a",
    "127.0.0.1, evil.example",
    "127.0.0.1:evil",
    "127.0.0.1:99999",
    "169.254.169.254",
    "0.0.0.0",
    "[::]",
    "",
    ":{port}",
    "a" * 5000,
]
BAD_ORIGINS = [
    "http://evil.example",
    "https://127.0.0.1:9000",
    "http://127.0.0.1:9000.evil.example",
    "http://127.0.0.1:9001",
    "http://127.0.0.1",
    "HTTP://127.0.0.1:9000",
    "http://127.0.0.1:9000/",
    "file://",
    "null",
    "",
    "chrome-extension://abc",
    "http://a@127.0.0.1:9000",
]


def exchange(service: RunningService, request: bytes, *, closes: bool = True) -> tuple[int, bytes]:
    """Bytes as they are over a connection of their own; returns status and answer."""
    with socket.create_connection(("127.0.0.1", service.port), timeout=60) as connection:
        connection.sendall(request)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
            if not closes and b"\r\n\r\n" in answer:
                break
    return int(answer.split(b" ", 2)[1]), answer


def jobs(service: RunningService, **headers: str) -> int:
    stats = service.client.get("/queue-stats", headers=headers).json()
    return sum(stats[name] for name in ("queued", "running", "succeeded", "failed", "cancelled"))


# Host


@pytest.mark.parametrize("host", GOOD_HOSTS)
def test_host_of_this_machine_is_answered(engine_service: RunningService, host: str) -> None:
    host = host.format(port=engine_service.port)
    assert engine_service.client.get("/health", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", BAD_HOSTS, ids=lambda host: host[:30])
def test_host_foreign_or_odd_is_refused(engine_service: RunningService, host: str) -> None:
    host = host.format(port=engine_service.port)
    request = f"GET /health HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    status, answer = exchange(engine_service, request.encode())
    assert status in (400, 403)
    assert len(answer) < 2000


@pytest.mark.parametrize("host", BAD_HOSTS[:8], ids=lambda host: host[:30])
def test_host_foreign_on_post_changes_nothing(engine_service: RunningService, host: str) -> None:
    before = jobs(engine_service)
    host = host.format(port=engine_service.port)
    answer = engine_service.client.post("/jobs", content=BODY, headers={**JSON, "Host": host})
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    assert answer.headers["content-type"] == "application/problem+json"
    assert jobs(engine_service) == before


def test_host_foreign_with_its_own_origin_is_refused(engine_service: RunningService) -> None:
    """DNS rebinding: the page of a name that is made to mean this machine."""
    name = f"127.evil.example:{engine_service.port}"
    answer = engine_service.client.post(
        "/jobs", content=BODY, headers={**JSON, "Host": name, "Origin": f"http://{name}"}
    )
    assert answer.status_code == 403


@pytest.mark.parametrize(
    "hosts", [[], ["127.0.0.1", "evil.example"], ["127.0.0.1", "127.0.0.1"]], ids=str
)
def test_host_absent_or_twice_is_refused(engine_service: RunningService, hosts: list[str]) -> None:
    lines = "".join(f"Host: {host}\r\n" for host in hosts)
    request = f"GET /health HTTP/1.1\r\n{lines}Connection: close\r\n\r\n"
    assert exchange(engine_service, request.encode())[0] in (400, 403)


def test_host_absent_in_http_1_0_is_refused(engine_service: RunningService) -> None:
    assert exchange(engine_service, b"GET /health HTTP/1.0\r\n\r\n")[0] in (400, 403)


def test_host_in_the_request_line_does_not_count(engine_service: RunningService) -> None:
    request = (
        b"GET http://127.0.0.1/health HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n"
    )
    assert exchange(engine_service, request)[0] in (400, 403, 404)


# Origin


@pytest.mark.parametrize("origin", BAD_ORIGINS)
def test_origin_foreign_on_post_changes_nothing(
    engine_service: RunningService, origin: str
) -> None:
    before = jobs(engine_service)
    for path in ("/jobs", "/generate"):
        answer = engine_service.client.post(path, content=BODY, headers={**JSON, "Origin": origin})
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
        assert "access-control-allow-origin" not in answer.headers
    assert jobs(engine_service) == before


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
def test_origin_foreign_with_any_changing_method_is_refused(
    engine_service: RunningService, method: str
) -> None:
    answer = engine_service.client.request(
        method, "/images/x", headers={"Origin": "http://evil.example"}
    )
    assert answer.status_code == 403


def test_origin_foreign_on_get_has_no_cors_headers(engine_service: RunningService) -> None:
    answer = engine_service.client.get("/info", headers={"Origin": "http://evil.example"})
    assert not [name for name in answer.headers if name.startswith("access-control-allow-origin")]


def test_origin_of_the_service_itself_is_taken(engine_service: RunningService) -> None:
    answer = engine_service.client.post(
        "/generate", content=BODY, headers={**JSON, "Origin": engine_service.url}
    )
    assert answer.status_code == 200


@pytest.mark.parametrize("origin", [PAGE, "http://localhost:9000"])
def test_origin_of_the_page_is_taken_with_cors_headers(
    engine_service: RunningService, origin: str
) -> None:
    answer = engine_service.client.post(
        "/generate?format=raw", content=BODY, headers={**JSON, "Origin": origin}
    )
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == origin
    assert "origin" in answer.headers["vary"].lower()
    exposed = answer.headers["access-control-expose-headers"].lower()
    assert all(name in exposed for name in ("x-job-id", "x-seed", "x-request-id", "retry-after"))


def test_origin_of_the_page_may_read_an_error(engine_service: RunningService) -> None:
    answer = engine_service.client.post(
        "/generate", content=b"{}", headers={**JSON, "Origin": PAGE}
    )
    assert answer.status_code == 400
    assert answer.headers["access-control-allow-origin"] == PAGE


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_preflight_of_the_page_is_granted(engine_service: RunningService, method: str) -> None:
    answer = engine_service.client.options(
        "/images/x",
        headers={
            "Origin": PAGE,
            "Access-Control-Request-Method": method,
            "Access-Control-Request-Headers": "content-type, x-api-key, idempotency-key",
        },
    )
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == PAGE
    assert method in answer.headers["access-control-allow-methods"]
    allowed = answer.headers["access-control-allow-headers"].lower()
    assert all(name in allowed for name in ("content-type", "x-api-key", "idempotency-key"))


@pytest.mark.parametrize("origin", ["http://evil.example", "null"])
def test_preflight_of_others_is_not_granted(engine_service: RunningService, origin: str) -> None:
    answer = engine_service.client.options(
        "/generate", headers={"Origin": origin, "Access-Control-Request-Method": "POST"}
    )
    assert "access-control-allow-origin" not in answer.headers
    assert answer.status_code >= 400


# Names the operator gives


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    """A service with two keys, on every address, under a name and for a page of its own."""
    running = RunningService(
        tmp_path_factory.mktemp("keyed"),
        main=ENGINE_MAIN,
        TEST_ENGINE="scripted",
        FLUX_API_KEYS=f"{KEY},{OTHER_KEY}",
        FLUX_HOST="0.0.0.0",
        FLUX_ALLOWED_HOSTS="Draw.Example",
        FLUX_PAGE_ORIGINS="http://page.example",
    ).start()
    yield running
    running.close()


@pytest.mark.parametrize("host", ["draw.example", "DRAW.example:8001", "127.0.0.1"])
def test_host_that_the_operator_allowed_is_answered(keyed: RunningService, host: str) -> None:
    """Names of hosts have no case, in the header or in the setting."""
    answer = keyed.client.get("/info", headers={"X-API-Key": KEY, "Host": host})
    assert answer.status_code == 200


def test_host_that_the_operator_did_not_allow_is_refused(keyed: RunningService) -> None:
    answer = keyed.client.get("/info", headers={"X-API-Key": KEY, "Host": "evil.example"})
    assert answer.status_code == 403


def test_origin_that_the_operator_allowed_is_taken(keyed: RunningService) -> None:
    headers = {"X-API-Key": KEY, "Origin": "http://page.example"}
    answer = keyed.client.get("/info", headers=headers)
    assert answer.headers["access-control-allow-origin"] == "http://page.example"


def test_origin_of_the_default_page_is_foreign_when_another_is_set(keyed: RunningService) -> None:
    answer = keyed.client.post("/jobs", headers={"X-API-Key": KEY, "Origin": PAGE})
    assert answer.status_code == 403


# Keys


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize("key", [KEY, OTHER_KEY])
@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("Authorization", "Bearer {key}"),
        ("Authorization", "bearer  {key}"),
        ("X-API-Key", "{key}"),
        ("x-key", "{key}"),
        ("Authorization", "basic"),
        ("Authorization", "basic with user"),
    ],
)
def test_key_right_in_any_place_is_taken(
    keyed: RunningService, header: str, value: str, key: str
) -> None:
    value = {"basic": basic(f":{key}"), "basic with user": basic(f"user:{key}")}.get(
        value, value.format(key=key)
    )
    assert keyed.client.get("/info", headers={header: value}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-API-Key": ""},
        {"X-API-Key": "wrong"},
        {"X-API-Key": KEY[:-1]},
        {"X-API-Key": KEY + "x"},
        {"X-API-Key": KEY.upper()},
        {"X-API-Key": f"{KEY},{OTHER_KEY}"},
        {"x-key": "wrong"},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer wrong"},
        {"Authorization": KEY},
        {"Authorization": f"Token {KEY}"},
        {"Authorization": f"Digest {KEY}"},
        {"Authorization": "Basic"},
        {"Authorization": "Basic !!!"},
        {"Authorization": "Basic " + base64.b64encode(b"\xff\xfe:\xff").decode()},
        {"Authorization": basic(f"{KEY}:")},
        {"Authorization": basic(KEY)},
        {"Cookie": f"key={KEY}"},
    ],
    ids=str,
)
def test_key_wrong_or_missing_is_401(keyed: RunningService, headers: dict[str, str]) -> None:
    answer = keyed.client.get("/info", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
    assert answer.headers["content-type"] == "application/problem+json"
    assert "WWW-Authenticate" in answer.headers
    assert KEY not in answer.text and OTHER_KEY not in answer.text


def test_key_in_the_query_is_no_key(keyed: RunningService) -> None:
    assert keyed.client.get(f"/info?key={KEY}&api_key={KEY}").status_code == 401


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/generate"), ("POST", "/jobs"), ("GET", "/jobs"), ("GET", "/images"),
        ("DELETE", "/images/x"), ("GET", "/queue"), ("GET", "/health"), ("GET", "/info"),
        ("GET", "/openapi.json"), ("GET", "/docs"), ("POST", "/unload-model"), ("GET", "/nothing"),
        ("GET", "/download/x"), ("HEAD", "/images"), ("GET", "/uix"), ("GET", "/health/live/"),
        ("GET", "//health/live"), ("GET", "/ui/../info"), ("GET", "/ui/%2e%2e/info"),
        ("GET", "/health/live%2f..%2f..%2finfo"), ("PUT", "/loras/x"), ("GET", "/INFO"),
    ],
)  # fmt: skip
def test_key_is_needed_everywhere_else(keyed: RunningService, method: str, path: str) -> None:
    request = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
    status, answer = exchange(keyed, request.encode())
    opened = path.startswith("/ui/")  # the page's own files, of which there is none by that name
    assert status == (404 if opened else 401), answer


@pytest.mark.parametrize("path", ["/health/live", "/health/ready", "/ui/"])
def test_key_is_not_needed_for_a_pulse_and_the_page(keyed: RunningService, path: str) -> None:
    assert keyed.client.get(path).status_code == 200


def test_key_is_not_needed_for_a_preflight(keyed: RunningService) -> None:
    headers = {"Origin": "http://page.example", "Access-Control-Request-Method": "POST"}
    assert keyed.client.options("/generate", headers=headers).status_code == 200


@pytest.mark.parametrize("length", ["Content-Length: 10000000", "Transfer-Encoding: chunked"])
def test_key_missing_is_answered_before_the_body_is_sent(
    keyed: RunningService, length: str
) -> None:
    head = (
        f"POST /generate HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"{length}\r\n\r\n"
    )
    assert exchange(keyed, head.encode(), closes=False)[0] == 401


def test_body_too_long_by_its_header_is_answered_before_it_is_sent(
    engine_service: RunningService,
) -> None:
    head = (
        b"POST /generate HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        b"Content-Length: 10000000000\r\n\r\n"
    )
    assert exchange(engine_service, head, closes=False)[0] == 413


def test_key_missing_does_no_work(keyed: RunningService) -> None:
    before = jobs(keyed, **{"X-API-Key": KEY})
    assert keyed.client.post("/jobs", content=BODY, headers=JSON).status_code == 401
    assert jobs(keyed, **{"X-API-Key": KEY}) == before


def logged(service: RunningService, word: str) -> list[str]:
    """The lines of the log with the word, as soon as there are any."""

    def found() -> list[str]:
        lines = service.log_path.read_text().splitlines()
        return [line for line in lines if word in line]

    service.wait_until(found)
    return found()


def test_key_is_in_no_log_line(keyed: RunningService) -> None:
    wrong = "wrong-key-0123456789"
    for key in (KEY, wrong):
        keyed.client.get("/images/logged-with-a-key", headers={"X-API-Key": key})
    keyed.wait_until(lambda: len(logged(keyed, "logged-with-a-key")) == 2)
    log = keyed.log_path.read_text()
    assert KEY not in log and wrong not in log


def test_key_is_hidden_from_the_worker(keyed: RunningService) -> None:
    keyed.client.headers["X-API-Key"] = KEY
    keyed.wait_for_workers()
    (worker,) = keyed.workers()
    del keyed.client.headers["X-API-Key"]
    environ = Path(f"/proc/{worker['pid']}/environ").read_bytes()
    command = Path(f"/proc/{worker['pid']}/cmdline").read_bytes()
    assert b"PATH=" in environ
    assert KEY.encode() not in environ + command


# Headers of every answer


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/health"), ("GET", "/nothing"), ("DELETE", "/generate"), ("POST", "/generate"),
        ("GET", "/loras"), ("GET", "/ui/"), ("GET", "/docs"),
    ],
)  # fmt: skip
def test_answer_has_an_id_and_the_security_headers(
    engine_service: RunningService, method: str, path: str
) -> None:
    answer = engine_service.client.request(method, path)
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert {name.decode() for name, _ in SECURITY_HEADERS} <= set(answer.headers)
    assert answer.headers["X-Request-Id"]


def test_answer_ids_differ(engine_service: RunningService) -> None:
    ids = {engine_service.client.get("/health/live").headers["X-Request-Id"] for _ in range(20)}
    assert len(ids) == 20


def test_answer_of_a_refused_host_has_the_headers(engine_service: RunningService) -> None:
    answer = engine_service.client.get("/health", headers={"Host": "evil.example"})
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.json()["request_id"] == answer.headers["X-Request-Id"]


def test_answer_does_not_name_the_server(engine_service: RunningService) -> None:
    assert "server" not in engine_service.client.get("/health").headers


def test_log_line_cannot_be_forged_by_a_path(engine_service: RunningService) -> None:
    engine_service.client.get("/x%0A2026-01-01%20INFO%20forged%20action=forged")
    lines = logged(engine_service, "forged")
    assert not [line for line in lines if line.startswith("2026-01-01")]


@pytest.mark.parametrize(
    "request_line",
    [b"GARBAGE", b"\x16\x03\x01\x02\x00", b"GET /\x00 HTTP/1.1"],
)
def test_bytes_that_are_no_http_are_400(
    engine_service: RunningService, request_line: bytes
) -> None:
    assert exchange(engine_service, request_line + b"\r\n\r\n")[0] == 400


def test_client_of_an_idle_connection_does_not_stop_others(engine_service: RunningService) -> None:
    with socket.create_connection(("127.0.0.1", engine_service.port)) as idle:
        idle.sendall(b"POST /generate HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n\r\n")
        answer = httpx2.get(f"{engine_service.url}/health", timeout=START_SECONDS)
    assert answer.status_code == 200
