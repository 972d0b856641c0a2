"""What a replica and the front door say to each other, beside a worker's own events: one JSON object a line.

A watch begins with `Hello`; after that come the worker's events (`utils/worker/events.py`) and these.
"""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

from utils.worker import events

# From replica


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """What the replica is. `models` are those it can run with the GiB each takes, `reasons` why not the others."""

    replica: str
    node: str  # the machine's name, for people
    slot: str  # the worker's name there
    precision: str
    resources: list[str]
    models: dict[str, float]
    reasons: dict[str, str]
    memory_gib: float  # what models may take together
    gpus: list[dict[str, Any]] = field(default_factory=list)
    is_apple: bool = False
    pid: int = 0
    max_batch_size: int = 0  # FLUX_MAX_BATCH_SIZE there


@dataclass(frozen=True, slots=True, kw_only=True)
class Died:
    """The worker process ended with these jobs; the next one follows by itself."""

    exit_text: str
    code: str
    begun: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulse:
    """Every few seconds: how busy the machine's processors are, 0 to 1, and its cards (`gpu_manager.read_load`).

    `models` and `reasons` are as `Hello` has them, and there when they have changed.
    """

    processors: float
    cards: list[dict[str, Any]] = field(default_factory=list)
    models: dict[str, float] | None = None
    reasons: dict[str, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Asleep:
    """The worker process was ended to give its memory back; `Wake` starts it again."""


# From the front door


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """End a worker process that does not answer any more."""

    code: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sleep:
    """Give the worker's memory back, when it has no job."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wake:
    """Have a worker again."""


_CLASSES = {cls.__name__: cls for cls in (Hello, Died, Pulse, Asleep, Kill, Sleep, Wake)}


def encode(message: Any) -> str:
    if type(message) in _CLASSES.values():
        return json.dumps({"fleet": type(message).__name__, **asdict(message)})
    return events.encode(message).decode()


def decode(line: str) -> Any:
    """Raises ValueError for a line that is none."""
    data = json.loads(line)
    name = data.pop("fleet", None)
    if name is None:
        return events.decode(line.encode())
    try:
        return _CLASSES[name](**data)
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a message: {line[:200]!r}") from error
