"""diffusers' `examples/server-async`: one pipeline, copied shallowly for each request, in the framework's threads.

Every request has a scheduler of its own; the tokenizers, the autoencoder and the image processor are each used by one at a
time; the picture is written to a folder and fetched from there, and garbage is collected after each.
https://github.com/huggingface/diffusers/tree/58eb52c0803ea9af3abec60841c2a093bdf1f951/examples/server-async
"""

from __future__ import annotations

import copy
import gc
import sys
import tempfile
import threading
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse

from scripts.bench.rival_servers import drawing

# What one thread may use at a time, and by which calls.
GUARDED = {
    "tokenizer": ("__call__",),
    "tokenizer_2": ("__call__",),
    "vae": ("decode",),
    "image_processor": ("postprocess",),
}


class RequestScoped:
    """The pipeline as one request may use it beside others."""

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline
        self._locks = {"vae": threading.Lock(), "image_processor": threading.Lock()}
        self._tokenizers = threading.Lock()

    def draw(self, asked: drawing.Asked) -> Any:
        own = copy.copy(self._pipeline)
        own.scheduler = copy.deepcopy(self._pipeline.scheduler)
        for name, calls in GUARDED.items():
            lock = self._locks.get(name, self._tokenizers)
            setattr(own, name, Guarded(getattr(self._pipeline, name), calls, lock))
        return drawing.draw(own, [asked])[0]


class Guarded:
    """A part whose calls of these names wait for each other."""

    def __init__(self, part: Any, calls: Sequence[str], lock: threading.Lock) -> None:
        self._part, self._calls, self._lock = part, calls, lock

    def __call__(self, *values: Any, **options: Any) -> Any:
        with self._lock:
            return self._part(*values, **options)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._part, name)
        if name not in self._calls:
            return found

        def one_at_a_time(*values: Any, **options: Any) -> Any:
            with self._lock:
                return found(*values, **options)

        return one_at_a_time


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
