"""diffusers' `examples/server-async`: one pipeline, copied shallowly for each request, in the framework's threads.

Every request has a scheduler of its own, the tokenizers are used by one at a time, the picture is written to
a folder and fetched from there, and garbage is collected after each.
https://github.com/huggingface/diffusers/tree/main/examples/server-async
"""

from __future__ import annotations

import copy
import gc
import sys
import tempfile
import threading
import uuid
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse

from scripts.bench.rival_servers import drawing


class RequestScoped:
    """The pipeline as one request may use it beside others."""

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline
        self._one_at_a_time = threading.Lock()

    def draw(self, asked: drawing.Asked) -> Any:
        own = copy.copy(self._pipeline)
        own.scheduler = copy.deepcopy(self._pipeline.scheduler)
        for name in ("tokenizer", "tokenizer_2"):
            setattr(own, name, Guarded(getattr(self._pipeline, name), self._one_at_a_time))
        return drawing.draw(own, [asked])[0]


class Guarded:
    """A tokenizer that one thread uses at a time."""

    def __init__(self, tokenizer: Any, lock: threading.Lock) -> None:
        self._tokenizer, self._lock = tokenizer, lock

    def __call__(self, *texts: Any, **options: Any) -> Any:
        with self._lock:
            return self._tokenizer(*texts, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


def build(folder: Path) -> FastAPI:
    app, pipeline = FastAPI(), RequestScoped(drawing.load())

    @app.post("/api/diffusers/inference")
    async def infer(asked: drawing.Asked) -> dict[str, list[str]]:
        try:
            picture = await run_in_threadpool(pipeline.draw, asked)
            name = f"{uuid.uuid4()}.png"
            picture.save(folder / name)
            return {"response": [f"/images/{name}"]}
        finally:
            gc.collect()

    @app.get("/images/{name}")
    async def image(name: str) -> FileResponse:
        return FileResponse(folder / name, media_type="image/png")

    return app


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        uvicorn.run(build(Path(folder)), host="127.0.0.1", port=int(sys.argv[1]), log_config=None)


if __name__ == "__main__":
    main()
