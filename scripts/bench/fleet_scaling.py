"""The rule of `fleet/scaling.py` on the simulator's cards."""

from __future__ import annotations

from fleet.scaling import ScaleLimits, ScaleState, decide
from fleet.simulator import OurPolicy, SimCard, World

TICK_SECONDS = 5.0


class ScaledPolicy(OurPolicy):
    """Our router, with as many cards as the rule says; one that is asked for is there after a while."""

    def __init__(self, limits: ScaleLimits, start_seconds: float) -> None:
        super().__init__()
        self.card_seconds = 0.0  # of cards that were there or on their way
        self.most = 0
        self._limits = limits
        self._start_seconds = start_seconds
        self._state = ScaleState()

    def begin(self, world: World) -> None:
        super().begin(world)
        for card in world.cards[self._limits.least :]:
            world.switch_off(card)
        self._off = list(world.cards[self._limits.least :])
        self._starting: list[SimCard] = []
        world.after(TICK_SECONDS, self._tick)

    def _tick(self) -> None:
        on = len(self._world.cards) - len(self._off)
        self.card_seconds += on * TICK_SECONDS
        self.most = max(self.most, on)
        self._state, scaling = decide(
            self._limits,
            self._state,
            self._world.now,
            self.router.waiting.by_model,
            self.router.reports(),
            self.router.demand(),
        )
        if scaling.drain is not None:
            self.router.set_aside(scaling.drain)
        for replica in scaling.gone:
            card = self._cards[replica.rpartition("#")[0]]
            self.router.forget(replica)
            self._world.switch_off(card)
            self._off.append(card)
        present = sum(not each.is_draining for each in self.router.reports())
        while self._off and present + len(self._starting) < scaling.target:
            card = self._off.pop(0)
            self._starting.append(card)
            self._world.after(self._start_seconds, lambda c=card: self._there(c))
        self._give_out()
        self._world.after(TICK_SECONDS, self._tick)

    def _there(self, card: SimCard) -> None:
        self._starting.remove(card)
        self._world.switch_on(card)
