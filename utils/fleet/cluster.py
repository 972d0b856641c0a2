"""Ray Serve, as a front door uses it: how many places the cluster has, one application for each precision.

Calls block. `connect` comes before anything else, from the main thread: Ray takes signals when it starts.
"""

from __future__ import annotations

import importlib
import logging
import threading
from typing import Any

from models.precision import known_precisions
from utils.fleet.board import BOARD, Seat

log = logging.getLogger(__name__)

NAMESPACE = "flux"
SERVE_NAMESPACE = "serve"
REPLICA = "utils.fleet.replica:Replica"
ROUTER = "utils.fleet.request_router.FleetRequestRouter"
REPORT_SECONDS = 5.0
HEALTH_SECONDS = 5.0
HEALTH_TIMEOUT_SECONDS = 60.0
# A replica that is to end has been told to leave its jobs before.
END_SECONDS = 5.0
SHUTDOWN_SECONDS = 10.0  # a machine that is gone would be waited for
MAX_CALLS = 64  # at a replica at once; whether a job is taken is its worker's word
# That wait here for each replica, because it has so many; beyond, Ray refuses a call and the job stays in our line.
MAX_WAITING_CALLS = 16


class Cluster:
    """`replica` is the class of its replicas, `version` of their code."""

    def __init__(self, version: str, replica: str = REPLICA) -> None:
        self._version = version
        self._replica = replica
        self._handles: dict[str, Any] = {}
        self._counts: dict[str, int] = {}
        self._turn = threading.Lock()
        self._is_connected = False

    def connect(self, address: str) -> None:
        import ray
        from ray import serve

        for name in ("ray", "ray.serve"):
            logging.getLogger(name).setLevel(logging.WARNING)
        ray.init(
            address=address,
            namespace=NAMESPACE,
            log_to_driver=False,
            configure_logging=False,
        )
        self._is_connected = True
        serve.start(proxy_location="Disabled")  # the front door is ours

    def places(self) -> dict[str, int]:
        """How many replicas of each precision the machines of the cluster have room for."""
        import ray

        total = ray.cluster_resources()
        return {name: int(total[name]) for name in known_precisions() if total.get(name, 0) >= 1}

    def fill(self) -> dict[str, Any]:
        """Have a replica at every place; returns Ray's handles by deployment."""
        with self._turn:
            for precision, count in self.places().items():
                if self._counts.get(precision) != count:
                    self._handles[precision] = self._deploy(precision, count)
                    self._counts[precision] = count
                    log.info(
                        "the fleet has %d places for %s replicas",
                        count,
                        precision,
                        extra={"action": "fleet_places"},
                    )
            return dict(self._handles)

    def find(self) -> dict[str, Any]:
        """Ray's handles of the deployments that another front door made."""
        from ray import serve

        with self._turn:
            self._counts.clear()  # another door's word counts
            there = serve.status().applications
            for precision in known_precisions():
                if f"flux-{precision}" in there and precision not in self._handles:
                    handle = serve.get_deployment_handle(precision, f"flux-{precision}")
                    _begin_to_route(handle)
                    self._handles[precision] = handle
            return dict(self._handles)

    def _deploy(self, precision: str, count: int) -> Any:
        from ray import serve
        from ray.serve.config import RequestRouterConfig

        module, _, name = self._replica.partition(":")
        deployment = serve.deployment(
            getattr(importlib.import_module(module), name),
            name=precision,
            num_replicas=count,
            max_ongoing_requests=MAX_CALLS,
            max_queued_requests=MAX_WAITING_CALLS * count,
            health_check_period_s=HEALTH_SECONDS,
            health_check_timeout_s=HEALTH_TIMEOUT_SECONDS,
            graceful_shutdown_timeout_s=END_SECONDS,
            graceful_shutdown_wait_loop_s=0.2,
            ray_actor_options={"num_cpus": 0, "resources": {precision: 1}},
            request_router_config=RequestRouterConfig(
                request_router_class=ROUTER,
                request_router_kwargs={"board": BOARD},
                request_routing_stats_period_s=REPORT_SECONDS,
            ),
        )
        # Serve draws one at random for each deployment and then ends all replicas; the same one again leaves
        # them, with their models, as they are.
        deployment._version = self._version
        (handle,) = serve.run_many(
            [
                serve.RunTarget(
                    target=deployment.bind(precision),
                    name=f"flux-{precision}",
                    route_prefix=None,
                )
            ],
            wait_for_applications_running=False,
        )
        _begin_to_route(handle)
        return handle

    def end_process(self, seat: Seat) -> None:
        """End a replica's process, which does not answer; Ray starts another in its place."""
        import ray

        try:
            ray.kill(ray.get_actor(seat.actor, namespace=SERVE_NAMESPACE), no_restart=True)
        except ValueError:
            pass  # it is gone

    def end(self, *, with_replicas: bool = True) -> None:
        """Let go of the cluster, and have the replicas of other machines ended, as far as those answer.

        This machine's end with its Ray. A front door beside the first leaves all of them as they are.
        """
        if not self._is_connected:
            return
        import ray
        from ray import serve

        if with_replicas and sum(node["Alive"] for node in ray.nodes()) > 1:
            ending = threading.Thread(target=serve.shutdown, name="serve's end", daemon=True)
            ending.start()
            ending.join(SHUTDOWN_SECONDS)
        ray.shutdown()


def _begin_to_route(handle: Any) -> None:
    """The router is made with the first call otherwise, and it is what tells who is there."""
    if not handle.is_initialized:
        handle._init()
