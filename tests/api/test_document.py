"""The OpenAPI document is what the service does: schemathesis asks every route in it for what it should not do."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from api.auth import is_open
from api.dialects import installed
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
# Of the routes with the same body one has each of its fields tried at its ends.
CONFIG = """
[phases.coverage]
unexpected-methods = ["TRACE"]

[[operations]]
include-path-regex = "^/(submit-request|jobs)$"
phases.coverage.enabled = false
"""
# What no route reads, in place of a body; of a dialect's too, which the document does not hold.
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


def test_document_holds_whatever_a_client_sends(service: KeyedService, tmp_path: Path) -> None:
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    asked = subprocess.run(
        [
            sys.executable, "-m", "schemathesis.cli", "run", f"{service.url}/openapi.json",
            "--phases", "coverage,fuzzing", "--max-examples", "2", "--seed", "1",
            "--checks", ",".join(CHECKS), "--header", f"X-API-Key: {service.key}",
            # A stream of events has no end.
            "--exclude-path-regex", "/events$", "--suppress-health-check", "all",
            "--generation-database", "none", "--warnings", "off", "--request-timeout", "60",
        ],
        cwd=tmp_path, capture_output=True, text=True, timeout=250,
    )  # fmt: skip
    assert asked.returncode == 0, asked.stdout[-6000:] + asked.stderr[-2000:]
    assert service.client.get("/health").status_code == 200


def operations(service: KeyedService) -> list[tuple[str, str]]:
    """Every method and path of the document and of the dialects, names filled in."""
    document = service.client.get("/openapi.json").json()
    found = [(method, path) for path, methods in document["paths"].items() for method in methods]
    for module in installed.MODULES:
        for route in module.router.routes:
            found += [(method, route.path) for method in getattr(route, "methods", None) or ()]
    return [(method.upper(), re.sub(r"{[^}]*}", "0", path)) for method, path in found]


def test_route_of_any_kind_wants_a_key(service: KeyedService) -> None:
    with httpx2.Client(base_url=service.url) as nobody:
        let_in = [
            (method, path)
            for method, path in operations(service)
            if nobody.request(method, path).status_code not in (401, 403)
            and not is_open({"method": method, "path": path})
        ]
    assert let_in == []


def test_route_of_any_kind_holds_junk(service: KeyedService) -> None:
    """No failure of ours, no trace in the answer, and JSON where something is said."""
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
            is_open = path in ("/health/live", "/health/ready")
            assert ("security" in operation) != is_open, (method, path)
    assert document["paths"]["/admin/keys"]["post"]["x-key-scope"] == "admin"
    assert document["paths"]["/generate"]["post"]["x-key-scope"] == "generate"
    assert document["paths"]["/jobs"]["get"]["x-key-scope"] == "any"


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
