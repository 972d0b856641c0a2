"""Everything a route may use, built once at start and kept on `app.state`."""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from config.catalog import Catalog, DefaultModel, choose_default, load_catalog
from config.settings import Settings
from models.precision import PrecisionProfile
from utils.clock import Chance
from utils.gpu_manager import Placement, place_workers
from utils.job_store import JobStore
from utils.queue_manager import QueueManager
from utils.requests import RequestResolver
from utils.worker.parent import Worker

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is known before anything runs: settings, models, GPUs, the default model."""

    settings: Settings
    profile: PrecisionProfile
    catalog: Catalog
    placement: Placement
    default: DefaultModel
    resolver: RequestResolver
    chance: Chance
    node: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """The plan and the running queue."""

    plan: Plan
    queue: QueueManager


def make_plan(settings: Settings, profile: PrecisionProfile, chance: Chance | None = None) -> Plan:
    """Raises ConfigurationError when the settings ask for what is not there."""
    chance = chance or Chance()
    catalog = load_catalog()
    placement = place_workers(settings.worker)
    default = choose_default(
        catalog, settings.models.model, placement.gpu_names, placement.why_no_gpu
    )
    resolver = RequestResolver(catalog, default, profile, placement, chance)
    return Plan(
        settings=settings,
        profile=profile,
        catalog=catalog,
        placement=placement,
        default=resolver.default,
        resolver=resolver,
        chance=chance,
        node=socket.gethostname(),
    )


@asynccontextmanager
async def running(plan: Plan) -> AsyncIterator[Services]:
    """Open the store and start the workers; on exit let running jobs end and stop."""
    store = await JobStore.open(plan.settings.storage.data_dir / f"{plan.profile.name}.sqlite3")

    def make_workers(queue: QueueManager) -> list[Worker]:
        return [
            Worker(slot, plan.profile, plan.settings, plan.default, queue)
            for slot in plan.placement.slots
        ]

    queue = QueueManager(store, make_workers, plan.settings, plan.chance, plan.default.id)
    log.info(
        "%s draws with %s: %s",
        plan.profile.service,
        plan.default.id,
        plan.default.reason,
        extra={"action": "service_start", "model": plan.default.id},
    )
    await queue.start()
    try:
        yield Services(plan=plan, queue=queue)
    finally:
        await queue.stop()


def services_of(request: Request) -> Services:
    return request.app.state.services


ServicesDep = Annotated[Services, Depends(services_of)]
