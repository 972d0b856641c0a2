"""diffusers' `examples/server`: a pipeline of each request's own over shared weights, in the event loop's threads.

The picture is written to a folder and its address answered, from where it is fetched.
https://github.com/huggingface/diffusers/tree/58eb52c0803ea9af3abec60841c2a093bdf1f951/examples/server
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import uuid
from pathlib import Path

import uvicorn
from diffusers import FluxPipeline
from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles

from scripts.bench.rival_servers import drawing


def build(folder: Path) -> FastAPI:
    app = FastAPI()
    app.mount("/images", StaticFiles(directory=folder), name="images")
    shared = drawing.load()

    @app.post("/v1/images/generations")
    async def generate(asked: drawing.Asked) -> dict[str, list[dict[str, str]]]:
        scheduler = shared.scheduler.from_config(shared.scheduler.config)
        pipeline = FluxPipeline.from_pipe(shared, scheduler=scheduler)
        pipeline.set_progress_bar_config(disable=True)
        loop = asyncio.get_running_loop()
        (picture,) = await loop.run_in_executor(None, lambda: drawing.draw(pipeline, [asked]))
        name = f"draw{uuid.uuid4()}.png"
        picture.save(folder / name)
        return {"data": [{"url": f"/images/{name}"}]}

    return app


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        uvicorn.run(build(Path(folder)), host="127.0.0.1", port=int(sys.argv[1]), log_config=None)


if __name__ == "__main__":
    main()
