"""A stand-in of the Hugging Face Hub's HTTP API, as far as the files of a repository are asked for."""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "a" * 40
HELD_SECONDS = 120  # a guard: whoever holds a download lets it go
LARGE = (".safetensors", ".bin")  # kept as the Hub keeps large files: known by their SHA-256


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Hub:
    """`files` by `owner/repo/path`; `gated` repositories; `sizes` that are lies, `spoilt` bytes.

    A download (of what is `held`, where that names any) waits before its last part while `gate` is not
    set, and breaks off there as often as `breaks` says. `licensed` repositories show their list to all and their files to bearers of a
    token. `statuses` are what the next requests for files are answered with; `elsewhere` is another
    address that files are sent on to. `got` are the headers of requests for files, by name.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.files: dict[str, bytes] = {}
        self.gated: set[str] = set()
        self.sizes: dict[str, int] = {}
        self.spoilt: dict[str, bytes] = {}
        self.licensed: set[str] = set()
        self.statuses: list[int] = []
        self.elsewhere: str | None = None
        self.takes_ranges = True
        self.held: set[str] = set()
        self.asked: list[str] = []
        self.got: list[tuple[str, dict[str, str]]] = []
        self.breaks = 0
        self.gate = threading.Event()
        self.gate.set()

    def forget(self) -> None:
        self.gate.set()
        self.breaks = 0
        self.elsewhere, self.takes_ranges = None, True
        for each in (
            self.files,
            self.gated,
            self.sizes,
            self.asked,
            self.spoilt,
            self.licensed,
            self.held,
        ):
            each.clear()
        self.statuses.clear()
        self.got.clear()


@contextmanager
def serving() -> Iterator[Hub]:
    """A Hub on a free port, for HF_ENDPOINT."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            hub.asked.append(path)
            if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)", path):
                self._model(match[1])
            elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                self._file(f"{match[1]}/{match[3]}", match[2])
            else:
                self._refuse(404, "RepoNotFound")

        def _model(self, repo: str) -> None:
            found = {n: d for n, d in hub.files.items() if n.startswith(f"{repo}/")}
            if repo in hub.gated:
                return self._refuse(403, "GatedRepo")
            if not found:
                return self._refuse(404, "RepoNotFound")
            siblings = [self._sibling(name, name.removeprefix(f"{repo}/")) for name in found]
            self._json({"id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings})

        def _sibling(self, name: str, path: str) -> dict[str, Any]:
            data = hub.files[name]
            size = hub.sizes.get(name, len(data))
            known = {"rfilename": path, "size": size, "blobId": git_sha1(data)}
            if path.endswith(LARGE):
                sha256 = hashlib.sha256(data).hexdigest()
                known["lfs"] = {"sha256": sha256, "size": size, "pointerSize": 134}
            return known

        def _file(self, name: str, revision: str) -> None:
            assert revision == COMMIT  # what was looked at, not what came after it
            hub.got.append((name, {key.lower(): value for key, value in self.headers.items()}))
            owner, repo, _ = name.split("/", 2)
            if f"{owner}/{repo}" in hub.licensed and "Authorization" not in self.headers:
                return self._refuse(401, "GatedRepo")
            if hub.statuses:
                return self._refuse(hub.statuses.pop(0), "")
            if hub.elsewhere is not None:
                return self._json({}, 302, Location=f"{hub.elsewhere}{self.path}")
            data = hub.spoilt.get(name, hub.files[name])
            wanted = self.headers.get("Range", "bytes=0-") if hub.takes_ranges else "bytes=0-"
            start = int(re.match(r"bytes=(\d+)-", wanted)[1])
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(data) - start))
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.end_headers()
            split = max(start, len(data) - 1000)
            self.wfile.write(data[start:split])
            self.wfile.flush()
            if not hub.held or name in hub.held:
                hub.gate.wait(HELD_SECONDS)
            if hub.breaks:
                hub.breaks -= 1
                self.close_connection = True
                return
            self.wfile.write(data[split:])

        def _json(self, body: Any, status: int = 200, **headers: str) -> None:
            text = json.dumps(body).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def _refuse(self, status: int, code: str) -> None:
            self._json({"error": code}, status, X_Error_Code=code, X_Error_Message=code)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub = Hub(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.gate.set()
        server.shutdown()
        server.server_close()
        thread.join()


def put_folder(hub: Hub, repo: str, folder: Path) -> None:
    """A folder's files as a repository."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            hub.files[f"{repo}/{path.relative_to(folder)}"] = path.read_bytes()


@contextmanager
def asked_by_this_process(hub: Hub) -> Iterator[None]:
    """huggingface_hub reads the environment when it is imported: here it is told later."""
    from huggingface_hub import constants

    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    told = {"ENDPOINT": hub.url, "HUGGINGFACE_CO_URL_TEMPLATE": template, "HF_HUB_OFFLINE": False}
    before = {name: getattr(constants, name) for name in told}
    names = ("HF_TOKEN", "HF_HOME", "HF_HUB_CACHE", "SD_HUGGINGFACE_TOKEN")
    environ = {name: os.environ.pop(name) for name in names if name in os.environ}
    for name, value in told.items():
        setattr(constants, name, value)
    try:
        yield
    finally:
        os.environ.update(environ)
        for name, value in before.items():
            setattr(constants, name, value)
