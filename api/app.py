"""The application: what it is made of, in one list."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from api import document, errors
from api.auth import Guard
from api.dialects import installed
from api.json_body import QuickPost
from api.middleware import Gate, HeadAsGet
from api.routes import (
    cleanup,
    events,
    generate,
    images,
    jobs,
    keys,
    loras,
    metrics,
    models,
    older,
    page,
    queue,
    service,
    usage,
)
from api.services import Plan, running
from api.version import VERSION
from config.errors import ConfigurationError


def create_app(plan: Plan) -> FastAPI:
    """The service of a plan. Nothing is opened or started before the application's lifespan begins."""
    server = plan.settings.server

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            async with running(plan) as services:
                app.state.services = services
                yield
        except ConfigurationError as error:
            app.state.refused = error
            raise

    app = FastAPI(
        title=f"FLUX API, {plan.profile.title}",
        version=VERSION,
        description="Self-hosted FLUX: prompts in, pictures out.",
        lifespan=lifespan,
        docs_url=None,  # the library's page loads its script from elsewhere; ours is routes/page.py
        redoc_url=None,
        # Nobody configures it here, and asking for every request whether somebody has takes its time.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    document.describe(app, plan.keys)
    errors.install(app)

    installed.install(app)
    for module in (
        jobs,
        generate,
        events,
        images,
        loras,
        models,
        queue,
        keys,
        usage,
        older,
        cleanup,
        metrics,
        service,
        page,
    ):
        app.include_router(module.router)
    page.mount(app)

    app.add_middleware(HeadAsGet)
    app.add_middleware(QuickPost, path="/jobs", endpoint=jobs.submit, status=202)
    app.state.refusals = Counter()
    guard = Guard(plan.keys, plan.chance.monotonic)
    app.add_middleware(
        Gate, settings=server, guard=guard, refusals=app.state.refusals
    )  # added last: outermost
    return app
