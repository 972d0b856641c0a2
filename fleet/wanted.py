"""What a job needs of a replica."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A job, as routing sees it."""

    job: str
    seq: int  # its place in line, which it keeps when it is tried again
    model: str
    work: float = 1.0  # times what a job of the model takes as it is measured
    lora_set: str = ""  # names the LoRAs with their weights; equal for equal ones
    resources: frozenset[str] = frozenset()  # all of them: "fp4", "bf16", "mflux"
    tags: frozenset[str] = frozenset()  # all of them, of the replica's node
    avoid: frozenset[str] = frozenset()  # replicas that failed it, unless nobody else can run it

    @property
    def needs(self) -> tuple[str, frozenset[str], frozenset[str], frozenset[str]]:
        """Jobs with equal needs can run on the same replicas."""
        return (self.model, self.resources, self.tags, self.avoid)
