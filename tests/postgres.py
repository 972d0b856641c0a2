"""A real PostgreSQL server for tests: made in a folder of its own, without syncs, ended with the session."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg

from tests.service import free_port

PASSWORD = "s3cret/%"
ESCAPED = "s3cret%2F%25"
_OPTIONS = "max_connections=60 log_min_messages=fatal"
_WITHOUT_SYNCS = (
    "fsync=off full_page_writes=off synchronous_commit=off shared_buffers=16MB autovacuum=off"
)


def programs() -> Path:
    """The folder of the newest server that is installed; Debian has it outside of the path."""
    found = sorted(
        Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name)
    )
    if found:
        return found[-1]
    path = shutil.which("postgres")
    assert path is not None, "PostgreSQL is not installed"
    return Path(path).parent


class PostgresServer:
    """Listens on a port of loopback, where it asks for a password. `database` gives an empty one.

    `is_safe`: with the syncs that a test does without.
    """

    def __init__(self, *, is_safe: bool = False) -> None:
        self._options = _OPTIONS.split() + ([] if is_safe else _WITHOUT_SYNCS.split())
        self.folder = Path(tempfile.mkdtemp(prefix="flux-pg-"))
        self.port = free_port()
        self._free: list[str] = []
        self._made = 0
        # The server refuses to run as root.
        self._user = pwd.getpwnam("postgres") if os.geteuid() == 0 else None
        if self._user is not None:
            os.chown(self.folder, self._user.pw_uid, self._user.pw_gid)
        password = self.folder / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        self._run("initdb", "-D", f"{self.folder}/data", "-U", "flux", "-E", "UTF8", "--no-locale",
                  "--no-sync", "-A", "scram-sha-256", "--pwfile", str(password))  # fmt: skip
        self._process: subprocess.Popen[bytes]
        self.start()

    def url(self, name: str = "postgres", password: str = ESCAPED) -> str:
        return f"postgresql://flux:{password}@127.0.0.1:{self.port}/{name}"

    def start(self) -> None:
        options = [word for option in self._options for word in ("-c", option)]
        self._process = subprocess.Popen(
            [programs() / "postgres", "-D", f"{self.folder}/data", "-p", str(self.port),
             "-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={self.folder}", *options],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **self._as_user(),
        )  # fmt: skip
        subprocess.run(
            [programs() / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port), "-t", "1"]
        )
        while True:
            with contextlib.suppress(psycopg.OperationalError):
                self.sql("SELECT 1")
                return
            assert self._process.poll() is None, "the server did not start"

    def stop(self) -> None:
        """At once: connections are cut."""
        self._process.send_signal(signal.SIGINT)
        self._process.wait(30)

    def sql(self, text: str, database: str = "postgres") -> list[tuple]:
        with psycopg.connect(self.url(database), autocommit=True) as connection:
            cursor = connection.execute(text)  # type: ignore[call-overload]
            return cursor.fetchall() if cursor.description else []

    @contextlib.contextmanager
    def database(self) -> Iterator[str]:
        """The address of a database in which nothing is left of an earlier test."""
        if self._free:
            name = self._free.pop()
            tables = self.sql("SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> 'flux_schema'", name)  # fmt: skip
            if tables:
                names = ", ".join(table for (table,) in tables)
                self.sql(f"TRUNCATE {names} RESTART IDENTITY", name)
        else:
            self._made += 1
            name = f"test{self._made}"
            self.sql(f"CREATE DATABASE {name}")
        yield self.url(name)
        self._free.append(name)

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [programs() / program, *arguments], capture_output=True, text=True, **self._as_user()
        )
        assert done.returncode == 0, done.stderr

    def _as_user(self) -> dict:
        # Of a folder that it may enter.
        cwd = {"cwd": self.folder}
        if self._user is None:
            return cwd
        return cwd | {
            "user": self._user.pw_uid,
            "group": self._user.pw_gid,
            "extra_groups": [],
            "env": {"PATH": os.environ["PATH"], "HOME": str(self.folder), "LC_ALL": "C"},
        }
