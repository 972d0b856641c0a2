"""Every error this project raises on purpose, as one tree.

    FluxError                      code                 HTTP
    ├── InvalidRequest             invalid_request      400   a field is missing, of the wrong type or out of range
    ├── Unauthorized               unauthorized         401   no key, or a wrong one
    ├── Forbidden                  forbidden            403   a foreign Host or Origin, a key without that scope
    ├── NotFound                   not_found            404   unknown job, image or route
    ├── UnsupportedHardware        unsupported_gpu      409   the model cannot run on this machine
    ├── TooLarge                   too_large            413   a body over the route's limit
    ├── TooSlow                    too_slow             408   a body that does not come in
    ├── IdempotencyMismatch        idempotency_mismatch 422   a key used again with another body
    ├── RateLimited                rate_limited         429   a key over its rate or its budget
    ├── ClientGone                 client_gone          499   the client hung up; nobody reads the answer
    ├── QueueFull                  queue_full           429   as many jobs wait as may wait
    ├── NotBuilt                   not_built            501   in the contract, not in this version
    ├── Unavailable                unavailable          503   no worker, or shutting down
    ├── ModelUnavailable           model_unavailable    503   the model's files are not there
    ├── StorageUnavailable         storage              503   disk or database refuses
    ├── NoRoom                     storage              507   an upload that the disk has no room for
    ├── NotAPicture                bad_file             415   an input that is no PNG, JPEG or WebP
    ├── BadPicture                 bad_file             422   one that is damaged, or does not go with the other
    ├── LoraError                  models/lora/errors.py      what is wrong with a LoRA
    ├── CloudError                 models/bfl_errors.py       what goes wrong with BFL's cloud
    ├── NotSafe                    nsfw_blocked         422   utils/worker/inspection.py: a picture that is not given out
    └── JobFailed                  (of the job)               the job ended without a picture
        internal, oom, poison, worker_lost: 500 · model_unavailable, storage: 503 · cancelled, lora_incompatible: 409 · bad_file: 422 · timeout: 504

    ConfigurationError             no HTTP: the process refuses to start and says why
    └── NotThereYet                            another start may go well, by itself

One handler in `api/errors.py` turns a FluxError into an answer.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class FieldError:
    """What is wrong with one field of a request."""

    field: str
    message: str


class FluxError(Exception):
    """Base of all errors meant for a person.

    `message` says what was wrong and what to do; `fields` names the fields at fault;
    `retry_after_seconds` becomes the Retry-After header.
    """

    code = "internal"
    status = 500

    def __init__(
        self,
        message: str,
        *,
        fields: Sequence[FieldError] = (),
        retry_after_seconds: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.fields = tuple(fields)
        self.retry_after_seconds = retry_after_seconds

    @classmethod
    def of(cls, field: str, message: str) -> Self:
        """The common case: one field is at fault."""
        return cls(f"{field}: {message}", fields=[FieldError(field, message)])


class InvalidRequest(FluxError):
    code, status = "invalid_request", 400


class Unauthorized(FluxError):
    code, status = "unauthorized", 401


class Forbidden(FluxError):
    code, status = "forbidden", 403


class NotFound(FluxError):
    code, status = "not_found", 404


class UnsupportedHardware(FluxError):
    code, status = "unsupported_gpu", 409


class TooLarge(FluxError):
    code, status = "too_large", 413


class TooSlow(FluxError):
    code, status = "too_slow", 408


class IdempotencyMismatch(FluxError):
    code, status = "idempotency_mismatch", 422


class QueueFull(FluxError):
    code, status = "queue_full", 429


class RateLimited(FluxError):
    code, status = "rate_limited", 429


class ClientGone(FluxError):
    code, status = "client_gone", 499


class NotBuilt(FluxError):
    code, status = "not_built", 501


class Unavailable(FluxError):
    code, status = "unavailable", 503


class ModelUnavailable(FluxError):
    code, status = "model_unavailable", 503


class StorageUnavailable(FluxError):
    code, status = "storage", 503


class NoRoom(FluxError):
    code, status = "storage", 507


class NotAPicture(FluxError):
    code, status = "bad_file", 415


class BadPicture(FluxError):
    code, status = "bad_file", 422


_STATUS_OF_JOB_ERRORS = {
    "lora_incompatible": 409,
    "bad_file": 422,
    "nsfw_blocked": 422,
    "model_unavailable": 503,
    "storage": 503,
    "cancelled": 409,
    "timeout": 504,
    # of models/bfl_errors.py
    "provider_error": 502,
    "provider_key": 502,
    "provider_forbidden": 502,
    "provider_lost": 502,
    "moderated": 502,
    "provider_credits": 402,
    "provider_refused": 400,
    "provider_budget": 429,
    "provider_busy": 503,
}


# A picture that a job could not use, as `FluxError.of` says it in the job's message.
_OF_A_PICTURE = re.compile(r"(image|mask|reference_images\.\d+): (.+)", re.DOTALL)
_CODES_OF_PICTURES = frozenset({"bad_file", "not_found", "too_large", "provider_refused"})


class JobFailed(FluxError):
    """A job ended as failed; `code` is the job's own.

    What is wrong with a picture of the request shows when it is decoded, in the job; the field is named
    as it is for what is seen at once.
    """

    def __init__(self, code: str, message: str) -> None:
        status = _STATUS_OF_JOB_ERRORS.get(code, 500)
        found = _OF_A_PICTURE.fullmatch(message) if code in _CODES_OF_PICTURES else None
        fields = [] if found is None else [FieldError(found[1], found[2])]
        super().__init__(message, fields=fields, retry_after_seconds=30 if status == 503 else None)
        self.code = code
        self.status = status


class ConfigurationError(Exception):
    """A setting is wrong: the process must not start. The message names the setting."""

    exit_status = 78  # EX_CONFIG: another start would end alike


class NotThereYet(ConfigurationError):
    """What the process needs from elsewhere does not answer: another start may find it."""

    exit_status = 75  # EX_TEMPFAIL
