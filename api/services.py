"""Everything a route may use, built once at start and kept on `app.state`."""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, Request
from starlette.requests import HTTPConnection

from api.auth import EVERYBODY, Access, access_of
from api.input_sources import InputSources, Looked
from config.catalog import (
    Catalog,
    DefaultModel,
    ModelRow,
    choose_backend_defaults,
    choose_default,
    load_catalog,
    with_defaults,
)
from config.errors import (
    BadPicture,
    ConfigurationError,
    InvalidRequest,
    ModelUnavailable,
    NotFound,
)
from config.settings import ModelSettings, Settings
from models import safety
from models.bfl_prices import Prices, load_prices
from models.families import mflux_command
from models.hub import on_disk
from models.precision import FLEET, PrecisionProfile, known_precisions, profile_of
from models.types import GenerationRequest
from utils import systemd
from utils.allowance import Allowance
from utils.cleanup_service import CleanupService
from utils.clock import Chance
from utils.cloud_tasks import CloudTasks
from utils.database.postgres import PostgresDatabase
from utils.fleet.crew import Crew
from utils.fleet.doors import Doors
from utils.fleet.queue import FleetQueue
from utils.fleet.roster import FleetLoras, FleetResolver
from utils.fleet.shared_files import INPUT, LORA, PICTURE, SharedFiles
from utils.fleet.usage import FleetUsage
from utils.gpu_manager import Placement, place_workers
from utils.input_pictures import InputPicture, InputPictures, inputs_folder, reference_field
from utils.job import Job, StoredImage
from utils.job_store import JobStore
from utils.keyring import Keyring
from utils.line import Lane
from utils.lora_manager import LoraManager
from utils.model_files import ModelFiles
from utils.queue_manager import QueueManager, WorkerOutcome
from utils.requests import RequestResolver, Wanted
from utils.usage import Usage
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
    loras: LoraManager
    chance: Chance
    keys: Keyring
    node: str
    prices: Prices
    crew: Crew | None = None  # of a fleet's front door


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """The plan and the running queue, for one caller: `access` says whose jobs and pictures it sees."""

    plan: Plan
    queue: QueueManager
    sources: InputSources
    usage: Usage | FleetUsage
    cleanup: CleanupService
    doors: Doors | None = None  # of a fleet with several
    access: Access = EVERYBODY

    async def job(self, job_id: str) -> Job:
        """A job of the caller. Raises NotFound, also for another's."""
        job = await self.queue.get(job_id)
        if not self.access.sees(job.owner):
            raise self.queue.no_such_job(job_id)
        return job

    async def image(self, image_id: str) -> StoredImage:
        """A picture of the caller. Raises NotFound, also for another's."""
        return self._seen(await self.queue.store.image(image_id), image_id)

    async def image_by_filename(self, filename: str) -> StoredImage:
        return self._seen(await self.queue.store.image_by_filename(filename), filename)

    @property
    def shared(self) -> SharedFiles | None:
        """The files that every front door of a fleet may need."""
        return None if self.doors is None else self.doors.files

    async def picture(self, filename: str) -> Path:
        """Where a picture's file lies, if it lies anywhere."""
        if self.shared is not None:
            await self.shared.fetch(PICTURE, filename)
        return self.plan.settings.storage.output_dir / filename

    async def load(self, row: ModelRow) -> list[WorkerOutcome]:
        """Load a model on every idle worker; some may have failed. Raises FluxError when none has it."""
        self.plan.resolver.require_runs_here(row)
        if row.cloud is not None:
            raise InvalidRequest.of(
                "model",
                f"{row.id} is drawn by BFL's cloud; there is nothing to load, ask for a picture",
            )
        outcomes = await self.queue.load_model(row.id)
        if not any(outcome.done for outcome in outcomes):
            reasons = "; ".join(f"worker {each.worker}: {each.reason}" for each in outcomes)
            raise ModelUnavailable(f"{row.id} was not loaded: {reasons}", retry_after_seconds=30)
        return outcomes

    def _seen(self, image: StoredImage | None, name: str) -> StoredImage:
        if image is None or not self.access.sees(image.owner):
            raise NotFound(f"there is no picture {name[:64]!r}")
        return image

    def is_welcome(self) -> bool:
        """Whether the caller may still be told something: its key works, or none is asked for as before."""
        keys, owner = self.plan.keys, self.access.owner
        return keys.is_in_use(owner) if owner else not keys.are_needed

    @property
    def only_of(self) -> str | None:
        """The owner whose jobs and pictures are all that the caller sees; None: it sees everybody's."""
        return None if self.access.sees_all else self.access.owner

    async def resolve(self, wanted: Wanted) -> GenerationRequest:
        """A client's request with nothing left open, its LoRAs fetched and its pictures kept. Raises FluxError."""
        if wanted.loras or wanted.ways:
            self.plan.resolver.checked(wanted)  # before anything is fetched or kept for it
        await self.plan.loras.prepare(wanted.loras or ())
        if not wanted.ways:
            return self.plan.resolver.resolve(wanted)
        image, mask = await self._look("image", wanted.image), await self._look("mask", wanted.mask)
        if image is not None and mask is not None:
            _require_one_size(image.picture, mask.picture)
        references = [
            await self.sources.look(reference_field(index), source, self.only_of)
            for index, source in enumerate(wanted.reference_images)
        ]
        # Nothing of a request that is refused stays: the pictures are kept last.
        request = self.plan.resolver.resolve(
            wanted,
            image=None if image is None else image.picture,
            mask=None if mask is None else mask.picture,
            references=[looked.picture for looked in references],
        )
        for looked in filter(None, (image, mask, *references)):
            await self.sources.keep(looked)
        return request

    async def _look(self, field: str, source: str | bytes | None) -> Looked | None:
        return None if source is None else await self.sources.look(field, source, self.only_of)


def _require_one_size(image: InputPicture, mask: InputPicture) -> None:
    if (mask.width, mask.height) != (image.width, image.height):
        raise BadPicture.of(
            "mask",
            f"has {mask.width}x{mask.height} px and the image {image.width}x{image.height}; "
            "send a mask of the image's size",
        )


def make_plan(
    settings: Settings,
    profile: PrecisionProfile,
    chance: Chance | None = None,
    crew: Crew | None = None,
) -> Plan:
    """Raises ConfigurationError when the settings ask for what is not there. With a crew, it is a fleet's plan."""
    chance = chance or Chance()
    settings = _with_own_engine(settings, profile)
    catalog = mflux_command.quantised(load_catalog(), settings.models.mflux_quantize)
    local = settings.models
    catalog = with_defaults(
        catalog,
        "flux-local",
        num_inference_steps=local.local_steps,
        guidance_scale=None if local.local_guidance_scale == "auto" else local.local_guidance_scale,
        max_size=local.local_max_image_size,
    )
    placement = place_workers(settings.worker)
    default = choose_default(
        catalog, settings.models.model, placement.gpu_names, placement.why_no_gpu
    )
    keys = Keyring(settings, chance)
    keys.require()
    if crew is None:
        _require_no_database(settings, profile)
        _require_safety(settings, catalog)
    make_loras = LoraManager if crew is None else FleetLoras
    loras = make_loras(settings, profile, catalog, chance)
    models = settings.models
    backend_defaults = choose_backend_defaults(
        catalog,
        {
            "sd": ("FLUX_SD_MODEL_ID (or SD_MODEL_ID)", models.sd_model_id),
            "flux-local": ("FLUX_LOCAL_MODEL_ID (or SD_FLUX_MODEL_ID)", models.local_model_id),
        },
    )
    make_resolver = RequestResolver if crew is None else partial(FleetResolver, roster=crew.roster)
    resolver = make_resolver(
        catalog, default, profile, placement, chance, loras, settings.cloud, backend_defaults,
        settings.models, ModelFiles(settings.models, profile),
    )  # fmt: skip
    if catalog.of_cloud(settings.cloud.bfl_default_model) is None:
        names = ", ".join(row.source for row in catalog if row.cloud is not None)
        raise ConfigurationError(
            f"FLUX_BFL_DEFAULT_MODEL = {settings.cloud.bfl_default_model!r}: BFL's cloud has no such model; "
            f"it has {names}"
        )
    _prefer_backend(resolver, settings.models)
    return Plan(
        settings=settings,
        profile=profile,
        catalog=catalog,
        placement=placement,
        default=resolver.default,
        resolver=resolver,
        loras=loras,
        chance=chance,
        keys=keys,
        node=settings.fleet.fleet_node or socket.gethostname(),
        prices=load_prices(catalog),
        crew=crew,
    )


def _prefer_backend(resolver: RequestResolver, models: ModelSettings) -> None:
    """FLUX_DEFAULT_BACKEND, where no model is named that says more."""
    backend = models.default_backend
    if backend == "auto":
        return
    name = "FLUX_DEFAULT_BACKEND (or SD_DEFAULT_BACKEND)"
    known = sorted({row.backend for row in resolver.catalog})
    if backend not in known:
        raise ConfigurationError(
            f"{name} = {backend!r}: there is no such backend; there is: auto, {', '.join(known)}"
        )
    if models.model == "auto":
        resolver.prefer(backend, f"set by configuration ({name})")


def _require_no_database(settings: Settings, profile: PrecisionProfile) -> None:
    """What was meant for a fleet must not look as if this service kept its jobs there."""
    if settings.fleet.database_url.get_secret_value():
        raise ConfigurationError(
            f"FLUX_DATABASE_URL is for a fleet's front door (./start_fleet.sh); {profile.service} keeps its jobs in "
            "a file of FLUX_DATA_DIR. Set it for the fleet alone, such as in config/fleet.toml: [fleet] database_url"
        )


def _require_safety(settings: Settings, catalog: Catalog) -> None:
    """What must not be given out unseen, or by a checker that was named, needs its weights."""
    models = settings.models
    if models.safety_checker == "off":
        return
    hub = on_disk.hub_folder(models.models_dir)
    weights, why_not = safety.find(models.safety_model, hub, catalog)
    if weights is not None:
        return
    if models.safety_checker == "block" or models.safety_model != "auto":
        name = (
            "FLUX_SAFETY_CHECKER = block" if models.safety_model == "auto" else "FLUX_SAFETY_MODEL"
        )
        raise ConfigurationError(f"{name}: {why_not}, or set FLUX_SAFETY_CHECKER=off")
    log.info("pictures are not looked at: %s", why_not, extra={"action": "no_safety_checker"})


def _with_own_engine(settings: Settings, profile: PrecisionProfile) -> Settings:
    """FLUX_ENGINE is one name for all services of a machine: another service's engine means `auto` here."""
    engine = settings.models.engine
    if engine in ("auto", *profile.engines):
        return settings
    others = [each for name in known_precisions() for each in profile_of(name).engines]
    if engine not in others:
        accepted = dict.fromkeys(("auto", *profile.engines, *others))
        raise ConfigurationError(
            f"FLUX_ENGINE = {engine!r}: there is no such engine; accepted are {', '.join(accepted)}"
        )
    log.info(
        "FLUX_ENGINE = %s is no engine of the %s service, which chooses its own",
        engine,
        profile.title,
        extra={"action": "engine_of_another"},
    )
    models = settings.models.model_copy(update={"engine": "auto"})
    return settings.model_copy(update={"models": models})


@asynccontextmanager
async def running(plan: Plan) -> AsyncIterator[Services]:
    """Open the store and start the workers; on exit let running jobs end and stop."""
    storage = plan.settings.storage
    inputs = InputPictures(inputs_folder(storage.data_dir, plan.profile.name))
    doors = _doors(plan, inputs)
    if doors is None:
        store = await JobStore.open(storage.data_dir / f"{plan.profile.name}.sqlite3")
    else:
        store = await JobStore.of(doors.database)
    tasks = CloudTasks(store, plan.chance.now, plan.settings.cloud.bfl_daily_budget_usd)
    usage: Usage | FleetUsage = Usage(storage.data_dir, (*known_precisions(), FLEET.name))
    if doors is not None:
        usage = FleetUsage(store)

    def make_workers(queue: QueueManager) -> list[Worker]:
        workers: list[Any] = []
        if plan.crew is None:
            workers = [
                Worker(slot, plan.profile, plan.settings, plan.default, queue)
                for slot in plan.placement.slots
            ]
        if plan.resolver.cloud_models:
            from utils.cloud_worker import CloudWorker  # it brings an HTTP client

            workers.append(
                CloudWorker(
                    plan.settings, plan.catalog, plan.prices, tasks, inputs.folder, queue,
                    None if doors is None else doors.files.fetch_inputs,
                )
            )  # fmt: skip
        return workers

    make_queue = QueueManager if plan.crew is None else FleetQueue
    queue = make_queue(
        store,
        make_workers,
        lambda worker: (
            plan.resolver.cloud_models
            if worker.lane is Lane.CLOUD
            else plan.resolver.models_on(worker.slot)
        ),
        plan.settings,
        plan.chance,
        _to_load(plan),
        plan.loras.pins,
        inputs,
        _allowance(plan, usage),
    )
    log.info(
        "%s draws with %s: %s",
        plan.profile.service,
        plan.default.id,
        plan.default.reason,
        extra={"action": "service_start", "model": plan.default.id},
    )
    try:
        if doors is not None:
            doors.share(queue, plan.crew, plan.loras)
        await plan.keys.open()
        await plan.loras.start(store, queue.bus)
        await queue.start()
        if plan.crew is None:
            await queue.tell_stranded()
        else:
            await plan.crew.open(queue, plan.default, plan.loras.pins.folder, inputs.folder)
        if doors is not None:
            await doors.start()
    except BaseException:
        await plan.keys.close()
        await store.close()
        if doors is not None:
            doors.database.end()
        raise
    cleanup = CleanupService(
        plan.settings, store, plan.chance.now, is_ours=lambda: doors is None or doors.routes
    )
    cleanup.start()
    watchdog = asyncio.create_task(systemd.feed_watchdog(queue.is_well), name="watchdog")
    try:
        shared = None if doors is None else doors.files
        sources = InputSources(plan.settings, store, inputs, shared)
        yield Services(
            plan=plan, queue=queue, sources=sources, usage=usage, cleanup=cleanup, doors=doors
        )
    finally:
        await cleanup.stop()
        await plan.loras.stop()
        if plan.crew is not None:
            await plan.crew.close()
        await queue.stop()
        if doors is not None:
            await doors.release()
        await plan.keys.close()
        watchdog.cancel()


def _doors(plan: Plan, inputs: InputPictures) -> Doors | None:
    """This front door among others, where jobs are kept in a database that they share."""
    url = plan.settings.fleet.database_url.get_secret_value()
    if plan.crew is None or not url:
        return None
    database = PostgresDatabase(url, secrets.token_hex(8))
    storage = plan.settings.storage
    folders = {PICTURE: storage.output_dir, LORA: plan.loras.pins.folder, INPUT: inputs.folder}

    def lora_at(sha256: str) -> Path | None:
        entry = plan.loras.library.by_sha256(sha256)
        return None if entry is None else entry.path

    files = SharedFiles(database, folders, lora_at)
    return Doors(database, files, f"{plan.node}:{plan.settings.server.port}")


def _to_load(plan: Plan) -> str:
    """The model that a worker loads without a request: the default, or where the cloud draws that, one of ours."""
    if plan.catalog[plan.default.id].cloud is None:
        return plan.default.id
    gpus = plan.placement.gpu_names
    return choose_default(plan.catalog, "auto", gpus, plan.placement.why_no_gpu).id


def _allowance(plan: Plan, usage: Usage | FleetUsage) -> Allowance:
    return Allowance(
        limits_of=plan.keys.limits_of,
        estimate=lambda request: plan.prices.estimate(plan.catalog[request.model], request),
        usage=usage,
        daily_usd=plan.settings.cloud.bfl_daily_budget_usd,
        now=plan.chance.now,
    )


async def services_of(request: Request) -> Services:
    """A coroutine, because the framework runs plain functions in a thread, which costs more than this."""
    return services_for(request)


def services_for(connection: HTTPConnection) -> Services:
    """The services as the caller may see them."""
    services: Services = connection.app.state.services
    access = access_of(connection)
    return services if access is EVERYBODY else replace(services, access=access)


ServicesDep = Annotated[Services, Depends(services_of)]
