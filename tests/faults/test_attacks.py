"""What a hostile page, client or network sends: nothing of it does anything, and all of it ends."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import time
from collections.abc import Iterator

import pytest

from api.server import build_app
from tests.service import KeyedService, RunningService

PATIENCE_SECONDS = 1.0  # also between a connection and its first request, on a machine that is busy
CLIENT_SECONDS = 60  # a limit, not a wait
BODY = b'{"prompt": "a", "width": 128, "height": 128}'
SIMPLE_FORMS = [  # what a page may send anywhere without asking first
    ("text/plain", BODY),
    ("application/x-www-form-urlencoded", b"prompt=a"),
    ("multipart/form-data; boundary=x", b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\na\r\n--x--\r\n'),
]  # fmt: skip
CHANGING = [
    ("POST", "/jobs"), ("POST", "/generate"), ("POST", "/submit-request"), ("POST", "/upload-lora"),
    ("POST", "/loras"), ("POST", "/queue/pause"), ("POST", "/queue/clear"), ("POST", "/unload-model"),
    ("POST", "/remove-lora"), ("POST", "/admin/keys"), ("POST", "/v1/images/generations"),
    ("POST", "/sdapi/v1/txt2img"), ("POST", "/api/txt2img"), ("POST", "/api/generate-image"),
]  # fmt: skip


@pytest.fixture(scope="module")
def hasty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeyedService]:
    """A service that asks for keys and has little patience."""
    running = KeyedService(
        tmp_path_factory.mktemp("hasty"), FLUX_UPLOAD_PATIENCE_SECONDS=str(PATIENCE_SECONDS)
    )
    running.start()
    yield running
    running.close()


@contextlib.contextmanager
def connected(service: RunningService) -> Iterator[socket.socket]:
    address = ("127.0.0.1", service.port)
    with socket.create_connection(address, timeout=CLIENT_SECONDS) as connection:
        yield connection


def sent(service: RunningService, request: bytes) -> bytes:
    """The whole answer to bytes as they are, of which the service may read no more than it refuses."""
    with connected(service) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(request)
        return rest_of(connection)


def rest_of(connection: socket.socket) -> bytes:
    answer = b""
    with contextlib.suppress(ConnectionError):
        while piece := connection.recv(65536):
            answer += piece
    return answer


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def state(service: RunningService) -> tuple[object, ...]:
    """What an attack would change."""
    stats = service.client.get("/queue-stats").json()
    return (
        [stats[name] for name in ("queued", "running", "succeeded", "failed", "cancelled")],
        service.client.get("/queue").json()["paused"],
        service.client.get("/loras").json(),
        service.client.get("/admin/keys").json(),
    )


# Pages


@pytest.mark.parametrize(("content_type", "body"), SIMPLE_FORMS, ids=["text", "form", "multipart"])
@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1.evil.example"])
def test_form_of_a_foreign_page_does_nothing(
    engine_service: RunningService, origin: str, content_type: str, body: bytes
) -> None:
    before = state(engine_service)
    headers = {"Origin": origin, "Content-Type": content_type}
    for method, path in CHANGING:
        answer = engine_service.client.request(method, path, content=body, headers=headers)
        assert answer.status_code == 403, path
        assert "access-control-allow-origin" not in answer.headers
    assert state(engine_service) == before


@pytest.mark.parametrize(("content_type", "body"), SIMPLE_FORMS, ids=["text", "form", "multipart"])
def test_form_of_another_site_without_an_origin_does_nothing(
    engine_service: RunningService, content_type: str, body: bytes
) -> None:
    """A browser that was told to leave the Origin out still says where a request comes from."""
    before = state(engine_service)
    headers = {"Sec-Fetch-Site": "cross-site", "Content-Type": content_type}
    for method, path in CHANGING:
        answer = engine_service.client.request(method, path, content=body, headers=headers)
        assert answer.status_code == 403, path
    assert state(engine_service) == before


def test_text_that_looks_like_json_is_no_body(engine_service: RunningService) -> None:
    """So that a form with the right Origin but no preflight does not pass for a program."""
    before = state(engine_service)
    for path in ("/jobs", "/generate", "/submit-request"):
        answer = engine_service.client.post(
            path, content=BODY, headers={"Content-Type": "text/plain"}
        )
        assert answer.status_code in (400, 415), path
    assert state(engine_service) == before


def test_rebinding_with_every_route_is_refused(engine_service: RunningService) -> None:
    """A name of the attacker's that is made to mean this machine: its Origin and Host agree."""
    host = f"rebound.example:{engine_service.port}"
    headers = {"Host": host, "Origin": f"http://{host}"}
    for method, path in [
        *CHANGING,
        ("GET", "/jobs"),
        ("GET", "/images"),
        ("GET", "/ui/"),
        ("GET", "/"),
    ]:
        answer = engine_service.client.request(method, path, headers=headers)
        assert answer.status_code == 403, path


@pytest.mark.parametrize(
    "origins", [["http://evil.example"] * 2, ["{ours}", "http://evil.example"]]
)
def test_origin_twice_is_refused(engine_service: RunningService, origins: list[str]) -> None:
    lines = "".join(f"Origin: {origin.format(ours=engine_service.url)}\r\n" for origin in origins)
    head = f"POST /queue/resume HTTP/1.1\r\nHost: 127.0.0.1\r\n{lines}Content-Length: 0\r\nConnection: close\r\n\r\n"
    assert status_of(sent(engine_service, head.encode())) == 403


def test_cors_never_answers_with_a_star_or_credentials(engine_service: RunningService) -> None:
    for origin in ("http://127.0.0.1:9000", "http://evil.example", "null", "*"):
        answer = engine_service.client.get("/info", headers={"Origin": origin})
        assert answer.headers.get("access-control-allow-origin") in (None, "http://127.0.0.1:9000")
        assert "access-control-allow-credentials" not in answer.headers


WEBSOCKET = (
    "GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{more}\r\n"
)


@pytest.mark.parametrize(
    ("host", "more"),
    [
        ("evil.example", ""),
        ("127.0.0.1", "Origin: http://evil.example\r\n"),
        ("127.0.0.1", "Origin: null\r\n"),
    ],
)
def test_websocket_of_a_foreign_page_is_refused(
    engine_service: RunningService, host: str, more: str
) -> None:
    """Browsers let any page open one, and let it read."""
    request = WEBSOCKET.format(path="/ws", host=host, more=more)
    assert status_of(sent(engine_service, request.encode())) == 403


def test_websocket_without_a_key_is_refused(keyed_service: KeyedService) -> None:
    request = WEBSOCKET.format(path="/ws", host="127.0.0.1", more="")
    answer = sent(keyed_service, request.encode())
    assert status_of(answer) in (401, 403) and b"101 " not in answer


# Paths


TRICKS = [
    "..", "../..", "..%2f..%2fetc%2fpasswd", "%2e%2e%2f%2e%2e%2fetc%2fpasswd", "%252e%252e%252fetc", "..%5c..%5cwin.ini",
    "%2fetc%2fpasswd", "file:%2f%2f%2fetc%2fpasswd", "%00", "a%00.png", "%0d%0aSet-Cookie:%20a=b", "a" * 5000, "%ff%fe",
    "%e2%80%ae", "%f0%9f%8e%88", "con", ".", "%20", "~root", "-rf", "*", "%25", "a;b", "..;", "%c0%ae%c0%ae%c0%af", "0'--",
]  # fmt: skip


@pytest.fixture(scope="module")
def named_paths(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, str]]:
    """Every route with names in its path: method, and the path with `{}` in the place of each of them in turn."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLUX_DATA_DIR", str(tmp_path_factory.mktemp("routes")))
        document = build_app("bf16").openapi()
    found = []
    for path, methods in document["paths"].items():
        for name in re.finditer(r"{[^}]*}", path):
            before, after = (re.sub(r"{[^}]*}", "x", part) for part in _around(path, name))
            if not path.endswith("/events"):
                found += [(method.upper(), f"{before}{{}}{after}") for method in methods]
    assert len(found) > 25
    return [*found, ("GET", "/ui/{}")]


def _around(text: str, found: re.Match[str]) -> tuple[str, str]:
    return text[: found.start()], text[found.end() :]


@pytest.mark.parametrize("trick", TRICKS, ids=lambda trick: trick[:24])
def test_path_trick_in_every_name_finds_nothing(
    engine_service: RunningService, named_paths: list[tuple[str, str]], trick: str
) -> None:
    for method, path in named_paths:
        request = (
            f"{method} {path.format(trick)} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 2\r\n"
            "Content-Type: application/json\r\nConnection: close\r\n\r\n{}"
        )
        answer = sent(engine_service, request.encode())
        head, _, content = answer.partition(b"\r\n\r\n")
        # 200 and 307 are the page itself and the list that a path of dots leads back to; ComfyUI's
        # answer to an unknown name is an empty object.
        is_nothing = trick in (".", "..") or (
            answer.startswith(b"HTTP/1.1 200") and content == b"{}"
        )
        assert 300 <= status_of(answer) < 500 or is_nothing, (method, path, answer[:200])
        assert b"root:" not in content and b"set-cookie" not in head.lower()
        assert len(answer) < 20_000 or path == "/ui/{}"


@pytest.fixture
def stray_files(engine_service: RunningService) -> Iterator[None]:
    """Files that no row knows, in the folder of pictures and above it."""
    paths = [
        engine_service.output_dir / "secret.png",
        engine_service.output_dir.parent / "outside.png",
    ]
    for path in paths:
        path.write_bytes(b"secret")
    yield
    for path in paths:
        path.unlink()


@pytest.mark.parametrize("route", ["/download/", "/images/"])
@pytest.mark.parametrize(
    "name",
    ["secret.png", "../outside.png", "..%2foutside.png", ".staging", ".thumbnails/secret.jpg"],
)
@pytest.mark.usefixtures("stray_files")
def test_file_beside_the_pictures_is_not_given_out(
    engine_service: RunningService, route: str, name: str
) -> None:
    answer = engine_service.client.get(route + name)
    assert answer.status_code == 404
    assert b"secret" not in answer.content.replace(name.encode(), b"")


# Bodies and heads


@pytest.mark.parametrize(
    "path", ["/generate", "/jobs", "/loras", "/upload-image-generate", "/v1/images/edits"]
)
def test_body_without_a_key_is_not_waited_for(keyed_service: KeyedService, path: str) -> None:
    """401 while the rest of a huge body has not been sent."""
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 2000000\r\nContent-Type: application/json\r\n\r\n"
    with connected(keyed_service) as connection:
        connection.sendall(head.encode() + b"{")
        assert connection.recv(65536).startswith(b"HTTP/1.1 401 ")


def test_body_that_goes_on_after_a_refusal_is_ended(hasty: KeyedService) -> None:
    head = b"POST /generate HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 2000000\r\n\r\n"
    with connected(hasty) as connection:
        connection.sendall(head)
        assert connection.recv(65536).startswith(b"HTTP/1.1 401 ")
        assert drips_until_closed(connection) < 30 * PATIENCE_SECONDS


@pytest.mark.parametrize(
    "path", ["/generate", "/jobs", "/admin/keys", "/images/inspect", "/v1/images/generations"]
)
def test_body_that_drips_is_ended_with_408(hasty: KeyedService, path: str) -> None:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nX-API-Key: {hasty.key}\r\nContent-Length: 20000\r\n"
        f"Content-Type: {'multipart/form-data; boundary=x' if 'inspect' in path else 'application/json'}\r\n\r\n"
    )
    start = b"--x\r\n" if "inspect" in path else b""
    with connected(hasty) as connection:
        connection.sendall(head.encode() + start)
        drips_until_closed(connection, until_answer=True)
        assert connection.recv(65536).startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize(
    "start", [b"", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX-a: "]
)
def test_head_that_drips_is_ended(hasty: KeyedService, start: bytes) -> None:
    with connected(hasty) as connection:
        connection.sendall(start)
        assert drips_until_closed(connection) < 30 * PATIENCE_SECONDS
    assert hasty.client.get("/health/live").status_code == 200


def test_head_that_drips_on_a_used_connection_is_ended(hasty: KeyedService) -> None:
    with connected(hasty) as connection:
        connection.sendall(b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        assert drips_until_closed(connection) < 30 * PATIENCE_SECONDS


def test_connection_that_asks_now_and_then_is_kept(hasty: KeyedService) -> None:
    """Longer than the patience for one request."""
    connection = http.client.HTTPConnection("127.0.0.1", hasty.port, timeout=CLIENT_SECONDS)
    connection.connect()
    first = connection.sock.getsockname()
    for _ in range(4):
        connection.request("GET", "/health/live")
        assert connection.getresponse().read()
        time.sleep(PATIENCE_SECONDS / 2)
    assert connection.sock.getsockname() == first
    connection.close()


def drips_until_closed(connection: socket.socket, *, until_answer: bool = False) -> float:
    """Seconds that the other side listened to a byte now and then."""
    started = time.monotonic()
    connection.settimeout(0.05)
    while time.monotonic() - started < CLIENT_SECONDS:
        try:
            connection.sendall(b"a")
            if connection.recv(1, socket.MSG_PEEK) == b"" or until_answer:
                connection.settimeout(CLIENT_SECONDS)
                return time.monotonic() - started
        except TimeoutError:
            continue
        except ConnectionError:
            return time.monotonic() - started
    raise AssertionError("the connection was held open")


@pytest.mark.parametrize(
    "lines",
    [
        "Content-Length: 5\r\nContent-Length: 44\r\n",
        "Content-Length: 5, 44\r\n",
        "Content-Length: -1\r\n",
        "Content-Length: 0x2c\r\n",
        "Content-Length: 44\r\nTransfer-Encoding: gzip, chunked\r\n",
        "Transfer-Encoding: chunked, identity\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Transfer-Encoding : chunked\r\n",
        " Content-Length: 44\r\n",
        "X: a\nContent-Length: 44\r\n",
    ],
    ids=lambda lines: lines.strip()[:40],
)
def test_request_of_unclear_length_is_refused_and_nothing_behind_it_read(
    engine_service: RunningService, lines: str
) -> None:
    before = state(engine_service)
    hidden = "POST /queue/pause HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\n\r\n"
    request = (
        f"POST /jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n{lines}\r\n"
    )
    answer = sent(engine_service, request.encode() + BODY[:5] + hidden.encode())
    assert {int(status) for status in re.findall(rb"HTTP/1.1 (\d+) ", answer)} <= {400, 501}
    assert b"HTTP/1.1 " in answer
    assert state(engine_service) == before


def test_chunks_beside_a_length_end_the_connection(engine_service: RunningService) -> None:
    """Length and chunks at once are how one request is hidden in another."""
    before = state(engine_service)
    hidden = "POST /queue/pause HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\n\r\n"
    request = (
        "POST /jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {5 + len(hidden)}\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    )
    answer = sent(engine_service, request.encode() + hidden.encode())
    assert status_of(answer) == 400 and answer.count(b"HTTP/1.1 ") == 1
    assert state(engine_service) == before


@pytest.mark.parametrize(
    "request_",
    [
        b"GARBAGE\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: a\x00b\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"a" * 300 + b"\r\n\r\n",
        b"POST /generate HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_what_is_no_http_is_answered_like_every_wrong_request(
    engine_service: RunningService, request_: bytes
) -> None:
    told = len(engine_service.log_path.read_text())
    answer = sent(engine_service, request_)
    head, _, content = answer.lower().partition(b"\r\n\r\n")
    assert status_of(answer) == 400
    for name in (b"x-request-id: ", b"x-content-type-options: nosniff", b"connection: close"):
        assert name in head
    assert json.loads(content)["code"] == "invalid_request"
    assert "Traceback" not in engine_service.log_path.read_text()[told:]


@pytest.mark.parametrize(
    "head",
    [
        b"".join(b"X-%d: a\r\n" % number for number in range(20_000)),
        b"X-A: " + b"a" * 200_000 + b"\r\n",
        b"Cookie: " + b"a=b; " * 40_000 + b"\r\n",
    ],
    ids=["many", "long", "cookie"],
)
def test_head_that_is_too_large_is_refused(engine_service: RunningService, head: bytes) -> None:
    request = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n" + head + b"\r\n"
    answer = sent(engine_service, request)
    assert answer == b"" or status_of(answer) in (400, 431)
    assert engine_service.client.get("/health/live").status_code == 200


def test_line_end_in_a_name_comes_back_in_no_header(engine_service: RunningService) -> None:
    for path in (
        "/download/a%0d%0aX-Evil:%201",
        "/images/a%0d%0aX-Evil:%201",
        "/x%0d%0aX-Evil:%201",
        "/ui/a%0d%0aX-Evil:1",
    ):
        answer = engine_service.client.get(path)
        assert "x-evil" not in answer.headers and answer.status_code == 404


@pytest.mark.parametrize("header", ["X-Request-Id", "Last-Event-ID", "Idempotency-Key", "Accept"])
def test_header_of_odd_bytes_breaks_nothing(engine_service: RunningService, header: str) -> None:
    request = (
        b"GET /jobs HTTP/1.1\r\nHost: 127.0.0.1\r\n%s: \xff\xfe\xf0 %s\r\nConnection: close\r\n\r\n"
    )
    answer = sent(engine_service, request % (header.encode(), b"a" * 3000))
    assert status_of(answer) in (200, 400)


@pytest.mark.parametrize(
    "header", [b"X-API-Key", b"x-key", b"Authorization", b"Cookie", b"Origin", b"Accept"]
)
def test_header_of_odd_bytes_opens_and_breaks_nothing(
    keyed_service: KeyedService, header: bytes
) -> None:
    for value in (
        b"\xff\xfe",
        b"Basic \xff",
        b"Basic",
        b"Basic =",
        b"Bearer \xff",
        b"Bearer",
        b"Basic " + b"A" * 20_000,
    ):
        request = b"GET /jobs HTTP/1.1\r\nHost: 127.0.0.1\r\n%s: %s\r\nConnection: close\r\n\r\n"
        answer = sent(keyed_service, request % (header, value))
        assert status_of(answer) == 401, (value[:20], answer[:200])


def test_keys_that_differ_early_and_late_are_refused_in_the_same_words(
    keyed_service: KeyedService,
) -> None:
    early, late = "x" + keyed_service.key[1:], keyed_service.key[:-1] + "x"
    said = set()
    for key in (early, late, "x", "x" * 4000):
        answer = keyed_service.client.get("/jobs", headers={"X-API-Key": key})
        said.add((answer.status_code, answer.json()["detail"]))
    assert len(said) == 1 and said.pop()[0] == 401
