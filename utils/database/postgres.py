"""The job database on a PostgreSQL server, which several front doors of a fleet share.

SQLAlchemy's Core has the connections and the statements, psycopg speaks to the server; neither is imported where jobs
are kept in a file. A door appends under a lock of the transaction, so that places in line become visible in their
order and the line's bound holds for all doors together. What belongs to a lease (`utils/fleet/lease.py`) is guarded
in the statements themselves, by `door` and `epoch`, which every query is given.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from config.errors import ConfigurationError, FluxError, NotThereYet
from utils import sql
from utils.database import NewRow, Row
from utils.line import Lane
from utils.usage import Spent, spent_of

if TYPE_CHECKING:
    from sqlalchemy import Engine, TextClause

log = logging.getLogger(__name__)

SETTING = "FLUX_DATABASE_URL"
SCHEMES = ("postgresql+psycopg://", "postgresql://", "postgres://")
READERS = 4
CONNECTIONS = READERS + 4  # and the writer, the lease, files, what is to come
CONNECT_SECONDS = 5
IDLE_SECONDS = 1.0  # a connection that rested so long is looked at before it is used
OLDEST_SERVER = (12,)
SCHEMA_LOCK = 4873920  # of the transaction that makes or changes the tables
# A server that is gone without a word is noticed by this, not by the system's two hours; a statement that hangs ends.
_KEEPALIVE = {
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
_SESSION = (
    "-c timezone=UTC -c statement_timeout=60000 -c lock_timeout=20000 "
    "-c idle_in_transaction_session_timeout=60000"
)


class PostgresDatabase:
    """A server's database. `door` is who asks; `epoch` that of the lease under which it routes, or did last."""

    readers = READERS
    damage = None
    is_wanted = False

    def __init__(self, url: str, door: str) -> None:
        self.door = door
        self.epoch = 0
        self.is_shared = False  # others than the store use it, and `end` it
        self._url = url
        self._made: Engine | None = None
        self._making = threading.Lock()

    @property
    def engine(self) -> Engine:
        """Raises ConfigurationError."""
        with self._making:
            if self._made is None:
                self._made = _engine(self._url)
            return self._made

    def prepare(self) -> PostgresConnection:
        try:
            self._prepare()
        except ConfigurationError:
            self.end()
            raise
        except Exception as error:
            self.end()
            if not self.is_refusal(error):
                raise
            raise refused(error, self._url) from error
        return PostgresConnection(self)

    def reader(self) -> PostgresReader:
        return PostgresReader(self)

    def is_refusal(self, error: BaseException) -> bool:
        import psycopg
        from sqlalchemy import exc

        if isinstance(
            error, exc.IntegrityError | exc.DataError | psycopg.IntegrityError | psycopg.DataError
        ):
            return False
        refusals = (
            exc.DBAPIError, exc.TimeoutError, exc.InvalidRequestError, psycopg.Error, OSError,
        )  # fmt: skip
        return isinstance(error, refusals)

    def in_words(self, error: BaseException) -> str:
        if isinstance(error, OSError):
            return f"the output folder cannot be written ({error}); free some disk space or check its permissions, then try again"
        return f"the job database does not answer as it should ({_first_line(error, self._url)}); try again in a moment"

    def values(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """With what every query may ask for. A text of PostgreSQL holds no NUL."""
        clean = {
            name: value.replace("\0", "\N{REPLACEMENT CHARACTER}") if type(value) is str else value
            for name, value in given.items()
        }
        return clean | {"door": self.door, "epoch": self.epoch}

    def look(self) -> tuple[str, int]:
        """The server's version and that of the tables, 0 where there are none yet; nothing is changed.

        Raises ConfigurationError.
        """
        try:
            with self.engine.connect() as connection:
                driver = connection.connection.driver_connection
                assert driver is not None
                _require_server(connection.dialect.server_version_info, driver)
                [version] = driver.execute("SHOW server_version").fetchone()
                there = "SELECT to_regclass('flux_schema') IS NOT NULL"
                if not driver.execute(there).fetchone()[0]:
                    return version, 0
                return version, driver.execute("SELECT max(version) FROM flux_schema").fetchone()[0]
        except Exception as error:
            if isinstance(error, ConfigurationError) or not self.is_refusal(error):
                raise
            raise refused(error, self._url) from error
        finally:
            self.end()

    def close(self) -> None:
        if not self.is_shared:
            self.end()

    def end(self) -> None:
        """Close every connection; nobody may be using one."""
        if self._made is not None:
            self._made.dispose()

    def _prepare(self) -> None:
        """The tables of this version, made or changed once, however many doors start at the same moment."""
        known = sql.schema_version(sql.POSTGRES)
        with self.engine.begin() as connection:
            driver = connection.connection.driver_connection
            assert driver is not None
            _require_server(connection.dialect.server_version_info, driver)
            driver.execute("SELECT pg_advisory_xact_lock(%s)", (SCHEMA_LOCK,))
            driver.execute("CREATE TABLE IF NOT EXISTS flux_schema (version INTEGER NOT NULL)")
            found = driver.execute("SELECT max(version) FROM flux_schema").fetchone()[0] or 0
            if found > known:
                raise ConfigurationError(
                    f"{SETTING}: the database was written by a newer version (schema {found}, this one knows {known}); "
                    "use that version, or another database"
                )
            for number, text in sql.migrations(sql.POSTGRES).items():
                if number > found:
                    driver.execute(text)
                    driver.execute("INSERT INTO flux_schema VALUES (%s)", (number,))
                    log.info("schema %d", number, extra={"action": "migrating"})


class PostgresConnection:
    """For one thread at a time: everything is in the transaction that was begun last."""

    def __init__(self, database: PostgresDatabase) -> None:
        self._database = database
        self._connection: Any = None
        self._used_at = 0.0

    @property
    def in_transaction(self) -> bool:
        connection = self._connection
        return connection is not None and connection.in_transaction() and not connection.invalidated

    def begin(self) -> None:
        """On a connection that works, as far as can be known."""
        connection, rested = self._connection, time.monotonic() - self._used_at
        if connection is not None and (connection.invalidated or rested > IDLE_SECONDS):
            if connection.invalidated or not _is_there(connection):
                self.close()
        if self._connection is None:
            self._connection = self._database.engine.connect()
        if self._connection.in_transaction():  # an earlier rollback was refused
            self._connection.rollback()
        self._connection.begin()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        try:
            yield
            self._connection.commit()
        except BaseException:
            with contextlib.suppress(Exception):
                self._connection.rollback()
            raise
        finally:
            self._used_at = time.monotonic()

    @contextlib.contextmanager
    def savepoint(self) -> Iterator[None]:
        with self._connection.begin_nested():
            yield

    def rows(self, query: str, values: Mapping[str, Any]) -> list[Row]:
        return _rows(self._connection, statement(query), self._database.values(values))

    def select(self, words: str, values: Mapping[str, Any]) -> list[Row]:
        from sqlalchemy import text

        return _rows(self._connection, text(words), self._database.values(values))

    def append(self, new: Sequence[NewRow]) -> list[int | FluxError]:
        self.rows("stand_in_line", {})
        lanes: Counter[Lane] = Counter()
        owners: Counter[str] = Counter()
        for row in self.rows("count_line", {}):
            lanes[Lane.of(row["backend"])] += row["jobs"]
            owners[row["owner"]] += row["jobs"]
        outcomes: list[Any] = []
        taken: list[list[Any]] = []
        places: list[int] = []

        def insert() -> None:
            if taken:
                rows = self.rows("insert_jobs", {"rows": sql.as_json(taken)})
                places.extend(sorted(row["seq"] for row in rows))
                taken.clear()

        def spent(owner: str | None, day: str) -> Spent:
            insert()  # what was taken so far counts
            [row] = self.rows("spent", {"owner": owner, "day": day})
            return spent_of(row)

        for each in new:
            lane = Lane.of(each.backend)
            refused = each.refuse(lanes[lane], owners[each.owner], spent)
            outcomes.append(refused)
            if refused is None:
                lanes[lane] += 1
                owners[each.owner] += 1
                taken.append([*each.row, each.backend])
        insert()
        seqs = iter(places)
        return [next(seqs) if outcome is None else outcome for outcome in outcomes]

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):  # the server is gone
                connection.close()


class PostgresReader:
    """For any number of threads, each query on a connection of its own; one that was lost is asked for anew, once."""

    in_transaction = False

    def __init__(self, database: PostgresDatabase) -> None:
        self._database = database

    def rows(self, query: str, values: Mapping[str, Any]) -> list[Row]:
        return self._ask(statement(query), values)

    def select(self, words: str, values: Mapping[str, Any]) -> list[Row]:
        from sqlalchemy import text

        return self._ask(text(words), values)

    def _ask(self, words: TextClause, values: Mapping[str, Any]) -> list[Row]:
        from sqlalchemy import exc

        given = self._database.values(values)
        try:
            return self._select(words, given)
        except exc.DBAPIError as error:
            if not error.connection_invalidated:
                raise
            return self._select(words, given)

    def _select(self, words: TextClause, values: Mapping[str, Any]) -> list[Row]:
        with self._database.engine.connect() as connection:
            connection = connection.execution_options(isolation_level="AUTOCOMMIT")
            return _rows(connection, words, values)

    def begin(self) -> None:
        raise NotImplementedError("a reader changes nothing")

    transaction = savepoint = append = begin

    def close(self) -> None:
        """Its connections are the pool's."""


@cache
def statement(query: str) -> TextClause:
    from sqlalchemy import text

    return text(sql.queries(sql.POSTGRES)[query])


def is_address(url: str) -> bool:
    """Whether it is the address of a PostgreSQL database."""
    return url.startswith(SCHEMES)


def without_secret(text: str, url: str) -> str:
    """A text in which the password of an address does not stand."""
    from sqlalchemy.engine import make_url

    password = make_url(_url(url)).password
    return text if not password else text.replace(str(password), "***")


def shown(url: str) -> str:
    """An address for people: without its password, and without options that may hold one."""
    from sqlalchemy.engine import make_url

    parsed = make_url(_url(url))
    return parsed.set(query={}).render_as_string(hide_password=True)


def refused(error: BaseException, url: str) -> ConfigurationError:
    """Why the server does not take us, and what to do."""
    said = _first_line(error, url)
    where = f"{SETTING}: {shown(url)}"
    words = _wrong(said, where)
    if words is not None:
        return ConfigurationError(words)
    return NotThereYet(
        f"{where} cannot be used ({said}); is PostgreSQL running there, and does it let this machine in?"
    )


def _wrong(said: str, where: str) -> str | None:
    """What somebody has to put right; None where the server may only be away."""
    if "password authentication failed" in said or "no password supplied" in said:
        return f"{where} does not take the user's password ({said}); correct it in the address"
    if "does not exist" in said and "database" in said:
        return f"{where}: there is no such database ({said}); make it: createdb -E UTF8 -T template0 NAME"
    if "does not exist" in said and "role" in said:
        return f"{where}: there is no such user ({said}); make it: createuser --pwprompt NAME"
    if "permission denied" in said:
        return f"{where}: the user may not make tables there ({said}); give it a database of its own: createdb -O USER NAME"
    if said.startswith("invalid "):
        return f"{where} cannot be used ({said}); correct the address"
    return None


def _engine(url: str) -> Engine:
    try:
        import psycopg  # noqa: F401 (named in the error below)
        from sqlalchemy import create_engine
        from sqlalchemy.exc import ArgumentError
    except ImportError as error:
        raise ConfigurationError(
            f"{SETTING}: {error.name or 'SQLAlchemy'} is not installed; scripts/setup_env.sh --fleet installs it"
        ) from error
    try:
        return create_engine(
            _url(url),
            pool_size=CONNECTIONS,
            max_overflow=0,
            pool_timeout=CONNECT_SECONDS,
            pool_recycle=1800,
            connect_args={
                "connect_timeout": CONNECT_SECONDS,
                "application_name": "flux-fleet",
                "options": _SESSION,
                **_KEEPALIVE,
            },
        )
    except (ArgumentError, ValueError) as error:
        raise ConfigurationError(
            f"{SETTING} is no address of a database; it is written as postgresql://USER:PASSWORD@HOST:5432/NAME, "
            "with what is special in the password as %40 and the like"
        ) from error


def _url(url: str) -> str:
    """The address as SQLAlchemy wants it."""
    for scheme in SCHEMES:
        if url.startswith(scheme):
            return SCHEMES[0] + url.removeprefix(scheme)
    return url


def _require_server(version: tuple[int, ...] | None, driver: Any) -> None:
    if version is not None and version < OLDEST_SERVER:
        raise ConfigurationError(
            f"{SETTING}: the server is PostgreSQL {'.'.join(map(str, version))}; {OLDEST_SERVER[0]} or newer is needed"
        )
    encoding = driver.execute("SHOW server_encoding").fetchone()[0]
    if encoding != "UTF8":
        raise ConfigurationError(
            f"{SETTING}: the database's encoding is {encoding}, which cannot hold every prompt; make one with "
            "createdb -E UTF8 -T template0 NAME"
        )


def _is_there(connection: Any) -> bool:
    try:
        if connection.in_transaction():
            connection.rollback()
        connection.exec_driver_sql("SELECT 1")
        connection.rollback()
    except Exception:
        return False
    return True


def _rows(connection: Any, words: TextClause, values: Mapping[str, Any]) -> list[Row]:
    result = connection.execute(words, values)
    return list(result.mappings()) if result.returns_rows else []


def _first_line(error: BaseException, url: str) -> str:
    """What the server or its driver said, without the statement and without a password."""
    cause = getattr(error, "orig", None) or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return without_secret(lines[0] if lines else type(cause).__name__, url)
