"""Cards with times that were published or measured, and traffic for them.

Seconds of a picture of 1024 x 1024 px in the model's usual steps:

- H100, BF16, compiled: FLUX.1 [dev] 4.5 s in 28 steps (PyTorch's developer notes, 2026), [schnell] 0.85 s
  (Replicate's refreshed service, 2026).
- L40S, BF16, compiled: 0.374 s a step of FLUX.1 (diffusers' own benchmarks).
- RTX 5090, FP4: FLUX.1 [schnell] 0.72 s (diffusers' documents on nunchaku), 7.73 steps of [dev] a second.
- RTX 4090: 3.51 steps of FLUX.1 [dev] a second (flux-fp8-api), with the sizes of FP4.
- M3 Ultra, mflux: FLUX.1 [schnell] 10 s, [dev] 30 s, Z-Image Turbo 18 s (ollama-herd's guide).

Steps of other models are computed from those of FLUX.1 by their arithmetic (`STEP_SHARE`). Sizes are the
catalog's. A load reads 5.2 GiB a second: 31.4 GB in 5.4 to 5.8 s from memory of the system (diffusers'
pull request 12648). A change of LoRAs is taken for 0.1 s, a message for 2 ms.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from config.catalog import Catalog, load_catalog
from fleet.simulator import CardModel, Failure, SimCard, SimJob

LOAD_GIB_PER_SECOND = 5.2
LORA_SECONDS = 0.1
# Seconds that a picture takes beside its steps: the prompt, the autoencoder.
BESIDE_SECONDS = 0.2
# A step, by one of FLUX.1 at the same size.
STEP_SHARE = {
    "flux-schnell": 1.0,
    "flux-dev": 1.0,
    "flux-krea-dev": 1.0,
    "flux-kontext-dev": 1.9,  # twice the tokens
    "flux-fill-dev": 1.0,
    "flux2-klein-4b": 0.5,  # 34.8 TFLOP against 69.5
    "flux2-klein-9b": 0.9,
    "flux2-klein-base-4b": 1.0,  # guided: twice a step
    "z-image-turbo": 0.5,
    "sdxl-base": 0.17,  # guided
}
THREE = {"flux-schnell": 5, "flux-dev": 2, "flux2-klein-4b": 3}
"""Three models, and how often each is asked for."""


def card_model(
    name: str, precision: str, memory_gib: float, step_seconds: float, catalog: Catalog
) -> CardModel:
    """A card whose step of FLUX.1 takes so long."""
    rows = [row for row in catalog if row.id in STEP_SHARE and precision in row.memory_gib]
    seconds = {
        row.id: row.num_inference_steps * step_seconds * STEP_SHARE[row.id] + BESIDE_SECONDS
        for row in rows
    }
    return CardModel(
        name=name,
        resources=frozenset({precision}),
        memory_gib=memory_gib,
        model_gib={row.id: row.memory_gib[precision] for row in rows},
        job_seconds=seconds,
        load_gib_per_second=LOAD_GIB_PER_SECOND,
        lora_seconds=LORA_SECONDS,
    )


class Hardware:
    """The cards of the traces."""

    def __init__(self) -> None:
        catalog = load_catalog()
        self.h100 = card_model("H100", "bf16", 78.0, 4.3 / 28, catalog)
        self.l40s = card_model("L40S", "bf16", 44.0, 0.374, catalog)
        self.rtx5090 = card_model("RTX 5090", "fp4", 31.0, 1 / 7.73, catalog)
        self.rtx4090 = card_model("RTX 4090", "fp4", 23.0, 1 / 3.51, catalog)
        apple = {"mflux-schnell": 10.0, "mflux-dev": 30.0, "mflux-z-image-turbo": 18.0}
        self.m3_ultra = CardModel(
            name="M3 Ultra",
            resources=frozenset({"mflux"}),
            memory_gib=180.0,
            model_gib={model: catalog[model].memory_gib["bf16"] for model in apple},
            job_seconds=apple,
            load_gib_per_second=LOAD_GIB_PER_SECOND,
            lora_seconds=LORA_SECONDS,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Cards and the traffic for them."""

    name: str
    cards: tuple[CardModel, ...]
    jobs: Sequence[SimJob]
    failures: tuple[Failure, ...] = ()

    def make_cards(self) -> list[SimCard]:
        return [
            SimCard(f"c{place:04}", f"node{place:04}", kind, frozenset())
            for place, kind in enumerate(self.cards)
        ]


def zipf(models: Sequence[str]) -> dict[str, float]:
    """The second is asked for half as often as the first, the third a third, and so on."""
    return {model: 1 / place for place, model in enumerate(models, 1)}


def capacity(cards: Sequence[CardModel], shares: Mapping[str, float]) -> float:
    """Jobs a second of all cards without a load, if each draws the mix of those models that it can run."""
    total = 0.0
    for card in cards:
        known = {model: share for model, share in shares.items() if model in card.job_seconds}
        seconds = sum(share * card.job_seconds[model] for model, share in known.items())
        total += sum(known.values()) / seconds if known else 0.0
    return total


def traffic(
    count: int,
    shares: Mapping[str, float] | Callable[[float], Mapping[str, float]],
    rate: float | Callable[[float], float],
    seed: int,
    loras: float = 0.3,
) -> list[SimJob]:
    """Jobs that come at random, `rate` a second, 0 for all at once; a share of them with one of five sets
    of LoRAs, and sizes or steps that make a picture take half to twice its usual time."""
    return list(_traffic(count, shares, rate, random.Random(seed), loras))


def _traffic(
    count: int,
    shares: Mapping[str, float] | Callable[[float], Mapping[str, float]],
    rate: float | Callable[[float], float],
    source: random.Random,
    loras: float,
) -> Iterator[SimJob]:
    now = 0.0
    for place in range(count):
        rate_now = rate(now) if callable(rate) else rate
        if rate_now:
            now += source.expovariate(rate_now)
        shares_now = shares(now) if callable(shares) else shares
        yield SimJob(
            job=f"job{place}",
            at=now,
            model=source.choices(list(shares_now), list(shares_now.values()))[0],
            lora_set=f"set{source.randrange(5)}" if source.random() < loras else "",
            work=2 ** source.uniform(-1, 1),
        )


def two_nodes(card: CardModel, load: float, seed: int = 1) -> Trace:
    """Two nodes, three models, 500 requests."""
    cards = (card, card)
    jobs = traffic(500, THREE, load * capacity(cards, THREE), seed)
    return Trace(
        name=f"two {card.name}, three models, 500 jobs, load {load}", cards=cards, jobs=jobs
    )


def backlog(card: CardModel, seed: int = 1) -> Trace:
    """The same, all at once."""
    jobs = traffic(500, THREE, 0.0, seed, loras=0.0)
    return Trace(name=f"two {card.name}, 500 jobs at once", cards=(card, card), jobs=jobs)


def traces(hardware: Hardware, seed: int = 0) -> list[Trace]:
    """What routers are compared on; another seed is other traffic of the same kind."""
    other = 100 * seed
    eight = (hardware.h100,) * 8
    mixed = (hardware.h100,) * 4 + (hardware.rtx5090,) * 4
    ten = [model for model in STEP_SHARE if model in hardware.h100.model_gib]
    popular = zipf(ten)
    three = list(THREE)

    def moving(now: float) -> dict[str, float]:
        """Another model is the favourite every five minutes."""
        first = int(now / 300) % len(three)
        return {model: 12.0 if place == first else 1.0 for place, model in enumerate(three)}

    def bursts(now: float) -> float:
        """A minute of much, two of little."""
        return capacity(mixed, moving(now)) * (1.3 if now % 180 < 60 else 0.3)

    apple = (hardware.m3_ultra,) * 2
    with_apple = {**THREE, "mflux-schnell": 0.6, "mflux-dev": 0.3, "mflux-z-image-turbo": 0.3}
    cuda_and_apple = (hardware.h100, hardware.rtx5090, hardware.rtx4090, *apple)
    return [
        two_nodes(hardware.l40s, 0.5, 1 + other),
        two_nodes(hardware.h100, 0.5, 1 + other),
        two_nodes(hardware.h100, 0.8, 1 + other),
        Trace(
            name="8 H100, ten models by Zipf, load 0.6",
            cards=eight,
            jobs=traffic(2000, popular, 0.6 * capacity(eight, popular), 2 + other),
        ),
        Trace(
            name="4 H100 and 4 RTX 5090, bursts, the favourite changes",
            cards=mixed,
            jobs=traffic(1500, moving, bursts, 3 + other),
        ),
        day(hardware, 1.0, 4 + other),
        Trace(
            name="8 H100, ten models, load 0.5, three cards die",
            cards=eight,
            jobs=traffic(2000, popular, 0.5 * capacity(eight, popular), 5 + other),
            failures=(
                Failure(card=0, at=100.0, back_at=400.0),
                Failure(card=3, at=101.0, back_at=160.0),
                Failure(card=5, at=500.0, back_at=600.0),
            ),
        ),
        Trace(
            name="H100, RTX 5090, RTX 4090 and two Macs, load 0.6",
            cards=cuda_and_apple,
            jobs=traffic(1500, with_apple, 0.6 * capacity(cuda_and_apple[:3], THREE), 6 + other),
        ),
    ]


def day(hardware: Hardware, hours: float, seed: int = 4) -> Trace:
    """From night to noon, nine tenths of what is possible, and back to night."""
    cards = (hardware.h100,) * 8
    popular = zipf([model for model in STEP_SHARE if model in hardware.h100.model_gib])
    most = capacity(cards, popular)

    def rate(now: float) -> float:
        return most * (0.5 - 0.4 * math.cos(2 * math.pi * now / (3600 * hours)))

    return Trace(
        name=f"8 H100, ten models, a day's rise and fall in {hours:g} h",
        cards=cards,
        jobs=traffic(int(0.5 * most * 3600 * hours), popular, rate, seed),
    )


def thousand(hardware: Hardware, jobs: int = 100_000) -> Trace:
    """A thousand nodes of three kinds, near what they can do."""
    kinds = (hardware.h100, hardware.rtx5090, hardware.rtx4090, hardware.l40s)
    cards = tuple(kinds[place % len(kinds)] for place in range(1000))
    popular = zipf(list(STEP_SHARE))
    known = {
        model: share for model, share in popular.items() if model in hardware.rtx4090.model_gib
    }
    rate = 0.85 * capacity(cards, known)
    return Trace(
        name=f"1,000 nodes, {jobs:,} jobs, load 0.85",
        cards=cards,
        jobs=traffic(jobs, known, rate, 7),
    )
