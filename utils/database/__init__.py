"""Where jobs are kept: a file (`sqlite.py`), or a server that several front doors of a fleet share (`postgres/`).

`utils/job_store.py` maps rows to jobs and speaks to either through what stands here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from config.errors import FluxError
from utils.usage import Spent

Row = Any  # values by the names of columns
SpentBy = Callable[[str | None, str], Spent]  # of an owner, or of all (None), on a day (UTC)
Refuse = Callable[[int, int, SpentBy], FluxError | None]


def nothing_refused(waiting: int, own: int, spent: SpentBy) -> None:
    """A `Refuse` that lets everything in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRow:
    """A job on its way. `row`: the values of `insert_jobs`, in its order.

    `refuse(waiting, own, spent)` says why it may not stand in line, by how many jobs of its lane wait there, how many of
    its owner's, and what was spent, with all that was appended before it. It is asked where others append too; one process
    that has the line to itself knows before.
    """

    row: tuple[str | float | None, ...]
    owner: str = ""
    backend: str = ""
    refuse: Refuse = nothing_refused


class Connection(Protocol):
    """One thread's at a time. Everything is in the transaction that was begun last."""

    @property
    def in_transaction(self) -> bool: ...

    def rows(self, query: str, values: Mapping[str, Any]) -> Sequence[Row]:
        """What a query of `utils/sql` gives, by its name."""

    def select(self, words: str, values: Mapping[str, Any]) -> Sequence[Row]:
        """What a query gives that has no name."""

    def append(self, new: Sequence[NewRow]) -> Sequence[int | FluxError]:
        """Append jobs to the line, in their order: each one's `seq`, or why it was refused."""

    def begin(self) -> None: ...

    def transaction(self) -> AbstractContextManager[Any]: ...

    def savepoint(self) -> AbstractContextManager[Any]: ...

    def close(self) -> None: ...


class Database(Protocol):
    readers: int  # how many connections read beside each other
    damage: str | None  # what is wrong with it, found after the start

    def prepare(self) -> Connection:
        """The connection for writing. Raises ConfigurationError."""

    def reader(self) -> Connection: ...

    def is_refusal(self, error: BaseException) -> bool: ...

    def in_words(self, error: BaseException) -> str: ...

    @property
    def is_wanted(self) -> bool: ...

    def close(self) -> None: ...
