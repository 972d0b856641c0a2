"""How Ray Serve finds a replica for a call.

The front door decides by itself who draws what (`fleet/routing.py`), because it has the whole line before
it: its calls name their replica with `to`. A call that names none, of another application in the cluster, goes
to the best by the same rules and what the replicas report.

Ray takes this module apart and puts it together in other processes, so what is ours is imported where it is used.
"""

from __future__ import annotations

import itertools

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica


class FleetRequestRouter(RequestRouter):
    """Its `request_router_kwargs` are `board`, the name of the process' board."""

    def initialize_state(self, board: str) -> None:
        self._board = board

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        super().update_replicas(replicas)
        self._show(replicas)

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        super().on_replica_actor_died(replica_id)
        self._show(list(self.curr_replicas.values()))

    def _show(self, replicas: list[RunningReplica]) -> None:
        from utils.fleet.board import Seat, board_of

        deployment = self._deployment_id.name
        seats = {
            replica.replica_id.unique_id: Seat(
                id=replica.replica_id.unique_id,
                actor=replica.replica_id.to_full_id_str(),
                deployment=deployment,
                ray_node=replica.node_id,
            )
            for replica in replicas
        }
        board_of(self._board).show(deployment, seats)

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        if pending_request is None:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True  # between two looks at who is there
        named = pending_request.kwargs.get("to")
        if named is not None:
            return [[each for each in candidate_replicas if each.replica_id.unique_id == named]]
        return self._by_rank(candidate_replicas, pending_request)

    def _by_rank(
        self, candidates: list[RunningReplica], pending: PendingRequest
    ) -> list[list[RunningReplica]]:
        from fleet.preference import rank
        from utils.fleet.report import stats_of
        from utils.fleet.wants import wanted_of_json

        by_id = {each.replica_id.unique_id: each for each in candidates}
        reports = [stats_of(each.routing_stats) for each in candidates if each.routing_stats]
        ranked = rank(wanted_of_json(*pending.args[:2]), reports)
        return [
            [by_id[one.replica] for one in group]
            for _, group in itertools.groupby(ranked, key=lambda one: one.tier)
        ]
