"""The application: what it is made of, in one list."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

from api import errors
from api.middleware import AnswerFailures, Authenticate, BodyLimit, HostAndOrigin, RequestContext
from api.routes import (
    events,
    generate,
    images,
    jobs,
    loras,
    models,
    not_built,
    page,
    queue,
    service,
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
        responses={"4XX": errors.PROBLEM_RESPONSE, "5XX": errors.PROBLEM_RESPONSE},
    )
    errors.describe_in_openapi(app)
    errors.install(app)

    for module in (jobs, generate, events, images, loras, models, queue, service, page, not_built):
        app.include_router(module.router)
    page.mount(app)

    # Added from the inside out.
    app.add_middleware(AnswerFailures)
    app.add_middleware(BodyLimit, settings=server)
    app.add_middleware(Authenticate, settings=server)
    app.add_middleware(
        CORSMiddleware,
        allow_origins=list(server.page_origins),
        allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
        allow_headers=["*"],
        expose_headers=[
            "X-Job-Id",
            "X-Seed",
            "X-Model",
            "X-Generation-Time",
            "X-Request-Id",
            "Retry-After",
        ],
    )
    app.add_middleware(HostAndOrigin, settings=server)
    app.add_middleware(RequestContext)
    return app
