"""Which LoRAs of the library a request gets: by what it asks for, or by the service's defaults."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from config.catalog import ModelRow
from config.errors import FluxError, InvalidRequest, NotFound
from models.lora import lookup
from models.lora.base_model import Family
from models.lora.entry import LoraEntry
from models.lora.errors import LoraIncompatible
from models.lora.inspect import require
from models.types import LoraRef

MAX_LORAS = 8
MAX_WEIGHT = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraChoice:
    """What a request says of a LoRA. `trigger_word`: None is the library's words, "" is none."""

    name: str
    weight: float = 1.0
    trigger_word: str | None = None
    field: str | None = (
        None  # of the request, that holds the name; None: that of its place in `loras`
    )

    def field_at(self, index: int) -> str:
        """What errors about the name call it."""
        return self.field or f"loras.{index}.name"


@dataclass(frozen=True, slots=True, kw_only=True)
class DefaultLora:
    """A LoRA that requests get which name none. By content: it may be renamed."""

    name: str  # when it was chosen
    sha256: str
    weight: float
    trigger_word: str | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> DefaultLora:
        return cls(**data)


def chosen(
    choices: Sequence[LoraChoice], entries: Collection[LoraEntry], row: ModelRow
) -> tuple[LoraRef, ...]:
    """The LoRAs of a request for a model.

    Raises FluxError naming the entry of `loras`: NotFound, InvalidRequest for one that is meant
    twice, LoraIncompatible.
    """
    refs: dict[str, LoraRef] = {}
    for index, choice in enumerate(choices):
        field = choice.field_at(index)
        entry = lookup.find(choice.name, entries, field)
        if entry.sha256 in refs:
            raise InvalidRequest.of(field, f"{entry.name} is in the list twice; send it once")
        reason = why_not(entry, row)
        if reason is not None:
            raise LoraIncompatible.of(
                field, f"LoRA {entry.name} cannot be used with {row.id}: {reason}"
            )
        refs[entry.sha256] = _ref(entry, choice.weight, choice.trigger_word)
    return tuple(refs.values())


def by_default(
    defaults: Sequence[DefaultLora], entries: Collection[LoraEntry], row: ModelRow
) -> tuple[LoraRef, ...]:
    """The service's default LoRAs for a model. Raises FluxError, never leaves one out."""
    by_content = {entry.sha256: entry for entry in entries}
    refs = []
    for default in defaults:
        entry = by_content.get(default.sha256)
        error: FluxError | None = None
        if entry is None:
            error = NotFound(
                f"LoRA {default.name}, a default of this service, is not in the library"
            )
        elif reason := why_not(entry, row):
            error = LoraIncompatible(
                f"LoRA {entry.name}, a default of this service, cannot be used with {row.id}: {reason}"
            )
        if error is not None:
            error.message += "; send `loras: []` for none, or end it with POST /remove-lora"
            raise error
        assert entry is not None
        refs.append(_ref(entry, default.weight, default.trigger_word))
    return tuple(refs)


def why_not(entry: LoraEntry, row: ModelRow) -> str | None:
    """Why a LoRA cannot be used with a model; None when it can, as far as its header tells."""
    if not row.loras:
        return entry.info.refusal or f"{row.id} takes no LoRAs"
    try:
        require(entry.info, Family(row.architecture or row.family), row.hidden_size)
    except LoraIncompatible as error:
        return error.message
    return None


def _ref(entry: LoraEntry, weight: float, trigger_word: str | None) -> LoraRef:
    words = entry.trigger_words
    if trigger_word is not None:
        words = (trigger_word,) if trigger_word else ()
    return LoraRef(name=entry.name, sha256=entry.sha256, weight=weight, trigger_words=words)
