"""What the environment and .env say that nobody reads, or that contradicts itself."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scripts.diagnosis.machine import Finding, State

TOKENS = ("HF_TOKEN", "SD_HUGGINGFACE_TOKEN")


def look_at(root: Path, environ: Mapping[str, str] = os.environ) -> list[Finding]:
    """Nothing to say of an environment in which all is well."""
    try:
        from utils.backup.places import dotenv

        in_file = dotenv(root / ".env")
    except (ImportError, OSError, ValueError):
        in_file = {}  # it has a line with each service's settings
    return [*_token_in_file(in_file, environ), *_open_file(root / ".env", in_file), *_ports()]


def lacks_token(is_gated: bool, setting: Any, environ: Mapping[str, str] = os.environ) -> bool:
    """Whether a model's files are given to those with a token alone, and the service has none."""
    return is_gated and not (
        setting.get_secret_value().strip() or any(environ.get(name) for name in TOKENS)
    )


def _token_in_file(in_file: Mapping[str, str], environ: Mapping[str, str]) -> list[Finding]:
    name = "HF_TOKEN"
    if not in_file.get(name) or environ.get(name) or in_file.get("FLUX_HF_TOKEN"):
        return []
    return [
        Finding(
            name=".env",
            state=State.WRONG,
            text=f"it sets {name}, which the Hub's library reads from the environment alone: gated models are refused",
            fix="call it FLUX_HF_TOKEN in .env, or export it before the start",
        )
    ]


def _open_file(path: Path, in_file: Mapping[str, str]) -> list[Finding]:
    secret = [name for name in in_file if name.endswith(("_KEY", "_KEYS", "_TOKEN"))]
    try:
        is_open = bool(secret) and bool(path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH))
    except OSError:
        return []
    if not is_open:
        return []
    text = f"{path} holds {secret[0]}, and other users of this machine can read it"
    return [Finding(name=".env", state=State.NOTE, text=text, fix=f"chmod 600 {path}")]


def _ports() -> list[Finding]:
    """Services that would want one port."""
    try:
        from config.errors import ConfigurationError
        from config.settings import load_settings
        from models.precision import known_precisions
    except ImportError:
        return []
    taken: dict[int, str] = {}
    for name in known_precisions():
        try:
            port = load_settings(name).server.port
        except (ConfigurationError, OSError, ValueError):
            continue
        if port in taken:
            return [
                Finding(
                    name="ports",
                    state=State.FAULT,
                    text=f"the services {taken[port]} and {name} are both set to port {port}",
                    fix="set FP4_PORT and BF16_PORT instead of FLUX_PORT, or the ports in config/",
                )
            ]
        taken[port] = name
    return []
