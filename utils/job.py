"""A job: one request on its way from the queue to its pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from models.types import GenerationRequest, GenerationResult, ImageFile


class JobStatus(StrEnum):
    QUEUED = "queued"  # waits for a worker
    RUNNING = "running"  # a worker has it
    SUCCEEDED = "succeeded"  # its pictures are on disk
    FAILED = "failed"  # ended with an error
    CANCELLED = "cancelled"  # ended because somebody asked for it

    @property
    def is_final(self) -> bool:
        return not LEGAL_CHANGES[self]


# Every change of state there is. A worker that dies, or a stop, puts a running job back in its place;
# a job that waited too long fails without having run.
LEGAL_CHANGES: Mapping[JobStatus, frozenset[JobStatus]] = {
    JobStatus.QUEUED: frozenset({JobStatus.RUNNING, JobStatus.FAILED, JobStatus.CANCELLED}),
    JobStatus.RUNNING: frozenset(
        {JobStatus.QUEUED, JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED}
    ),
    JobStatus.SUCCEEDED: frozenset(),
    JobStatus.FAILED: frozenset(),
    JobStatus.CANCELLED: frozenset(),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class JobError:
    """Why a job failed: a code for programs, a message for people."""

    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A row of the queue. Times are RFC 3339 UTC; `seq` is its place in line and never changes."""

    seq: int
    id: str
    status: JobStatus
    request: GenerationRequest
    created_at: str
    owner: str = ""  # whose key submitted it, as a digest; empty where no key is asked for
    started_at: str | None = None
    finished_at: str | None = None
    attempts: int = 0
    worker: str | None = None
    result: GenerationResult | None = None
    error: JobError | None = None

    @property
    def node(self) -> str | None:
        """The machine of a fleet that had it last; None for one that none had."""
        return None if self.worker is None else self.worker.rpartition("/")[0] or None

    @property
    def pictures(self) -> tuple[ImageFile, ...]:
        """What it made; of a cloud that may be less than was asked for. Nothing before it has ended."""
        return () if self.result is None else self.result.images


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredImage:
    """A row of the gallery: one picture on disk and what made it."""

    id: str
    job_id: str
    filename: str
    seed: int
    width: int
    height: int
    size_bytes: int
    created_at: str
    request: GenerationRequest
    owner: str  # of its job
    precision: str
    engine: str
    generation_time_ms: float  # of its whole job, waiting in line not counted
    is_pinned: bool = False  # it stays, whatever its age
    nsfw_flagged: bool | None = None  # None where no checker looked at it
