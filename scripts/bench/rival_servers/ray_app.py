"""Ray Serve: an ingress and a deployment with the pipeline, as its tutorial on Stable Diffusion has them.

With `4` behind the port up to four requests that are there are drawn in one call, as its guide to batching has it.
https://docs.ray.io/en/latest/serve/tutorials/stable-diffusion.html and .../serve/advanced-guides/dyn-req-batch.html
"""

import logging
import os
import signal
import sys
import tempfile
import threading
from typing import Any

import ray
from fastapi import FastAPI
from fastapi.responses import Response
from ray import serve
from ray.serve.handle import DeploymentHandle

from config.settings import ROOT
from scripts.bench.rival_servers import drawing

BATCH_TIMEOUT_SECONDS = 0.05
app = FastAPI()


@serve.deployment(num_replicas=1)
@serve.ingress(app)
class Ingress:
    def __init__(self, model: DeploymentHandle) -> None:
        self.model = model

    @app.post("/imagine", response_class=Response)
    async def imagine(self, asked: drawing.Asked) -> Response:
        picture = await self.model.draw.remote(asked)
        return Response(drawing.png(picture), media_type="image/png")


class One:
    def __init__(self) -> None:
        self.pipeline = drawing.load()
        self.one_at_a_time = (
            threading.Lock()
        )  # Ray calls from several threads, which a pipeline cannot take

    def draw(self, asked: drawing.Asked) -> Any:
        with self.one_at_a_time:
            return drawing.draw(self.pipeline, [asked])[0]


class Several(One):
    @serve.batch(max_batch_size=4, batch_wait_timeout_s=BATCH_TIMEOUT_SECONDS)
    async def draw(self, asked: list[drawing.Asked]) -> list[Any]:
        return drawing.draw(self.pipeline, asked)


def main() -> None:
    port, batch = int(sys.argv[1]), sys.argv[2:]
    # All requests of a client may wait in the replica; and it has as many threads as every other server.
    model = serve.deployment(
        Several if batch else One,
        name="Model",
        max_ongoing_requests=100,
        ray_actor_options={"num_cpus": os.cpu_count()},
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with tempfile.TemporaryDirectory() as folder:
        ray.init(
            num_cpus=2 * (os.cpu_count() or 1) + 2,  # logical ones: the proxy and the ingress too
            include_dashboard=False,
            object_store_memory=100 * 2**20,
            logging_level=logging.ERROR,
            log_to_driver=False,
            _temp_dir=folder,
            runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
        )
        try:
            serve.start(http_options={"host": "127.0.0.1", "port": port})
            serve.run(Ingress.bind(model.bind()))
            signal.pause()
        finally:
            serve.shutdown()
            ray.shutdown()


if __name__ == "__main__":
    main()
