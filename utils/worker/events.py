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
    """Give the memory of a model back, or of all."""

    model: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Run these jobs, together where that is possible: id and GenerationRequest.to_json() of each.

    May come while other jobs run, after their `Handover`.
    """

    jobs: list[tuple[str, dict[str, Any]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Previews:
    """Whether somebody looks: without, progress comes without pictures."""

    wanted: bool


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
    safety: str | None = None  # the name of the checker that looks at pictures


@dataclass(frozen=True, slots=True, kw_only=True)
class Loading:
    """`what` is being done to the model, and how far it is, 0 to 1; None where nobody can say."""

    model: str
    what: str = "reading the weights"
    fraction: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Holds:
    """The models that are loaded now, with what each takes, GiB. Told when one has come or gone."""

    models: list[tuple[str, float]]
    memory_mib: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """The model that is drawn with from now on; `milliseconds` is 0 where it was loaded before."""

    model: str
    engine: str
    compute: str
    batches_exactly: bool
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
class Begun:
    """The worker is at these jobs from now on: a death counts against them."""

    job_ids: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """`step` of `steps` is done (over all images of the job) in `stage`; `preview` is a JPEG in base64."""

    job_id: str
    stage: str
    step: int
    steps: int
    preview: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Handover:
    """The last steps of what was given are done: the next jobs may come, so that the device never waits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """`pictures` were drawn together in this time, loading and saving not counted."""

    model: str
    width: int
    height: int
    pictures: int
    milliseconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The pictures lie in the staging folder; `result` is GenerationResult.to_json()."""

    job_id: str
    model: str
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
    for cls in (Load, Unload, Run, Previews, Cancel, Shutdown)
    + (
        Ready,
        Loading,
        Holds,
        Loaded,
        LoadFailed,
        Unloaded,
        Begun,
        Progress,
        Handover,
        Drawn,
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
