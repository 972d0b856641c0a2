"""The LoRAs of a service: the library it shares with others, what it fetches, and its defaults."""

from __future__ import annotations

import asyncio
import copy
import json
import logging
from collections.abc import Callable, Sequence

from config.catalog import Catalog, ModelRow
from config.errors import ConfigurationError, FieldError, FluxError, InvalidRequest, NotFound
from config.settings import ROOT, Settings
from models.lora import incoming, lookup, names
from models.lora.entry import UPLOADED, LoraEntry
from models.lora.errors import LoraIncompatible
from models.lora.incoming import Incoming
from models.lora.library import Library
from models.precision import PrecisionProfile
from models.types import LoraRef
from utils import lora_choice
from utils.clock import Chance, rfc3339
from utils.event_bus import EventBus
from utils.job_store import JobStore
from utils.lora_choice import DefaultLora, LoraChoice
from utils.lora_fetcher import EVENT, Fetching, LoraFetcher
from utils.lora_pins import LoraPins, pins_folder

log = logging.getLogger(__name__)

BUILTIN_FOLDER = ROOT / "models" / "embedded-loras"
DEFAULTS = "default_loras"  # the key of what is remembered


class LoraManager:
    """Nothing is opened before `start`. What may block is a coroutine; methods raise FluxError."""

    def __init__(
        self, settings: Settings, profile: PrecisionProfile, catalog: Catalog, chance: Chance
    ) -> None:
        self.defaults: tuple[DefaultLora, ...] = ()
        self._catalog = catalog
        self._profile = profile
        self._max_bytes = settings.server.max_lora_bytes
        self._reserve_bytes = settings.storage.min_free_mib * 2**20
        self.library = Library(
            settings.storage.lora_dir,
            BUILTIN_FOLDER,
            max_bytes=self._max_bytes,
            now=lambda: rfc3339(chance.now()),
        )
        folder = pins_folder(settings.storage.lora_dir, profile.name, settings.storage.data_dir)
        self.pins = LoraPins(folder, self.library)
        self._fetcher = LoraFetcher(
            self.library,
            max_bytes=self._max_bytes,
            reserve_bytes=self._reserve_bytes,
            allow_download=settings.models.allow_download,
        )
        self._store: JobStore
        self._bus: EventBus

    async def start(self, store: JobStore, bus: EventBus) -> None:
        """Read the defaults and the library; remove what an earlier process left half-way. Raises ConfigurationError."""
        self._store, self._bus = store, bus
        self._fetcher.start(bus)
        self.set_defaults(await store.read_state(DEFAULTS))
        try:
            await self._in_a_thread(self.library.sweep)
            await self.refresh()
        except FluxError as error:
            raise ConfigurationError(error.message) from error

    def set_defaults(self, stored: str | None) -> None:
        """As they stand in the store."""
        self.defaults = tuple(map(DefaultLora.from_json, json.loads(stored or "[]")))

    async def stop(self) -> None:
        await self._fetcher.stop()

    # The library

    async def refresh(self) -> None:
        """Look what other services, or somebody by hand, have put into the folder."""
        await self._in_a_thread(self.library.refresh)

    async def entries(self) -> list[LoraEntry]:
        await self.refresh()
        return self.library.entries()

    @property
    def fetching(self) -> list[Fetching]:
        return self._fetcher.fetching

    async def find(self, name: str) -> LoraEntry:
        return lookup.find(name, await self.entries())

    async def receive(self, expected_bytes: int | None) -> Incoming:
        """A place for an upload of a declared size. Raises NoRoom, TooLarge."""
        return await asyncio.to_thread(
            self.library.incoming, reserve_bytes=self._reserve_bytes, expected_bytes=expected_bytes
        )

    def place(self) -> Incoming:
        """The same for a file whose size nobody knows. Blocks; for a thread."""
        return self.library.incoming(reserve_bytes=self._reserve_bytes)

    async def require_room(self, expected_bytes: int | None) -> None:
        """Raises NoRoom for a body of several parts that the disk has no room for."""
        with await self.receive(min(expected_bytes or 0, self._max_bytes)):
            pass

    async def add_all(self, files: Sequence[tuple[Incoming, str]]) -> list[tuple[LoraEntry, bool]]:
        """Keep all of them, or none when one is refused."""
        added = []
        try:
            for file, filename in files:
                added.append(await self.add(file, filename))
        except FluxError as error:
            for entry, is_new in added:
                if is_new:
                    await self.remove(entry.sha256 + names.SUFFIX)
            if len(files) > 1:
                error.message = (
                    f"{filename}: {error.message}; none of the {len(files)} files is kept"
                )
            raise
        return added

    async def add(self, file: Incoming, filename: str) -> tuple[LoraEntry, bool]:
        """Keep an upload that came in whole; with whether it is new."""
        entry, is_new = await asyncio.to_thread(self.library.add, file, filename, source=UPLOADED)
        if is_new:
            log.info(
                "LoRA %s was added",
                entry.name,
                extra={"action": "lora_added", "sha256": entry.sha256},
            )
            self._tell(entry, "ready")
        return entry, is_new

    async def change(
        self, name: str, *, new_name: str | None, trigger_words: Sequence[str] | None
    ) -> LoraEntry:
        entry = await self.find(name)
        changed = await asyncio.to_thread(
            self.library.change, entry.sha256, name=new_name, trigger_words=trigger_words
        )
        self._tell(changed, "changed")
        return changed

    async def remove(self, name: str) -> None:
        """It leaves the library and the defaults of this service; jobs that have it keep it."""
        entry = await self.find(name)
        await asyncio.to_thread(self.library.remove, entry.sha256)
        left = tuple(each for each in self.defaults if each.sha256 != entry.sha256)
        if left != self.defaults:
            await self._write_defaults(left)
        log.info(
            "LoRA %s was deleted",
            entry.name,
            extra={"action": "lora_deleted", "sha256": entry.sha256},
        )
        self._tell(entry, "deleted")

    def compatible_models(self, entry: LoraEntry) -> list[str]:
        """The models of this service that it fits."""
        return [row.id for row in self._rows() if lora_choice.why_not(entry, row) is None]

    # Requests

    async def prepare(self, choices: Sequence[LoraChoice]) -> None:
        """Look at the library anew, and fetch what a request names and it does not have."""
        if not choices and not self.defaults:
            return
        await self.refresh()
        for index, choice in enumerate(choices):
            wanted = names.hub_id(choice.name)
            if wanted is None or lookup.meant_by(choice.name, self.library.entries()):
                continue
            try:
                self._tell(await self._fetcher.fetch(wanted), "ready")
            except FluxError as error:
                named = copy.copy(error)  # others may wait for the same fetch
                named.fields = (FieldError(choice.field_at(index), error.message),)
                raise named from error

    def refs(self, choices: Sequence[LoraChoice] | None, row: ModelRow) -> tuple[LoraRef, ...]:
        """The LoRAs of a request for a model; None: the service's defaults. Looks at memory alone."""
        if choices is None:
            if not self.defaults:
                return ()
            return lora_choice.by_default(self.defaults, self.library.entries(), row)
        return lora_choice.chosen(choices, self.library.entries(), row) if choices else ()

    # Defaults

    async def apply(self, choices: Sequence[LoraChoice]) -> None:
        """These are the service's default LoRAs from now on, in place of others."""
        await self.prepare(choices)
        entries = self.library.entries()
        defaults: dict[str, DefaultLora] = {}
        for index, choice in enumerate(choices):
            field = choice.field_at(index)
            entry = lookup.find(choice.name, entries, field)
            if entry.sha256 in defaults:
                raise InvalidRequest.of(field, f"{entry.name} is in the list twice; send it once")
            if not self.compatible_models(entry):
                reasons = [lora_choice.why_not(entry, row) for row in self._rows()]
                raise LoraIncompatible.of(
                    field, f"LoRA {entry.name} fits no model of this service: {reasons[0]}"
                )
            defaults[entry.sha256] = DefaultLora(
                name=entry.name,
                sha256=entry.sha256,
                weight=choice.weight,
                trigger_word=choice.trigger_word,
            )
        await self._write_defaults(tuple(defaults.values()))

    async def take_back(self, name: str | None) -> None:
        """End one default, by any of its LoRA's names, or all of them."""
        if name is None:
            return await self._write_defaults(())
        meant = {entry.sha256 for entry in lookup.meant_by(name, await self.entries())}
        left = tuple(e for e in self.defaults if e.sha256 not in meant and e.name != name)
        if left == self.defaults:
            raise NotFound.of(
                "name", f"{name[:100]!a} is no default LoRA; GET /lora-status lists them"
            )
        await self._write_defaults(left)

    async def _write_defaults(self, defaults: tuple[DefaultLora, ...]) -> None:
        await self._store.write_state(DEFAULTS, json.dumps([each.to_json() for each in defaults]))
        self.defaults = defaults

    # Inside

    async def _in_a_thread(self, call: Callable[[], None]) -> None:
        try:
            await asyncio.to_thread(call)
        except OSError as error:
            raise incoming.refused(self.library.folder, error) from error

    def _rows(self) -> list[ModelRow]:
        return [row for row in self._catalog if self._profile.name in row.memory_gib]

    def _tell(self, entry: LoraEntry, status: str) -> None:
        self._bus.publish(EVENT, data={"name": entry.name, "status": status})
