"""The dialects that a service speaks."""

from __future__ import annotations

from fastapi import FastAPI

from api import delivery
from api.dialects import (
    bfl,
    comfy,
    comfy_runs,
    comfy_socket,
    fleet,
    iti,
    openai,
    sdapi,
    sdapi_lists,
    sdapi_runs,
)

MODULES = (
    delivery, openai, sdapi, sdapi_lists, fleet, iti, comfy, comfy_socket, bfl,
)  # fmt: skip


def install(app: FastAPI) -> None:
    app.state.delivery = delivery.Delivery()
    app.state.sdapi = sdapi_runs.Runs()
    app.state.comfy = comfy_runs.Runs()
    for module in MODULES:
        app.include_router(module.router)
