"""From a precision's name to a running server: the whole of what a main file does."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import os
import signal
import sys
from functools import partial
from types import FrameType

import uvicorn
from fastapi import FastAPI

from api.app import create_app
from api.connection import PatientProtocol
from api.services import make_plan
from config.errors import ConfigurationError, NotThereYet
from config.settings import ServerSettings, Settings, load_settings
from models.precision import profile_of
from utils import listening, logs, systemd
from utils.queue_manager import QueueManager

log = logging.getLogger(__name__)

EXIT_USAGE = 64  # EX_USAGE of sysexits.h
EXIT_NOT_BUILT = 69  # EX_UNAVAILABLE

# What clients say over a websocket is a few words.
MAX_SOCKET_MESSAGE_BYTES = 64 * 2**10

# What ending takes beside waiting for the running jobs, with much to spare.
END_SECONDS = 60.0
# A connection at rest is ended later than clients and proxies end theirs (httpx after 5 s, load balancers after 60):
# who ends it first never sends a request into a connection that is being closed.
KEEP_ALIVE_SECONDS = 75

# The event loop shares the interpreter with the database's threads. With Python's own 5 ms it waits
# for them most of its time when many jobs are submitted.
SWITCH_SECONDS = 0.0005


class Server(uvicorn.Server):
    """Drains at the signal and closes its door after that: meanwhile everybody is told that it stops."""

    _draining: asyncio.Future[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Not the library's own: it raises the signal again at the end, and a stop that was asked for is no failure.
        self.force_exit = sig == signal.SIGINT and (self.should_exit or self._draining is not None)
        services = getattr(self.config.app.state, "services", None)
        if services is None or self.force_exit:
            self.should_exit = True
        elif self._draining is None:
            drain_seconds = services.plan.settings.server.drain_seconds
            systemd.notify(systemd.STOPPING, systemd.more_time(drain_seconds + END_SECONDS))
            loop = asyncio.get_running_loop()
            self._draining = loop.create_future()
            loop.call_soon_threadsafe(self._drain, services.queue)

    def _drain(self, queue: QueueManager) -> None:
        queue.drain()
        self._draining = asyncio.create_task(self._exit_when_drained(queue), name="drain")

    async def _exit_when_drained(self, queue: QueueManager) -> None:
        try:
            await queue.drained()
        finally:
            self.should_exit = True

    async def startup(self, sockets: list | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            gc.freeze()  # what is there by now stays: no need to look through it again and again
            log.info(
                "answering on http://%s:%s",
                self.config.host,
                self.config.port,
                extra={"action": "listening"},
            )
            systemd.notify(systemd.READY)


def build_app(precision: str) -> FastAPI:
    """The application for an ASGI server. Raises ConfigurationError."""
    return create_app(make_plan(load_settings(precision), profile_of(precision)))


def give_hub_token(settings: Settings) -> None:
    """The Hub's library, here and in the workers, reads its token from the environment."""
    if token := settings.models.hf_token.get_secret_value().strip():
        os.environ.setdefault("HF_TOKEN", token)


def refuse(service: str, error: ConfigurationError) -> int:
    """Say on the console, and in the log where there is one by now, why there is no service."""
    print(f"{service}: {error}", file=sys.stderr)
    if logging.getLogger().hasHandlers():
        log.error("%s", error, extra={"action": "start_refused", "is_said": True})
    return error.exit_status


def require_address(settings: ServerSettings) -> None:
    """Look whether the service can listen where it is told to, before anything begins. Raises ConfigurationError.

    The server would say so too, after the start, without the name of a setting.
    """
    host, port = settings.host, settings.port
    try:
        error = listening.why_not(host, port)
    except (OSError, UnicodeError) as unknown:
        raise NotThereYet(
            f"FLUX_HOST = {host!r}: this name has no address here ({unknown}); "
            "give it one, or set FLUX_HOST to an address of this machine"
        ) from unknown
    if error is not None:
        raise _cannot_listen(settings, error) from error


def _cannot_listen(settings: ServerSettings, error: OSError) -> ConfigurationError:
    host, port = settings.host, settings.port
    match error.errno:
        case errno.EADDRINUSE:
            return NotThereYet(
                f"FLUX_PORT = {port} is in use by another program on {host}; end that one, or set another port"
            )
        case code if code in listening.ABSENT:
            return NotThereYet(f"FLUX_HOST = {host!r} is no address of this machine")
        case errno.EACCES:
            return ConfigurationError(
                f"FLUX_PORT = {port}: this account may not listen there; take a port from 1024 on"
            )
    return ConfigurationError(f"FLUX_HOST = {host!r}, FLUX_PORT = {port}: {error.strerror}")


def serve(precision: str) -> int:
    """Run the service until it is told to stop; returns the exit status."""
    profile = profile_of(precision)
    if sys.argv[1:]:
        print(
            f"{profile.service}: {sys.argv[1]}: no arguments are taken here; "
            f"./start_{precision}_api.sh --help lists flags, .env.example the FLUX_* settings",
            file=sys.stderr,
        )
        return EXIT_USAGE
    if profile.loader is None:
        print(f"{profile.service}: {profile.not_built}", file=sys.stderr)
        return EXIT_NOT_BUILT
    try:
        settings = load_settings(precision)
        logs.configure(settings, precision)
        require_address(settings.server)
        give_hub_token(settings)
        app = create_app(make_plan(settings, profile))
    except ConfigurationError as error:
        return refuse(profile.service, error)
    return run(app, settings, profile.service)


def configured(app: FastAPI, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        host=settings.server.host,
        port=settings.server.port,
        log_config=None,
        access_log=False,
        server_header=False,
        ws="websockets-sansio",
        ws_max_size=MAX_SOCKET_MESSAGE_BYTES,
        http=partial(PatientProtocol, patience_seconds=settings.server.upload_patience_seconds),
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        # After the drain, so that the last picture still reaches its client.
        timeout_graceful_shutdown=2,
    )


def run(app: FastAPI, settings: Settings, service: str) -> int:
    """Answer requests until told to stop; returns the exit status."""
    sys.setswitchinterval(SWITCH_SECONDS)
    # What is there now stays to the end: the collector need not look through it while requests come in.
    gc.freeze()
    server = Server(configured(app, settings))
    # A refusal is one sentence, not a trace.
    server_log = logging.getLogger("uvicorn.error")
    server_log.addFilter(lambda _: not hasattr(app.state, "refused"))
    # Its lines about websockets have the whole query in them, and somebody may have put a key there.
    server_log.addFilter(lambda record: '"WebSocket' not in str(record.msg))
    # A terminal that is closed; who started us with `nohup` wants none of it.
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, server.handle_exit)
    with contextlib.suppress(SystemExit):  # what the library makes of a start that failed
        server.run()
    if hasattr(app.state, "refused"):
        return refuse(service, app.state.refused)
    return 0 if server.started else 1
