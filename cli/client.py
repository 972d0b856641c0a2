"""One service, asked over HTTP. Its errors become Failures in its own words."""

from __future__ import annotations

import ipaddress
import json
import re
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx2

from cli.failures import Failure, Status

CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 120.0  # a service that reads a large LoRA, or loads a model, takes its time
SILENCE_SECONDS = 60.0  # a stream of events tells that it lives every few seconds
AWAY_SECONDS = 60.0  # how long a service that went away in the middle of a job is waited for
AGAIN_SECONDS = 0.5
ENDS = ("succeeded", "failed", "cancelled")
# A reason of a limit, or of a service that is not ready: the same request may be taken later.
_LATER = frozenset({429, 503})
_NOT_ALLOWED = frozenset({"unauthorized", "forbidden"})
_HEADER_TEXT = re.compile(r"[!-~]+")


@dataclass(frozen=True, slots=True)
class Event:
    """One of a stream's: its name and what it tells."""

    name: str
    data: dict[str, Any]


class Client:
    """A service at an address. Close it, or use it in a `with`."""

    def __init__(self, url: str, key: str | None, name: str = "") -> None:
        self.url = url
        self.name = name or url
        self._shown = url if not name else f"{name} at {url}"
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._http = httpx2.Client(
            base_url=url,
            headers=headers,
            timeout=httpx2.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS),
            trust_env=not _is_this_machine(url),  # its own services are not behind a proxy
            verify=_certificates(url),
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def ask(self, method: str, path: str, **options: Any) -> Any:
        """The answer's JSON; None where there is nothing in it. Raises Failure."""
        return self.ask_with_status(method, path, **options)[1]

    def ask_with_status(self, method: str, path: str, **options: Any) -> tuple[int, Any]:
        """The same, with HTTP's status in front: whether something is new."""
        answer = self._answer(method, path, **options)
        if not answer.content:
            return answer.status_code, None
        try:
            return answer.status_code, answer.json()
        except ValueError:
            what = f"{method} {path} is answered by something else than JSON"
            raise self._foreign(what) from None

    def file(self, path: str, **options: Any) -> bytes:
        return self._answer("GET", path, **options).content

    def job(self, job_id: str) -> dict[str, Any]:
        return self.ask("GET", f"/jobs/{job_id}")

    def cancel(self, job_id: str) -> dict[str, Any]:
        return self.ask("POST", f"/jobs/{job_id}/cancel")

    def is_ours(self, seconds: float) -> bool:
        """Whether a service of this project answers there, within so long."""
        try:
            answer = self._http.get("/health/live", timeout=seconds)
            found = answer.json() if answer.status_code == 200 else {}
        except (httpx2.HTTPError, ValueError):
            return False
        return isinstance(found, dict) and "service" in found

    def follow(self, job_id: str) -> Iterator[Event]:
        """A job's events to its end, across restarts of the service: the queue is on disk."""
        last_id: str | None = None
        lost_at: float | None = None
        while True:
            try:
                for event_id, event in self._stream(f"/jobs/{job_id}/events", last_id):
                    lost_at, last_id = None, event_id or last_id
                    if event.name != "bye":
                        yield event
                    if event.name in ENDS:
                        return
            except Failure as failure:
                if failure.status is not Status.UNREACHABLE:
                    raise
            now = time.monotonic()
            lost_at = now if lost_at is None else lost_at
            if now - lost_at > AWAY_SECONDS:
                raise Failure(
                    Status.UNREACHABLE,
                    f"{self.name} went away while job {job_id} was on its way, and did not come back within "
                    f"{AWAY_SECONDS:.0f} s. The job is kept: start the service, then ./flux queue watch {job_id}",
                    more={"job_id": job_id},
                )
            time.sleep(AGAIN_SECONDS)

    def events(self) -> Iterator[Event]:
        """What happens to all jobs, until the service ends the stream."""
        for _, event in self._stream("/events", None):
            yield event

    def _stream(self, path: str, last_id: str | None) -> Iterator[tuple[str | None, Event]]:
        headers = {} if last_id is None else {"Last-Event-ID": last_id}
        timeout = httpx2.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS)
        with (
            self._failures(),
            self._http.stream("GET", path, headers=headers, timeout=timeout) as answer,
        ):
            if answer.status_code != 200:
                answer.read()
                raise self._refusal(answer)
            fields: dict[str, str] = {}
            for line in answer.iter_lines():
                if line:
                    name, _, value = line.partition(":")
                    fields[name] = value.removeprefix(" ")
                elif "event" in fields:
                    yield fields.get("id"), Event(fields["event"], json.loads(fields["data"]))
                    fields = {}
                else:
                    fields = {}  # a comment that keeps the line open

    def _answer(self, method: str, path: str, **options: Any) -> httpx2.Response:
        with self._failures():
            answer = self._http.request(method, path, **options)
        if not answer.is_success:
            raise self._refusal(answer)
        return answer

    @contextmanager
    def _failures(self) -> Iterator[None]:
        try:
            yield
        except httpx2.HTTPError as error:
            reason = str(error) or type(error).__name__
            raise Failure(
                Status.UNREACHABLE,
                f"{self._shown} does not answer ({reason}). Is it running? Start it with ./flux serve, "
                "or name another address with --url",
            ) from error

    def _refusal(self, answer: httpx2.Response) -> Failure:
        """A service's problem, as it told it, or what else came in its place."""
        try:
            problem = answer.json()
            message, code = problem["detail"], problem["code"]
        except (ValueError, KeyError, TypeError):
            return self._foreign(f"HTTP status {answer.status_code} without a reason")
        number = answer.status_code
        if code in _NOT_ALLOWED:
            status = Status.NOT_ALLOWED
            if code == "unauthorized":
                message += " (for this command: --key or FLUX_API_KEY)"
        elif number in _LATER:
            status = Status.LATER
        else:
            status = Status.REFUSED if number < 500 else Status.BROKEN
        more: dict[str, Any] = {"request_id": problem.get("request_id")}
        if "retry-after" in answer.headers:
            more["retry_after_seconds"] = answer.headers["retry-after"]
        return Failure(
            status,
            message,
            code=code,
            http_status=number,
            fields=[(each["field"], each["message"]) for each in problem.get("errors", ())],
            more=more,
        )

    def _foreign(self, what: str) -> Failure:
        return Failure(
            Status.UNREACHABLE,
            f"what answers at {self.url} is no service of this project, or something stands between ({what}). "
            "Check the address (--url, FLUX_URL) and ./flux doctor",
        )


def checked_url(text: str) -> str:
    """An address as it may be asked. Raises Failure."""
    text = text if "://" in text else f"http://{text}"
    try:
        parts = urlsplit(text)
        is_well = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_well = False
    if not is_well or parts.username or parts.query or parts.fragment:
        raise Failure(
            Status.USAGE, f"--url: {text!r} is no address; it is written as http://127.0.0.1:8001"
        )
    return text.rstrip("/")


def checked_key(text: str) -> str:
    """A key that fits a header. The message does not repeat it."""
    if not _HEADER_TEXT.fullmatch(text.strip()):
        raise Failure(
            Status.USAGE,
            "--key: a key has letters, digits and signs without spaces, such as flux_…",
        )
    return text.strip()


def _certificates(url: str) -> ssl.SSLContext | bool:
    """Those this machine trusts; plain HTTP needs none, and reading them takes 20 ms of every command."""
    return True if urlsplit(url).scheme == "https" else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def _is_this_machine(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
