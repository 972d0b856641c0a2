"""Another application in a fleet's Ray cluster, in a process of its own: `python -m tests.fleet_neighbour ADDRESS`.

It says a line for each thing that it has done, and goes on when it is sent one.
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import replace

from api.version import VERSION
from models.types import GenerationRequest, OutputFormat
from utils.fleet import cluster

REPLICA = "tests.fleet_replica:ScriptedReplica"
REQUEST = GenerationRequest(
    prompt="a cat", negative_prompt=None, model="embedded", backend="flux", width=128, height=128,
    num_inference_steps=2, guidance_scale=0.0, true_cfg_scale=1.0, seed=7, num_images=1,
    output_format=OutputFormat.PNG, output_quality=95, tags=(),
)  # fmt: skip


def say(words: str) -> None:
    print(words, flush=True)


def run(handle, job_id: str, prompt: str):
    request = json.dumps(replace(REQUEST, prompt=prompt).to_json())
    return handle.options(method_name="run", stream=True).remote(job_id, request)


async def main(fleet: cluster.Cluster, anybody) -> None:
    parts = [each async for each in run(anybody, "unbound", "a cat")]
    say(f"{parts[0]} {parts[1][1][1:4].decode()}")

    await asyncio.to_thread(sys.stdin.readline)
    # A replica that takes two calls, of which the front door has one, and one more that waits for it.
    calls, waiting = cluster.MAX_CALLS, cluster.MAX_WAITING_CALLS
    cluster.MAX_CALLS, cluster.MAX_WAITING_CALLS = 2, 1
    handle = await asyncio.to_thread(fleet._deploy, "fp4", 1)
    drawn = aiter(run(handle, "neighbour", "hold neighbour"))
    say(f"holds: {await anext(drawn)}")

    await asyncio.to_thread(sys.stdin.readline)
    cluster.MAX_CALLS, cluster.MAX_WAITING_CALLS = calls, waiting
    await asyncio.to_thread(fleet._deploy, "fp4", 1)
    parts = [each async for each in drawn]
    say(f"held: {len(parts)}")


if __name__ == "__main__":
    beside = cluster.Cluster(f"{VERSION}-{REPLICA}", REPLICA)
    beside.connect(sys.argv[1])
    from ray import serve

    asyncio.run(main(beside, serve.get_app_handle("flux-bf16")))
