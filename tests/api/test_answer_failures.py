"""A failure nobody expected, in a small application with the same layers around it."""

import asyncio

import httpx2
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from api.auth import Guard
from api.middleware import Gate
from config.settings import ServerSettings, Settings
from utils.clock import Chance
from utils.keyring import Keyring

SECRET = "/home/someone/secret"


async def fails(request: Request) -> Response:
    raise RuntimeError(SECRET)


async def works(request: Request) -> Response:
    return PlainTextResponse("fine")


def ask(path: str) -> httpx2.Response:
    app = Starlette(routes=[Route("/fails", fails), Route("/works", works)])
    settings = Settings(server=ServerSettings(host="127.0.0.1", port=80))
    guard = Guard(Keyring(settings, Chance()), Chance().monotonic)
    app.add_middleware(Gate, settings=settings.server, guard=guard)

    async def get() -> httpx2.Response:
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.get(path)

    return asyncio.run(get())


def test_failure_is_a_problem_with_the_headers_of_every_answer() -> None:
    answer = ask("/fails")
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert answer.headers["X-Request-Id"] == answer.json()["request_id"]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


def test_failure_does_not_tell_what_it_was() -> None:
    assert SECRET not in ask("/fails").text


def test_answer_that_works_is_left_alone() -> None:
    assert ask("/works").text == "fine"
