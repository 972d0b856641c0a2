"""A stand-in for BFL's cloud, to try `flux-api` without money and to test it: `python -m scripts.fake_bfl`.

It checks bodies as BFL's document says (`fake_bfl.json`), takes them, draws after a while, and delivers a real
picture with the prompt on it. Prices and credits are counted; every call is kept in a ledger, GET /__calls.

Words in the prompt make it fail as the real one can:

    [[delay=3]]                       draws for so many seconds (else 0.3)
    [[status=Queued,Reasoning]]       says these, one at each look, before it is ready
    [[never]]                         is never ready
    [[moderate=request]]  =content    blocked before or after it was drawn
    [[error]]  [[lost]]               Error, Task not found
    [[http=402]]  [[http=429:2]]      answers so to a request, always or the first times; nothing is taken
    [[retry-after=1]]                 with this header
    [[then=drop]]  =500  =hang  =json    takes the request, and breaks off, fails, is silent, answers nonsense
    [[poll-http=500:2]]               answers so to looks
    [[503-body]]                      a look is 503, and its body has the status Error
    [[poll=foreign]]  =redirect       sends the looks to another host
    [[poll=localhost]]                sends them to this one by its other name
    [[redirect]]                      answers a request with a redirect to another host
    [[picture=foreign]]  =redirect  =html  =cut  =huge  =empty     what becomes of the picture
    [[expire=2]]                      the first addresses of the picture are over when they are told
    [[free]]                          does not say what it costs
    [[red]]                           is red all over
    [[only=42]]                       all these are for a request with this seed alone

Another host is this one on a second port, so that the ledger shows who comes there.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import io
import json
import math
import re
import secrets
import socket
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, RedirectResponse, StreamingResponse

FACTS = json.loads((Path(__file__).parent / "fake_bfl.json").read_text(encoding="utf-8"))
MAX_TASKS = 24
DRAWS_SECONDS = 0.3
HUGE_BYTES = 70 * 2**20
MEGAPIXEL = 2**20
KEY_PREFIX = "bfl_"
PRICES = {  # credits: of the first megapixel, and of each further one
    "flux-2-pro": (3, 1.5),
    "flux-2-max": (7, 3),
    "flux-2-flex": (6, 6),
    "flux-2-klein-4b": (1.4, 0.1),
    "flux-2-klein-9b": (1.5, 0.2),
    "flux-3-image": (4.8, 0),
    "flux-kontext-max": (8, 0),
    "flux-pro-1.1-ultra": (6, 0),
    "flux-pro-1.0-fill": (5, 0),
    "flux-dev": (2.5, 0),
}
TYPES = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "array": list,
    "object": dict,
    "null": type(None),
}


@dataclass(slots=True, kw_only=True)
class Task:
    """What was taken."""

    model: str
    body: dict[str, Any]
    words: Mapping[str, str]
    ready_at: float
    looks: int = 0
    addresses: int = 0
    is_over: bool = False

    def is_active(self, now: float) -> bool:
        """Whether it takes a place: one that nobody looks after is drawn all the same."""
        return not self.is_over and ("never" in self.words or now < self.ready_at)


@dataclass(slots=True)
class Cloud:
    """What there is of it, in memory."""

    credits: float = 1000.0
    draws_seconds: float = DRAWS_SECONDS
    tasks: dict[str, Task] = field(default_factory=dict)
    calls: list[dict[str, Any]] = field(default_factory=list)
    tries: Counter[str] = field(
        default_factory=Counter
    )  # of requests that answer badly for a while
    secret: str = field(default_factory=lambda: secrets.token_hex(8))


def create_app(draws_seconds: float = DRAWS_SECONDS, second_port: int = 0) -> FastAPI:
    """`second_port` is where another host is thought to be."""
    app = FastAPI(title="Stand-in for BFL's API", docs_url=None, redoc_url=None)
    app.state.cloud = Cloud(draws_seconds=draws_seconds)
    app.state.second_port = second_port

    @app.middleware("http")
    async def keep(request: Request, call_next: Any) -> Response:
        call: dict[str, Any] = {
            "method": request.method,
            "path": request.url.path,
            "host": request.headers.get("host", ""),
            "has_key": "x-key" in request.headers,
        }
        request.state.call = call
        if not request.url.path.startswith("/__"):
            app.state.cloud.calls.append(call)
        return await call_next(request)

    @app.get("/__calls")
    async def calls() -> dict[str, Any]:
        cloud = app.state.cloud
        return {"calls": cloud.calls, "tasks": len(cloud.tasks), "credits": cloud.credits}

    @app.post("/__reset")
    async def reset(credits: float = 1000.0) -> dict[str, Any]:
        app.state.cloud = Cloud(credits=credits, draws_seconds=draws_seconds)
        return {"credits": credits}

    @app.get("/v1/credits")
    async def credits_left(request: Request) -> Response:
        refusal = _refused_key(request)
        return refusal or JSONResponse({"credits": app.state.cloud.credits})

    @app.get(
        "/eu2/v1/get_result"
    )  # not where requests are taken: who does not obey polling_url finds nothing
    async def get_result(request: Request, id: str) -> Response:
        return _look(app.state.cloud, request, id)

    @app.get("/delivery/{name}")
    async def delivery(request: Request, name: str, sig: str) -> Response:
        return await _deliver(app.state.cloud, request, name, sig)

    @app.post("/v1/{model}")
    async def submit(request: Request, model: str) -> Response:
        return await _submit(app.state.cloud, request, model)

    return app


def words_of(prompt: str) -> dict[str, str]:
    """The words in double brackets, and their values."""
    found = re.findall(r"\[\[([a-z0-9-]+)(?:=([^\]]*))?\]\]", prompt)
    return {name: value for name, value in found}


# A request


async def _submit(cloud: Cloud, request: Request, model: str) -> Response:
    body = await _json_of(request)
    words = words_of(str(body.get("prompt", "")))
    if words.get("only", str(body.get("seed"))) != str(body.get("seed")):
        words = {}
    request.state.call |= {"model": model, "prompt": body.get("prompt"), "fields": sorted(body)}
    if refusal := _refused_key(request):
        return refusal
    if model not in FACTS["models"]:
        return JSONResponse({"detail": "Not Found"}, 404)
    if refusal := _scripted(cloud, words, "http", str(body)):
        return refusal
    if "redirect" in words:
        return RedirectResponse(_elsewhere(request) + f"/v1/{model}", 307)
    if faults := faults_of(FACTS["models"][model], body):
        return JSONResponse({"detail": faults}, 422)
    now = time.monotonic()
    if sum(task.is_active(now) for task in cloud.tasks.values()) >= MAX_TASKS:
        return JSONResponse({"detail": "too many active tasks"}, 429)
    cost, output_mp, input_mp = _cost(model, body)
    if cloud.credits < cost:
        return JSONResponse({"detail": "Insufficient credits"}, 402)
    cloud.credits -= cost
    task_id = secrets.token_hex(16)
    delay = float(words.get("delay", cloud.draws_seconds))
    cloud.tasks[task_id] = Task(
        model=model, body=body, words=words, ready_at=time.monotonic() + delay
    )
    request.state.call["task"] = task_id
    match words.get("then"):
        case "drop":
            return StreamingResponse(_half(), headers={"content-length": "4096"})
        case "500":
            return JSONResponse({"detail": "Internal Server Error"}, 500)
        case "hang":
            await asyncio.sleep(3600)
        case "json":
            return Response("<html>gateway</html>", media_type="text/html")
    here = _elsewhere(request) if words.get("poll") == "foreign" else _here(request)
    if words.get("poll") == "localhost":
        here = here.replace("127.0.0.1", "localhost")
    told = {} if "free" in words else {"cost": cost, "input_mp": input_mp, "output_mp": output_mp}
    return JSONResponse(
        {"id": task_id, "polling_url": f"{here}/eu2/v1/get_result?id={task_id}", **told}
    )


async def _json_of(request: Request) -> dict[str, Any]:
    try:
        body = json.loads(await request.body())
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def faults_of(facts: Mapping[str, Any], body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What BFL's document has against a body, in the shape that BFL tells it."""
    faults = [_fault(name, "Field required") for name in facts["required"] if name not in body]
    for name, value in body.items():
        known = facts["properties"].get(name)
        reason = "Extra inputs are not permitted" if known is None else _why_not(known, value)
        if reason is not None:
            faults.append(_fault(name, reason))
    width, height = body.get("width") or 0, body.get("height") or 0
    if not faults and width * height > facts.get("max_pixels", math.inf):
        faults.append(_fault("width", f"more than {facts['max_pixels']} pixels"))
    return faults


def _fault(name: str, message: str) -> dict[str, Any]:
    return {"loc": ["body", name], "msg": message, "type": "value_error"}


def _why_not(known: Mapping[str, Any], value: Any) -> str | None:
    kinds = tuple(TYPES[kind] for kind in known["type"])
    is_bool = isinstance(value, bool)
    if not isinstance(value, kinds) or (is_bool and "boolean" not in known["type"]):
        return f"Input should be {' or '.join(known['type'])}"
    if value is None or is_bool:
        return None
    if "enum" in known and value not in known["enum"]:
        return f"Input should be one of {', '.join(known['enum'])}"
    if "minimum" in known and value < known["minimum"]:
        return f"Input should be greater than or equal to {known['minimum']}"
    if "maximum" in known and value > known["maximum"]:
        return f"Input should be less than or equal to {known['maximum']}"
    if "multipleOf" in known and value % known["multipleOf"]:
        return f"Input should be a multiple of {known['multipleOf']}"
    if len(value) > known.get("maxItems", math.inf) if isinstance(value, list) else False:
        return f"List should have at most {known['maxItems']} items"
    if "ratio" in known:
        least, most = (_ratio(each) for each in known["ratio"])
        if not re.fullmatch(r"\d+:\d+", value) or not least <= _ratio(value) <= most:
            return "aspect ratio must be between 9:21 and 21:9"
    return None


def _ratio(text: str) -> float:
    across, down = text.split(":")
    return int(across) / int(down)


def _cost(model: str, body: Mapping[str, Any]) -> tuple[float, float, float]:
    """Credits, megapixels of the picture, and of those that came along (one each)."""
    width, height = size_of(body)
    first, further = PRICES.get(model.removesuffix("-preview"), (4, 0))
    pictures = sum(name.startswith("input_image") for name in body) + len(body.get("images", ()))
    output_mp = width * height / MEGAPIXEL
    cost = first + (max(1, math.ceil(output_mp)) - 1) * further + pictures * further
    return cost, round(output_mp, 2), float(pictures)


# A look


def _look(cloud: Cloud, request: Request, task_id: str) -> Response:
    request.state.call["task"] = task_id
    task = cloud.tasks.get(task_id)
    if task is None or "lost" in task.words:
        return JSONResponse({"id": task_id, "status": "Task not found", "result": None}, 404)
    task.looks += 1
    if task.words.get("poll") == "redirect":
        return RedirectResponse(_elsewhere(request) + f"/eu2/v1/get_result?id={task_id}", 307)
    if refusal := _scripted(cloud, task.words, "poll-http", task_id):
        return refusal
    if "503-body" in task.words:
        task.is_over = True
        return JSONResponse(
            {"id": task_id, "status": "Error", "details": {"reason": "no machine"}}, 503
        )
    statuses = [status for status in task.words.get("status", "").split(",") if status]
    if task.looks <= len(statuses):
        return _status(task_id, statuses[task.looks - 1], progress=0.5)
    if "never" in task.words or time.monotonic() < task.ready_at:
        return _status(task_id, "Pending")
    task.is_over = True
    if "moderate" in task.words:
        kind = task.words["moderate"].capitalize()
        cloud.credits += _cost(task.model, task.body)[0]
        return _status(task_id, f"{kind} Moderated", details={"Moderation Reasons": ["test"]})
    if "error" in task.words:
        return _status(task_id, "Error", details={"error": "the machine failed"})
    return _status(task_id, "Ready", result=_result(cloud, request, task_id, task))


def _status(task_id: str, status: str, **more: Any) -> Response:
    empty = {"result": None, "progress": None, "details": None, "preview": None}
    return JSONResponse({"id": task_id, "status": status, **empty, **more})


def _result(cloud: Cloud, request: Request, task_id: str, task: Task) -> dict[str, Any]:
    task.addresses += 1
    here = _elsewhere(request) if task.words.get("picture") == "foreign" else _here(request)
    is_expired = task.addresses <= int(task.words.get("expire", 0))
    signature = "expired" if is_expired else _signature(cloud, task_id)
    return {
        "sample": f"{here}/delivery/{task_id}.png?sig={signature}",
        "prompt": task.body.get("prompt"),
        "seed": task.body.get("seed"),
    }


# The picture


async def _deliver(cloud: Cloud, request: Request, name: str, signature: str) -> Response:
    task_id = name.removesuffix(".png")
    request.state.call["task"] = task_id
    task = cloud.tasks.get(task_id)
    if task is None or signature != _signature(cloud, task_id):
        return Response("signature expired", 403)
    match task.words.get("picture"):
        case "redirect":
            return RedirectResponse(_elsewhere(request) + request.url.path + "?sig=x", 302)
        case "html":
            return Response("<html>no picture</html>", media_type="text/html")
        case "empty":
            return Response(b"", media_type="image/png")
        case "huge":
            return StreamingResponse(_zeros(), media_type="image/png")
    data = await asyncio.to_thread(draw, task.body, "red" in task.words)
    if task.words.get("picture") == "cut":
        data = data[: len(data) // 2]
    kind = "jpeg" if task.body.get("output_format", "png") != "png" else "png"
    return Response(data, media_type=f"image/{kind}")


def size_of(body: Mapping[str, Any]) -> tuple[int, int]:
    """Pixels of the picture that a body asks for."""
    if "width" in body and "height" in body:
        return body["width"], body["height"]
    ratio = _ratio(body.get("aspect_ratio") or "1:1") if body.get("aspect_ratio") != "auto" else 1.0
    sides = {"768sq": 768, "1k": 1024, "1.5k": 1536, "2k": 2048, "4k": 4096}
    side = sides.get(body.get("resolution", "1k"), 1024)
    width = round(side * math.sqrt(ratio) / 16) * 16
    return width, round(width / ratio / 16) * 16


def draw(body: Mapping[str, Any], is_red: bool = False) -> bytes:
    """A gradient in colours of the seed, or a red ground, with the prompt on it."""
    from PIL import Image, ImageDraw

    width, height = size_of(body)
    digest = hashlib.sha256(f"{body.get('seed')}".encode()).digest()
    ramp = Image.linear_gradient("L").resize((width, height))
    picture = Image.merge(
        "RGB",
        [ramp.point([(base + value // 2) % 256 for value in range(256)]) for base in digest[:3]],
    )
    if is_red:
        picture = Image.new("RGB", (width, height), (230, 10, 10))
    text = re.sub(r"\[\[.*?\]\]", "", str(body.get("prompt", ""))).strip()
    lines = [text[start : start + 40] for start in range(0, min(len(text), 400), 40)]
    ImageDraw.Draw(picture).multiline_text((8, 8), "\n".join(lines), fill="white")
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG" if body.get("output_format", "png") != "png" else "PNG")
    return buffer.getvalue()


# Small things


def _scripted(cloud: Cloud, words: Mapping[str, str], name: str, what: str) -> Response | None:
    """The answer that `name=<code>[:<times>]` asks for."""
    code, _, times = words.get(name, "").partition(":")
    if not code:
        return None
    cloud.tries[f"{name} {what}"] += 1
    if times and cloud.tries[f"{name} {what}"] > int(times):
        return None
    headers = {"retry-after": words["retry-after"]} if "retry-after" in words else {}
    return JSONResponse({"detail": f"as asked for: {code}"}, int(code), headers)


def _refused_key(request: Request) -> Response | None:
    key = request.headers.get("x-key", "")
    if not key.startswith(KEY_PREFIX):
        return JSONResponse({"detail": "Not authenticated"}, 401)
    if key == f"{KEY_PREFIX}forbidden":
        return JSONResponse({"detail": "Not authorized"}, 403)
    return None


def _here(request: Request) -> str:
    return f"http://{request.headers['host']}"


def _elsewhere(request: Request) -> str:
    return f"http://127.0.0.1:{request.app.state.second_port}"


def _signature(cloud: Cloud, task_id: str) -> str:
    return hashlib.sha256(f"{cloud.secret} {task_id}".encode()).hexdigest()[:16]


async def _half() -> AsyncIterator[bytes]:
    yield b'{"id": "half an an'


async def _zeros() -> AsyncIterator[bytes]:
    for _ in range(HUGE_BYTES // 2**20):
        yield b"\x89PNG" + bytes(2**20 - 4)


def listening(port: int) -> socket.socket:
    """A socket of this machine alone; 0: any port that is free."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
        listener.listen()
    except OSError:
        listener.close()
        raise
    return listener


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.fake_bfl", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--port", type=int, default=9100, help="TCP port (9100)")
    port = parser.parse_args().port
    try:
        sockets = [listening(port), listening(0)]
    except OSError as error:
        print(
            f"port {port} is not free: {error.strerror}; give another with --port", file=sys.stderr
        )
        return 1
    print(
        f"a stand-in for BFL's cloud on http://127.0.0.1:{port}; start a service with\n"
        f"  SD_BFL_API_BASE=http://127.0.0.1:{port}/v1 SD_BFL_API_KEY={KEY_PREFIX}test ./start_bf16_api.sh",
        flush=True,
    )
    app = create_app(second_port=sockets[1].getsockname()[1])
    # Who was left without an answer ([[then=hang]]) does not keep it from ending.
    config = uvicorn.Config(
        app, log_level="warning", timeout_keep_alive=75, timeout_graceful_shutdown=1
    )
    uvicorn.Server(config).run(sockets=sockets)
    return 0


if __name__ == "__main__":
    sys.exit(main())
