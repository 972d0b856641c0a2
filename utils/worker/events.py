"""The whole protocol between a service and its worker processes: one JSON object a line.

A line is `{"event": <class name>, ...fields}`. Nothing else crosses the socket: no pickle, no
pixels (pictures go through the staging folder).
"""

import json
from dataclasses import asdict, dataclass
from typing import Any

# From parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Load a model now, without a job."""

    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Unload:
    """Give the model's memory back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Run a job; `request` is GenerationRequest.to_json()."""

    job_id: str
    request: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancel:
    """Leave the job at the next step; a job that is not running is ignored."""

    job_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Shutdown:
    """Exit; a running job is left at the next step."""


# From child


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """The libraries are imported and the device answers. Sent once."""

    device: str
    versions: dict[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Loading:
    model: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    model: str
    engine: str
    milliseconds: float
    memory_mib: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadFailed:
    model: str
    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Unloaded:
    memory_mib: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """`step` of `steps` is done (over all images of the job) in `stage`."""

    job_id: str
    stage: str
    step: int
    steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The pictures lie in the staging folder; `result` is GenerationResult.to_json()."""

    job_id: str
    result: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    job_id: str
    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WasCancelled:
    job_id: str


_CLASSES = {
    cls.__name__: cls
    for cls in (Load, Unload, Run, Cancel, Shutdown)
    + (
        Ready,
        Loading,
        Loaded,
        LoadFailed,
        Unloaded,
        Progress,
        Finished,
        Failed,
        WasCancelled,
    )
}


def encode(event: Any) -> bytes:
    return json.dumps({"event": type(event).__name__, **asdict(event)}).encode() + b"\n"


def decode(line: bytes) -> Any:
    """Raises ValueError for a line that is no event."""
    data = json.loads(line)
    try:
        return _CLASSES[data.pop("event")](**data)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"not an event: {line[:200]!r}") from error
