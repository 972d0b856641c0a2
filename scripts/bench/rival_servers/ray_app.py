"""Ray Serve: an ingress and a deployment with the pipeline, as its tutorial on Stable Diffusion has them.

https://docs.ray.io/en/latest/serve/tutorials/stable-diffusion.html
"""

import logging
import os
import signal
import sys
import tempfile
from typing import Any

import ray
from fastapi import FastAPI
from fastapi.responses import Response
from ray import serve
from ray.serve.handle import DeploymentHandle

from config.settings import ROOT
from scripts.bench.rival_servers import drawing

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


# All requests of a client may wait in the replica; and as many threads as every other server has.
@serve.deployment(max_ongoing_requests=100, ray_actor_options={"num_cpus": os.cpu_count()})
class Model:
    def __init__(self) -> None:
        self.pipeline = drawing.load()

    def draw(self, asked: drawing.Asked) -> Any:
        return drawing.draw(self.pipeline, [asked])[0]


def main() -> None:
    port = int(sys.argv[1])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # its sockets' names must be short
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
            serve.run(Ingress.bind(Model.bind()))
            signal.pause()
        finally:
            serve.shutdown()
            ray.shutdown()


if __name__ == "__main__":
    main()
