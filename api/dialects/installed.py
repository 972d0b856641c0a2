"""The dialects that a service speaks."""

from __future__ import annotations

from fastapi import FastAPI

from api import delivery
from api.dialects import openai

MODULES = (delivery, openai)


def install(app: FastAPI) -> None:
    app.state.delivery = delivery.Delivery()
    for module in MODULES:
        app.include_router(module.router)
