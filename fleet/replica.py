"""What a replica says of itself, and what may be concluded from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fleet.wanted import Wanted


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaStats:
    """One report of one replica: a card (or several that draw together) with its worker.

    `model_gib` names every model that it can run and what each takes; models stay loaded beside each
    other within `memory_gib`, and who was used longest ago leaves first.
    """

    replica: str  # a name of this life: a replica that is started anew has another
    node: str
    resources: frozenset[str] = frozenset()  # "fp4", "bf16", "mflux"
    tags: frozenset[str] = frozenset()
    model_gib: Mapping[str, float] = field(default_factory=dict)
    memory_gib: float = 0.0  # what models may take together
    models: tuple[str, ...] = ()  # loaded, used longest ago first
    lora_sets: frozenset[tuple[str, str]] = frozenset()  # (model, LoRA set) that are at hand
    jobs: frozenset[str] = frozenset()  # what it has, begun or in its hand
    heard: str = (
        ""  # the last job that the front door gave it, so that one on its way is known as such
    )
    finishing: frozenset[str] = frozenset()  # of `jobs`: the last steps are done, it only decodes
    takes: int = 1  # how many it may have, beside those that are finishing
    job_seconds: Mapping[str, float] = field(default_factory=dict)  # measured, a job by its model
    load_seconds: Mapping[str, float] = field(default_factory=dict)  # measured, of each model
    seconds_left: float | None = None  # until it is free, where its progress tells
    load: float = 0.0  # of its processors, 0 to 1
    is_draining: bool = False  # gets nothing new


@dataclass(frozen=True, slots=True)
class Profile:
    """What decides which jobs a replica can run; many replicas of a fleet have the same."""

    resources: frozenset[str]
    tags: frozenset[str]
    memory_gib: float
    gib: tuple[tuple[str, float], ...]
    sizes: dict[str, float] = field(compare=False, repr=False)  # the same as `gib`, to look up
    number: int = field(compare=False, repr=False)  # its hash, which is asked for often

    @classmethod
    def of(cls, stats: ReplicaStats) -> Profile:
        gib = tuple(sorted(stats.model_gib.items()))
        number = hash((stats.resources, stats.tags, stats.memory_gib, gib))
        return cls(stats.resources, stats.tags, stats.memory_gib, gib, dict(gib), number)

    def __hash__(self) -> int:
        return self.number

    def can_run(self, wanted: Wanted) -> bool:
        """Whether a job may run there at all, at once or after others have left."""
        size = self.sizes.get(wanted.model)
        return (
            size is not None
            and size <= self.memory_gib
            and wanted.resources <= self.resources
            and wanted.tags <= self.tags
        )

    def leaving(self, model: str, models: tuple[str, ...]) -> tuple[str, ...]:
        """Which of the loaded `models` leave so that another one fits, used longest ago first."""
        if model in models:
            return ()
        needed = self.sizes[model] + sum(self.sizes.get(each, 0.0) for each in models)
        for gone, each in enumerate(models):
            if needed <= self.memory_gib:
                return models[:gone]
            needed -= self.sizes.get(each, 0.0)
        return models

    def loaded_after(self, model: str, models: tuple[str, ...]) -> tuple[str, ...]:
        """The loaded models once a job of `model` was begun, used longest ago first."""
        kept = models[len(self.leaving(model, models)) :]
        return (*(each for each in kept if each != model), model)
