"""The fewest loads with which jobs can be drawn if no card may idle while one waits that it could run.

For two cards that have room for all models, so that none ever leaves. All plans are gone through: at
every moment at which a card is free and somebody waits, the free card, or either of two, begins with the
oldest job of any model that is waited for (which of equal jobs goes first changes no load). Plans that
come to the same point, the same jobs begun, the same models loaded, the cards free at the same times,
are one. A plan that has needed more loads than are asked about is left out, so what remains dies out soon
where that many are too few.
"""

from __future__ import annotations

from collections.abc import Sequence

from fleet.simulator import CardModel, SimJob

# A plan as far as it has come: how many of each model have begun, and each card's (free at, models).
Point = tuple[tuple[int, ...], tuple[tuple[float, frozenset[int]], ...]]


def least_loads(jobs: Sequence[SimJob], card: CardModel) -> int:
    """Of all plans for two such cards, the loads of the best one."""
    names = sorted({job.model for job in jobs})
    assert (
        sum(card.model_gib[name] for name in names) <= card.memory_gib
    ), "models would have to leave"
    for most in range(len(names), 2 * len(names)):
        if _is_possible(jobs, card, names, most):
            return most
    return 2 * len(names)


def _is_possible(jobs: Sequence[SimJob], card: CardModel, names: Sequence[str], most: int) -> bool:
    """Whether any plan needs no more than `most` loads."""
    lines = [[job for job in jobs if job.model == name] for name in names]
    nothing: tuple[float, frozenset[int]] = (0.0, frozenset())
    points: set[Point] = {(tuple(0 for _ in names), (nothing, nothing))}
    for _ in jobs:
        points = {
            after
            for point in points
            for after in _steps(point, lines, card, names)
            if sum(len(models) for _, models in after[1]) <= most
        }
        if not points:
            return False
    return True


def _steps(
    point: Point, lines: Sequence[Sequence[SimJob]], card: CardModel, names: Sequence[str]
) -> list[Point]:
    """What may begin next, at the first moment at which something can."""
    begun, cards = point
    comes = {
        model: line[begun[model]].at for model, line in enumerate(lines) if begun[model] < len(line)
    }
    now = max(min(comes.values()), min(free_at for free_at, _ in cards))
    after = []
    for which, (free_at, models) in enumerate(cards):
        for model, at in comes.items():
            if free_at > now or at > now:
                continue
            seconds = card.job_seconds[names[model]] * lines[model][begun[model]].work
            if model not in models:
                seconds += card.load_seconds(names[model])
            # Being free earlier than the next job begins makes no difference.
            new = [(max(each, now), known) for each, known in cards]
            new[which] = (now + seconds, models | {model})
            counts = tuple(count + (each == model) for each, count in enumerate(begun))
            after.append((counts, tuple(sorted(new, key=lambda card: (card[0], sorted(card[1]))))))
    return after
