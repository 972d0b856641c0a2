"""Bytes from the Hub into its cache: several files at a time, each gone on with where it broke off.

A file's bytes come into `<digest>.part`, locked by whoever writes it, another process included, and
get their name only when their digest is the one the Hub told: the SHA-256 of large files, git's SHA-1
of the others. What is written stays when a download ends early, also by `kill -9`; the next one reads
it through once, for the digest, and asks for the rest. A connection that brings next to nothing is
given up and opened again, a limited number of times.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import queue
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from config.errors import FluxError, ModelUnavailable, StorageUnavailable
from models.hub.cache import RepoCache
from models.hub.repository import RepoFile, Repository, first_line, gated, token

GIB = 2**30
FILES_AT_ONCE = 4
CHUNK_BYTES = 2**20
TELL_SECONDS = 0.5
LOCK_POLL_SECONDS = 0.2
_TRANSIENT = (408, 429, 500, 502, 503, 504)


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """When a connection is given up, and how often it is opened anew without having brought anything."""

    connect_seconds: float = 15.0
    silence_seconds: float = 30.0
    window_seconds: float = 60.0  # in which at least `window_bytes` must come
    window_bytes: int = 2**16
    tries: int = 6
    first_pause_seconds: float = 1.0
    longest_pause_seconds: float = 30.0

    def pause(self, failures: int) -> float:
        return min(self.longest_pause_seconds, self.first_pause_seconds * 2 ** (failures - 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a download is; `files` are (path, bytes here, bytes in all)."""

    repo: str
    files: tuple[tuple[str, int, int], ...]

    @property
    def received_bytes(self) -> int:
        return sum(here for _, here, _ in self.files)

    @property
    def total_bytes(self) -> int:
        return sum(total for _, _, total in self.files)

    @property
    def fraction(self) -> float:
        return self.received_bytes / self.total_bytes if self.total_bytes else 1.0

    def __str__(self) -> str:
        complete = sum(here == total for _, here, total in self.files)
        return (
            f"fetching {self.repo}: {in_words(self.received_bytes)} of {in_words(self.total_bytes)}, "
            f"{complete} of {len(self.files)} files"
        )


def in_words(size_bytes: int) -> str:
    for unit, name in ((GIB, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if size_bytes >= unit:
            return f"{size_bytes / unit:.1f} {name}"
    return f"{size_bytes} bytes"


def require_room(cache: RepoCache, files: Sequence[RepoFile], reserve_bytes: int) -> None:
    """Raises StorageUnavailable, with numbers, where the rest of the files does not fit on the disk."""
    missing = sum(file.size_bytes - cache.received_bytes(file) for file in files)
    free = shutil.disk_usage(cache.folder).free
    if missing and missing + reserve_bytes > free:
        kept = f" and {in_words(reserve_bytes)} stay free (FLUX_MIN_FREE_MIB)"
        raise StorageUnavailable(
            f"{in_words(missing)} are still to be fetched{kept if reserve_bytes else ''}; the disk of the "
            f"models folder has {in_words(free)} free. Make room, or set FLUX_MODELS_DIR or HF_HOME to a "
            "folder on a larger disk"
        )


def fetch(
    repository: Repository,
    files: Sequence[RepoFile],
    cache: RepoCache,
    *,
    on_progress: Callable[[Progress], None],
    patience: Patience = Patience(),
) -> None:
    """Bring the files' bytes into the cache. Raises ModelUnavailable or StorageUnavailable.

    `on_progress` is called from this thread, again and again; what it raises ends the download.
    """
    missing: queue.SimpleQueue[RepoFile] = queue.SimpleQueue()
    for file in sorted(files, key=lambda file: -file.size_bytes):
        if not cache.has(file):
            missing.put(file)
    fetching = _Fetching(repository.id, repository.commit, cache, patience, missing)
    threads = [
        threading.Thread(target=fetching.work, name="model fetch", daemon=True)
        for _ in range(min(FILES_AT_ONCE, missing.qsize()))
    ]
    for thread in threads:
        thread.start()

    def tell() -> None:
        here = tuple((file.path, cache.received_bytes(file), file.size_bytes) for file in files)
        on_progress(Progress(repo=repository.id, files=here))

    try:
        while any(thread.is_alive() for thread in threads) and fetching.error is None:
            tell()
            fetching.changed.wait(TELL_SECONDS)
    finally:
        # Threads that wait for the network end by themselves: each has its file's lock until then.
        fetching.stop.set()
    if fetching.error is not None:
        raise fetching.error
    tell()


class _Fetching:
    """The state that the threads of one download share."""

    def __init__(
        self,
        repo: str,
        commit: str,
        cache: RepoCache,
        patience: Patience,
        missing: queue.SimpleQueue[RepoFile],
    ) -> None:
        self.stop = threading.Event()
        self.changed = threading.Event()  # set at the end, well or badly
        self.error: FluxError | None = None
        self._repo = repo
        self._commit = commit
        self._cache = cache
        self._patience = patience
        self._missing = missing
        self._left = min(FILES_AT_ONCE, missing.qsize())
        self._lock = threading.Lock()

    def work(self) -> None:
        try:
            with self._client() as client:
                while not self.stop.is_set():
                    self._one(client, self._missing.get_nowait())
        except queue.Empty:
            pass
        except _Stopped:
            pass
        except FluxError as error:
            self.error = self.error or error
        except OSError as error:
            self.error = self.error or disk_error(error)
        except Exception as error:
            self.error = self.error or ModelUnavailable(
                f"{self._repo} could not be fetched: {type(error).__name__}: {first_line(error)}"
            )
        finally:
            with self._lock:
                self._left -= 1
                if self._left == 0 or self.error is not None:
                    self.changed.set()

    def _client(self) -> Any:
        import httpx2
        from huggingface_hub.utils import build_hf_headers

        patience = self._patience
        return httpx2.Client(
            # The token goes to the Hub alone: the client leaves it out where it is sent on elsewhere.
            headers={**build_hf_headers(token=token()), "Accept-Encoding": "identity"},
            follow_redirects=True,
            timeout=httpx2.Timeout(patience.silence_seconds, connect=patience.connect_seconds),
        )

    def _one(self, client: Any, file: RepoFile) -> None:
        with self._own(file) as part:
            if part is None:
                return  # another process has fetched it meanwhile
            for is_last in (False, True):
                if self._receive_all(client, file, part) == file.digest:
                    break
                # Bytes of an earlier try may have been spoilt on this disk: once more from the start.
                part.seek(0)
                part.truncate()
                if is_last:
                    self._cache.part(file).unlink(missing_ok=True)
                    raise ModelUnavailable(
                        f"{self._repo}: {file.path} came twice with another checksum than the Hub tells "
                        f"({file.digest}); it was deleted. Something on the way changes it; try another "
                        "network"
                    )
            part.flush()
            os.fsync(part.fileno())
            os.replace(self._cache.part(file), self._cache.blob(file))

    @contextmanager
    def _own(self, file: RepoFile) -> Iterator[BinaryIO | None]:
        """The file's part, of which nobody else writes; None where its bytes are all here."""
        path = self._cache.part(file)
        while True:
            if self._cache.has(file):
                yield None
                return
            with open(path, "a+b") as part:
                try:
                    fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    self._sleep(LOCK_POLL_SECONDS)
                    continue
                if not _is_still(path, part):
                    continue
                yield part
                return

    def _receive_all(self, client: Any, file: RepoFile, part: BinaryIO) -> str:
        """The whole file, in as many tries as patience allows; returns its digest."""
        digest = _Digest.of(file, part)
        failures = 0
        while digest.size < file.size_bytes:
            before = digest.size
            try:
                self._receive(client, file, part, digest)
                reason = f"{file.path} broke off"
            except _Retry as error:
                reason = f"{file.path}: {first_line(error)}"
            if digest.size >= file.size_bytes:
                break
            failures = 1 if digest.size - before >= self._patience.window_bytes else failures + 1
            if failures >= self._patience.tries:
                raise ModelUnavailable(
                    f"{self._repo} could not be fetched: {reason} ({failures} times without progress); "
                    f"{in_words(digest.size)} of {in_words(file.size_bytes)} are kept, and the next try "
                    "goes on from there. Check the network"
                )
            self._sleep(self._patience.pause(failures))
        return digest.value

    def _receive(self, client: Any, file: RepoFile, part: BinaryIO, digest: _Digest) -> None:
        """One answer of the Hub, written on. Raises _Retry for what another try may mend."""
        import httpx2
        from huggingface_hub import hf_hub_url

        url = hf_hub_url(self._repo, file.path, revision=self._commit)
        headers = {"Range": f"bytes={digest.size}-"} if digest.size else {}
        try:
            with client.stream("GET", url, headers=headers) as answer:
                self._check(answer, file)
                if digest.size and answer.status_code != 206:
                    digest.restart(part)  # it sends the file from the start
                for chunk in self._paced(answer.iter_bytes()):
                    if digest.size + len(chunk) > file.size_bytes:
                        digest.restart(part)
                        raise _Retry("more bytes came than the Hub tells")
                    part.write(chunk)
                    part.flush()
                    digest.add(chunk)
        except httpx2.HTTPError as error:
            raise _Retry(f"{type(error).__name__}: {first_line(error)}") from error

    def _paced(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """The chunks, unless next to nothing comes or the download is over."""
        began, came = time.monotonic(), 0
        for chunk in chunks:
            if self.stop.is_set():
                raise _Stopped
            yield chunk
            came += len(chunk)
            now = time.monotonic()
            if now - began > self._patience.window_seconds:
                if came < self._patience.window_bytes:
                    raise _Retry(f"{came} bytes came in {now - began:.0f} s")
                began, came = now, 0

    def _check(self, answer: Any, file: RepoFile) -> None:
        status = answer.status_code
        if status in (200, 206):
            return
        code = answer.headers.get("X-Error-Code", "")
        if status == 416:
            raise _Retry("the Hub does not send the rest")
        if status in _TRANSIENT:
            raise _Retry(f"the Hub answers {status}")
        if code == "GatedRepo" or status in (401, 403):
            raise gated(self._repo)
        raise ModelUnavailable(
            f"{self._repo}: {file.path} could not be fetched: the Hub answers {status} {code}".rstrip()
        )

    def _sleep(self, seconds: float) -> None:
        if self.stop.wait(seconds):
            raise _Stopped


class _Digest:
    """The digest of the bytes that a file has so far."""

    def __init__(self, file: RepoFile) -> None:
        self._file = file
        self._begin()

    @classmethod
    def of(cls, file: RepoFile, part: BinaryIO) -> _Digest:
        digest = cls(file)
        part.seek(0)
        while chunk := part.read(CHUNK_BYTES):
            digest.add(chunk)
        if digest.size > file.size_bytes:
            digest.restart(part)
        return digest

    @property
    def value(self) -> str:
        return self._hash.hexdigest()

    def add(self, chunk: bytes) -> None:
        self._hash.update(chunk)
        self.size += len(chunk)

    def restart(self, part: BinaryIO) -> None:
        part.seek(0)
        part.truncate()
        self._begin()

    def _begin(self) -> None:
        self.size = 0
        if self._file.sha256 is not None:
            self._hash = hashlib.sha256()
        else:
            header = f"blob {self._file.size_bytes}\0".encode()  # as git names a file
            self._hash = hashlib.sha1(header, usedforsecurity=False)


class _Retry(Exception):
    """A try went wrong in a way that another may not."""


class _Stopped(Exception):
    """Nobody wants the download any more."""


def _is_still(path: Path, opened: BinaryIO) -> bool:
    """Whether `path` is the file that is open, and not one that came after it."""
    try:
        return os.path.samestat(path.stat(), os.fstat(opened.fileno()))
    except FileNotFoundError:
        return False


def disk_error(error: OSError) -> StorageUnavailable:
    """What the models folder's disk said, as ours."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        what = "the disk of the models folder is full; what came is kept. Make room, then try again"
    else:
        what = f"the models folder cannot be written: {error.strerror}; make it writable, or set FLUX_MODELS_DIR"
    return StorageUnavailable(what, retry_after_seconds=60)
