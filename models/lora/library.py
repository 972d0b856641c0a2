"""The LoRA library: a folder that the services of a machine share, and the LoRAs that ship with the project.

A LoRA is known by the SHA-256 of its bytes. There is no record beside the folder (`shelf`): what lies in
it is the library, and a service that looks (`refresh`) sees what another one was given. A file that
somebody copied into the folder is taken in at the next look, by the same checks as an upload, and renamed;
one that fails them is named in the log and left where it is.

No torch: this runs in the API process. Every method may block and belongs into a thread, but `entries`
and `by_sha256`, which look at memory alone.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from config.errors import FluxError, InvalidRequest, NotFound
from models.lora import incoming, keys, names
from models.lora.entry import BUILTIN, FOUND, LoraEntry
from models.lora.errors import ReadOnlyLora
from models.lora.header import read_header
from models.lora.incoming import Incoming
from models.lora.inspect import LoraInfo, inspect
from models.lora.json_cursor import shown
from models.lora.shelf import Shelf, Signature, sha256_of, signature
from models.lora.whole import check_modules

log = logging.getLogger(__name__)

# A folder's time does not tell two changes within so long apart.
_SETTLED_NS = 100_000_000


class Library:
    """LoRAs by content. Nothing is opened before `refresh`.

    `now` gives the time of an addition as RFC 3339; `max_bytes` is the largest file that is taken.
    """

    def __init__(
        self, folder: Path, builtin: Path, *, max_bytes: int, now: Callable[[], str]
    ) -> None:
        self.folder = folder
        self._builtin_folder = builtin
        self._max_bytes = max_bytes
        self._now = now
        self._shelf = Shelf(folder)
        self._entries: dict[str, LoraEntry] = {}
        self._builtin: dict[str, LoraEntry] | None = None  # None: not looked at yet
        self._looked_at: int | None = None  # the folder's time, when nothing can have been missed
        self._refused: dict[Path, Signature | None] = {}  # files that failed the checks

    # Looking

    def refresh(self) -> None:
        """Look what lies in the folder, if it has changed."""
        with self._shelf.mutex:
            if self._builtin is None:
                self._builtin = self._read_builtin()
                self._show([])
            changed_at = self._shelf.changed_at()
            if changed_at is None:
                self._show([])
            elif changed_at != self._looked_at or self._refused:
                if self._scan():
                    with self._shelf.locked():
                        self._adopt()
                        changed_at = self._shelf.changed_at()
                        self._scan()
                is_settled = changed_at is not None and time.time_ns() - changed_at > _SETTLED_NS
                self._looked_at = changed_at if is_settled else None

    def entries(self) -> list[LoraEntry]:
        """All of them: those that ship with the project, then the newest first."""
        found = list(self._entries.values())
        builtin = sorted((e for e in found if e.is_builtin), key=lambda e: e.name)
        others = [e for e in found if not e.is_builtin]
        return builtin + sorted(others, key=lambda e: (e.created_at, e.name), reverse=True)

    def by_sha256(self, sha256: str) -> LoraEntry | None:
        return self._entries.get(sha256)

    # Changing

    def sweep(self) -> None:
        """Remove what processes that are gone left half-way."""
        incoming.sweep(self.folder)
        if self._shelf.changed_at() is not None:
            with self._shelf.locked():
                self._shelf.sweep()

    def incoming(self, *, reserve_bytes: int, expected_bytes: int | None = None) -> Incoming:
        """A place for a file on its way in."""
        return Incoming(
            self.folder,
            max_bytes=self._max_bytes,
            reserve_bytes=reserve_bytes,
            expected_bytes=expected_bytes,
        )

    def add(
        self, file: Incoming, filename: str, *, source: str, hub_id: str | None = None
    ) -> tuple[LoraEntry, bool]:
        """Check what came in and keep it; with whether it is new.

        Raises LoraError for what is no LoRA file, and then keeps nothing.
        """
        sha256 = file.finish()
        self.refresh()
        # A large file takes a while; nobody waits for it with the lock.
        info = None if sha256 in self._entries else examine(file.path, self._max_bytes)
        with self._shelf.locked():
            self.refresh()
            known = self._entries.get(sha256)
            if known is not None:
                return self._also_at(known, hub_id), False
            info = info or examine(file.path, self._max_bytes)
            added = self._entry(sha256, info, filename, source)
            added = dataclasses.replace(added, hub_ids=(hub_id,) if hub_id else ())
            self._shelf.keep(added, file.keep)
            self._entries[sha256] = added
            return added, True

    def change(
        self, sha256: str, *, name: str | None = None, trigger_words: Sequence[str] | None = None
    ) -> LoraEntry:
        """Rename it, or give it other trigger words; None leaves them as they are."""
        with self._shelf.locked():
            self.refresh()
            before = self._own(sha256)
            if name is not None and name != before.name and name in self._names():
                raise InvalidRequest.of("name", f"{name} is another LoRA's; choose another name")
            words = before.trigger_words if trigger_words is None else tuple(trigger_words)
            return self._write(
                dataclasses.replace(before, name=name or before.name, trigger_words=words)
            )

    def remove(self, sha256: str) -> LoraEntry:
        """Forget it. What jobs hold of it stays theirs."""
        with self._shelf.locked():
            self.refresh()
            removed = self._own(sha256)
            self._shelf.remove(removed)
            del self._entries[sha256]
            return removed

    # Inside

    def _own(self, sha256: str) -> LoraEntry:
        found = self._entries.get(sha256)
        if found is None:
            raise NotFound("the LoRA is not in the library any more")
        if found.is_builtin:
            raise ReadOnlyLora(f"LoRA {found.name} ships with the project and stays as it is")
        return found

    def _names(self) -> set[str]:
        return {e.name for e in self._entries.values()}

    def _entry(self, sha256: str, info: LoraInfo, filename: str, source: str) -> LoraEntry:
        return LoraEntry(
            name=names.distinct(names.name_of(filename), self._names()),
            filename=filename,
            sha256=sha256,
            source=source,
            created_at=self._now(),
            trigger_words=info.trigger_words,
            info=info,
            path=self._shelf.path(sha256),
        )

    def _write(self, entry: LoraEntry) -> LoraEntry:
        self._shelf.write(entry)
        self._entries[entry.sha256] = entry
        return entry

    def _also_at(self, known: LoraEntry, hub_id: str | None) -> LoraEntry:
        """The same bytes were found at a place on the Hub."""
        if hub_id is None or hub_id in known.hub_ids:
            return known
        more = dataclasses.replace(known, hub_ids=(*known.hub_ids, hub_id))
        if not known.is_builtin:
            return self._write(more)
        assert self._builtin is not None
        self._builtin[known.sha256] = self._entries[known.sha256] = more
        return more

    def _read_builtin(self) -> dict[str, LoraEntry]:
        found = {}
        for path in sorted(self._builtin_folder.glob(f"*{names.SUFFIX}")):
            sha256, made_at = sha256_of(path), datetime.fromtimestamp(path.stat().st_mtime, UTC)
            found[sha256] = dataclasses.replace(
                self._entry(sha256, inspect(path), path.name, BUILTIN),
                created_at=made_at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
                path=path,
            )
        return found

    def _show(self, found: Iterable[LoraEntry]) -> None:
        """These and those that ship with the project are the library from now on."""
        everything = {**{e.sha256: e for e in found}, **(self._builtin or {})}
        # Two files copied with their facts may have one name: the later one gets another.
        taken: set[str] = set()
        shown_entries = {}
        for entry in sorted(
            everything.values(), key=lambda e: (not e.is_builtin, e.created_at, e.sha256)
        ):
            name = names.distinct(entry.name, taken)
            taken.add(name)
            if name != entry.name:
                entry = dataclasses.replace(entry, name=name)
            shown_entries[entry.sha256] = entry
        self._entries = shown_entries

    def _scan(self) -> bool:
        """Read the folder into memory; returns whether there are files to take in."""
        found, has_strangers = [], False
        files = self._shelf.files()
        for path in files:
            entry = self._known(path)
            if entry is not None:
                found.append(entry)
            elif path not in self._refused or self._refused[path] != signature(path):
                has_strangers = True
        self._refused = {path: seen for path, seen in self._refused.items() if path in files}
        self._show(found)
        return has_strangers

    def _known(self, path: Path) -> LoraEntry | None:
        return self._shelf.read(path) if names.STORED.fullmatch(path.name) else None

    def _adopt(self) -> None:
        """Take in what somebody copied into the folder."""
        for path in self._shelf.files():
            seen = signature(path)
            if self._known(path) is not None or self._refused.get(path, ()) == seen:
                continue
            try:
                self._take_in(path)
                self._refused.pop(path, None)
            except (FluxError, OSError) as error:
                self._refused[path] = seen
                log.warning(
                    "%s in the LoRA folder is not used: %s",
                    shown(path.name),
                    error,
                    extra={"action": "lora_not_adopted"},
                )

    def _take_in(self, path: Path) -> None:
        info = examine(path, self._max_bytes)
        sha256 = sha256_of(path)
        if sha256 in self._entries:
            if path != self._entries[sha256].path:
                path.unlink()  # the library has these bytes already
            return
        called = (
            f"lora-{sha256[:8]}.safetensors" if names.STORED.fullmatch(path.name) else path.name
        )
        entry = self._entry(sha256, info, names.clean_filename(called), FOUND)
        os.replace(path, entry.path)
        self._write(entry)
        log.info(
            "%s in the LoRA folder is LoRA %s from now on",
            shown(path.name),
            entry.name,
            extra={"action": "lora_adopted"},
        )


def examine(path: Path, max_bytes: int) -> LoraInfo:
    """What a file is, after every check: its header, its numbers. Raises LoraError, TooLarge."""
    from models.lora.finite import check_finite  # imports numpy, which a service may never need

    header = read_header(path, max_bytes=max_bytes)
    info = inspect(path, header)
    if info.refusal is None:
        check_modules(keys.group(header.tensors)[0], header.tensors)
    check_finite(path, header)
    return info
