"""What the shell offers to complete: names that the settings or a service know. Where nobody answers, nothing."""

from __future__ import annotations

from cli.failures import Failure
from cli.session import Session, own_key


def model_ids(incomplete: str) -> list[str]:
    from config.catalog import load_catalog

    return [model for model in load_catalog().ids if model.startswith(incomplete)]


def lora_names(incomplete: str) -> list[str]:
    try:
        with own_key() as key, Session(key=key).client() as client:
            names = [lora["name"] for lora in client.ask("GET", "/loras")["loras"]]
    except Failure:
        return []
    return [name for name in names if name.startswith(incomplete)]


def job_ids(incomplete: str) -> list[str]:
    try:
        with own_key() as key, Session(key=key).client() as client:
            jobs = client.ask("GET", "/jobs", params={"limit": 50})["jobs"]
    except Failure:
        return []
    return [job["id"] for job in jobs if job["id"].startswith(incomplete)]
