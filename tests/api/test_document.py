"""The OpenAPI document is what the service does: schemathesis asks every route in it for what it should not do."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from api.auth import is_open
from api.dialects import sdapi_lists
from api.document import DIALECTS
from api.server import build_app
from tests.service import KeyedService, RunningService

# Not `positive_data_acceptance`: that a model, a LoRA or a picture is there is no matter of a schema.
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "response_headers_conformance",
    "negative_data_rejection",
    "unsupported_method",
)
# A stream of events has no end. What switches drawing off would leave nothing to ask. ComfyUI's routes are the same under `/api`, and lists take no words.
LEFT_OUT = "/events$|^/dashboard/api/settings$|^/api/(prompt|queue|interrupt|history|view|upload|object_info|system_stats|features|embeddings|extensions|free|jobs)|^/sdapi/v1/[a-z]+(-[a-z]+)*s$"
# Of the routes with the same body one has each of its fields tried at its ends.
CONFIG = """
[phases.coverage]
unexpected-methods = ["TRACE"]

[[operations]]
include-path-regex = "^/(submit-request|jobs|upload-lora|unload-model|v1/bfl/.*|sdapi/v1/txt2img)$"
phases.coverage.enabled = false
"""
# What no route reads, in place of a body.
JUNK: tuple[tuple[str, bytes], ...] = (
    ("application/json", b""),
    ("application/json", b"null"),
    ("application/json", b"[]"),
    ("application/json", b"{}"),
    ("application/json", b"{" * 5000),
    ("application/json", b'{"prompt":' * 5000 + b"1" + b"}" * 5000),
    ("application/json", b"[" * 60000),
    ("application/json", b'{"prompt": 1, "prompt": 2}'),
    ("application/json", rb'{"prompt": "\ud800", "model": "\u0000", "width": 1e999, "n": NaN}'),
    (
        "application/json",
        b'{"prompt": ["a"], "size": {}, "images": 7, "image": [[]], "init_images": "x"}',
    ),
    ("application/json", b'{"prompt": {"1": {"class_type": [], "inputs": 3}}, "client_id": {}}'),
    ("application/json", b"9" * 6000),
    ("application/json", b"\xff\xfe"),
    ("application/x-www-form-urlencoded", b"prompt=a&prompt=b"),
    ("text/plain", b'{"prompt": "a"}'),
    ("multipart/form-data", b"--x"),
    ("multipart/form-data; boundary=x", b"--x\r\n\r\n\r\n--x--\r\n"),
    (
        "multipart/form-data; boundary=x",
        b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\n\xff\r\n--x--\r\n',
    ),
    (
        "multipart/form-data; boundary=x",
        b'--x\r\nContent-Disposition: form-data; name="image"; filename="../a.png"\r\n\r\nno picture\r\n--x--\r\n',
    ),
    ("application/json; charset=utf-7", b"+ADw-"),
)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeyedService]:
    """Its own: whatever can be asked for is done to it."""
    running = KeyedService(tmp_path_factory.mktemp("document"))
    running.start()
    yield running
    running.close()


@pytest.mark.timeout(600)  # thousands of requests
def test_document_holds_whatever_a_client_sends(service: KeyedService, tmp_path: Path) -> None:
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    asked = subprocess.run(
        [
            sys.executable, "-m", "schemathesis.cli", "run", f"{service.url}/openapi.json",
            "--phases", "coverage,fuzzing", "--max-examples", "2", "--seed", "1",
            "--checks", ",".join(CHECKS), "--header", f"X-API-Key: {service.key}",
            "--exclude-path-regex", LEFT_OUT, "--suppress-health-check", "all",
            "--generation-database", "none", "--warnings", "off", "--request-timeout", "60",
        ],
        cwd=tmp_path, capture_output=True, text=True, timeout=550,
    )  # fmt: skip
    assert asked.returncode == 0, asked.stdout[-6000:] + asked.stderr[-2000:]
    assert service.client.get("/health").status_code == 200


def operations(service: KeyedService) -> list[tuple[str, str]]:
    """Every method and path of the document, names filled in."""
    document = service.client.get("/openapi.json").json()
    found = [(method, path) for path, methods in document["paths"].items() for method in methods]
    return [(method.upper(), re.sub(r"{[^}]*}", "0", path)) for method, path in found]


def test_route_of_any_kind_wants_a_key(service: KeyedService) -> None:
    with httpx2.Client(base_url=service.url, timeout=120) as nobody:
        let_in = [
            (method, path)
            for method, path in operations(service)
            if nobody.request(method, path).status_code not in (401, 403)
            and not is_open({"method": method, "path": path})
        ]
    assert let_in == []


def test_route_of_any_kind_holds_junk(service: KeyedService) -> None:
    """No failure of ours, no trace in the answer, and JSON where something is said."""
    service.client.post("/queue/clear")
    service.wait_until_quiet()  # a worker that draws what was asked for before can load nothing
    wrong = []
    for method, path in operations(service):
        if method == "GET" or path in ("/queue/pause",):
            continue
        for content_type, body in JUNK:
            answer = service.client.request(
                method, path, content=body, headers={"Content-Type": content_type}
            )
            said = answer.text
            is_json = not said or answer.headers["content-type"].split(";")[0].endswith("json")
            if answer.status_code >= 500 or "Traceback" in said or not is_json:
                wrong.append(
                    (method, path, content_type, body[:60], answer.status_code, said[:200])
                )
    assert wrong == []


def test_route_of_any_kind_holds_odd_queries(service: KeyedService) -> None:
    odd = (
        "?%00",
        "?a[]=1&a[]=2",
        "?limit=-1&offset=999999999999999999999",
        "?=&&&==",
        "?%ff=%ff",
        "?" + "a" * 3000,
    )
    wrong = []
    for method, path in operations(service):
        if method != "GET" or path.endswith("events"):
            continue
        for query in odd:
            answer = service.client.get(path + query)
            if answer.status_code >= 500:
                wrong.append((path + query[:60], answer.status_code, answer.text[:200]))
    assert wrong == []


def test_document_tells_every_error_and_what_a_key_must_be_for(service: KeyedService) -> None:
    document = service.client.get("/openapi.json").json()
    assert set(document["components"]["securitySchemes"]) == {
        "bearer",
        "x-api-key",
        "x-key",
        "basic",
    }
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            answers = operation["responses"]
            assert {"400", "401", "403", "413", "429", "500", "503"} <= set(answers), path
            assert ("404" in answers) or "{" not in path, path
            assert not {"4XX", "5XX", "default"} & set(answers), path
            is_open = path in ("/health/live", "/health/ready") or path.startswith("/delivery/")
            assert ("security" in operation) != is_open, (method, path)
            of_api = DIALECTS.intersection(operation["tags"])
            is_problem = "application/problem+json" in answers["500"]["content"]
            assert is_problem == (not of_api or path in ("/api/txt2img", "/queue")), path
    assert document["paths"]["/admin/keys"]["post"]["x-key-scope"] == "admin"
    assert document["paths"]["/generate"]["post"]["x-key-scope"] == "generate"
    assert document["paths"]["/jobs"]["get"]["x-key-scope"] == "any"


def routes_of(router: Any) -> Iterator[Any]:
    for route in router.routes:
        included = getattr(route, "original_router", None)
        yield from [route] if included is None else routes_of(included)


def test_document_names_every_route(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of other programs' APIs too. Pages of ours are no routes for programs."""
    monkeypatch.setenv("FLUX_DATA_DIR", str(tmp_path))
    app = build_app("bf16")
    paths = app.openapi()["paths"]
    answered = {
        (method.lower(), route.path_format)
        for route in routes_of(app)
        for method in (getattr(route, "methods", None) or ())
        if method != "HEAD"
    }
    missing = {(method, path) for method, path in answered if method not in paths.get(path, {})}
    not_built = {path for _, path in missing if path.startswith("/sdapi/v1/")}
    pages = {"/", "/docs", "/dashboard", "/openapi.json"}
    assert {path for _, path in missing} - not_built == pages
    assert not_built == {f"/sdapi/v1/{name}" for name in sdapi_lists.NOT_HERE}


def test_document_of_an_open_service_asks_for_no_key(engine_service: RunningService) -> None:
    document = engine_service.client.get("/openapi.json").json()
    assert "securitySchemes" not in document["components"]
    assert "security" not in document["paths"]["/generate"]["post"]


def test_document_names_no_status_for_a_path_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from api.document import ALSO

    monkeypatch.setenv("FLUX_DATA_DIR", str(tmp_path))
    assert set(ALSO) <= set(build_app("bf16").openapi()["paths"])


def test_allow_of_a_path_that_is_written_down_is_its_own(engine_service: RunningService) -> None:
    """`/images/inspect` is not also a picture's."""
    answer = engine_service.client.put("/images/inspect")
    assert (answer.status_code, answer.headers["Allow"]) == (405, "POST")
