"""LitServe: a LitAPI with one worker; with `--batch N` up to N requests that are there are drawn in one call.

https://lightning.ai/docs/litserve/api-reference/litapi and .../features/batching
"""

import argparse
from typing import Any

import litserve
from fastapi import Response

from scripts.bench.rival_servers import drawing

BATCH_TIMEOUT_SECONDS = 0.05  # the documentation's example


class One(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.pipeline = drawing.load()

    def decode_request(self, request: drawing.Asked) -> drawing.Asked:
        return request

    def predict(self, asked: drawing.Asked) -> Any:
        return drawing.draw(self.pipeline, [asked])[0]

    def encode_response(self, output: Any) -> Response:
        return Response(drawing.png(output), media_type="image/png")


class Several(One):
    def predict(self, asked: list[drawing.Asked]) -> list[Any]:
        return drawing.draw(self.pipeline, asked)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--batch", type=int, default=1)
    options = parser.parse_args()
    if options.batch > 1:
        api = Several(max_batch_size=options.batch, batch_timeout=BATCH_TIMEOUT_SECONDS)
    else:
        api = One()
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, timeout=False)
    server.run(host="127.0.0.1", port=options.port, log_level="warning", generate_client_file=False)


if __name__ == "__main__":
    main()
