"""`/ui`: the page, served as the files it is made of."""

from __future__ import annotations

from fastapi import APIRouter, FastAPI
from fastapi.responses import FileResponse, RedirectResponse
from fastapi.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

from config.settings import ROOT

FRONTEND = ROOT / "frontend"

# The page loads nothing from elsewhere. It may call the services on this machine.
CONTENT_SECURITY_POLICY = (
    "default-src 'self'; img-src 'self' blob: data: http://127.0.0.1:* http://localhost:*; "
    "connect-src 'self' http://127.0.0.1:* http://localhost:*; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)

router = APIRouter()


@router.get("/", include_in_schema=False)
async def to_the_page() -> RedirectResponse:
    return RedirectResponse("/ui/")


@router.get("/docs", include_in_schema=False)
async def docs() -> FileResponse:
    """The HTTP reference, drawn in the browser from /openapi.json."""
    return FileResponse(
        FRONTEND / "docs.html", headers={"Content-Security-Policy": CONTENT_SECURITY_POLICY}
    )


class Page(StaticFiles):
    """Static files with the page's content policy, always asked for again."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_policy(message):
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message["headers"],
                    (b"content-security-policy", CONTENT_SECURITY_POLICY.encode()),
                    (b"cache-control", b"no-cache"),
                ]
            await send(message)

        await super().__call__(scope, receive, send_with_policy)


def mount(app: FastAPI) -> None:
    app.mount("/ui", Page(directory=FRONTEND, html=True), name="page")
