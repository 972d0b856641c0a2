"""`/ui`: the page, served as the files it is made of."""

from __future__ import annotations

import os
import re
from pathlib import Path

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import FileResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from config.settings import ROOT

FRONTEND = ROOT / "frontend"

# The page loads nothing from elsewhere. It calls the services of its machine, by the name that it
# was itself called by and by loopback.
_POLICY = (
    "default-src 'self'; img-src 'self' blob: data: {services}; connect-src 'self' {services}; "
    "object-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
_LOOPBACK = ("127.0.0.1", "localhost")
# A name or an IPv4 address; the policy's grammar has no IPv6 addresses.
_NAME = re.compile(r"[A-Za-z0-9._-]+")


def content_security_policy(host: str) -> str:
    """The policy for a page that was asked for under this Host header, which was checked before."""
    name = host.partition(":")[0].lower()
    names = dict.fromkeys((*_LOOPBACK, *([name] if _NAME.fullmatch(name) else [])))
    return _POLICY.format(services=" ".join(f"http://{each}:*" for each in names))


router = APIRouter()


@router.get("/", include_in_schema=False)
async def to_the_page() -> RedirectResponse:
    return RedirectResponse("/ui/")


@router.get("/docs", include_in_schema=False)
async def docs(request: Request) -> FileResponse:
    """The HTTP reference, drawn in the browser from /openapi.json."""
    return FileResponse(
        FRONTEND / "docs.html",
        headers={"Content-Security-Policy": content_security_policy(request.url.netloc)},
    )


class Page(StaticFiles):
    """Static files with the page's content policy, always asked for again."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        policy = content_security_policy(Headers(scope=scope).get("host", ""))

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message["headers"],
                    (b"content-security-policy", policy.encode()),
                    (b"cache-control", b"no-cache"),
                ]
            await send(message)

        await super().__call__(scope, receive, send_with_policy)

    def file_response(
        self,
        full_path: str | os.PathLike[str],
        stat_result: os.stat_result,
        scope: Scope,
        status_code: int = 200,
    ) -> Response:
        """Read at once: a page is many small files, and threads that take turns to read one take longer than that."""
        response = super().file_response(full_path, stat_result, scope, status_code)
        if not isinstance(response, FileResponse) or "range" in Headers(scope=scope):
            return response
        headers = {
            name: value for name, value in response.headers.items() if name != "content-length"
        }
        return Response(Path(full_path).read_bytes(), status_code, headers)


def mount(app: FastAPI) -> None:
    app.mount("/ui", Page(directory=FRONTEND, html=True), name="page")
