"""Turns in the cloud: whose is next, also after a picture was told to come back later."""

from __future__ import annotations

import asyncio

from tests.utils.soak.bench import in_loop
from utils.cloud_turns import CloudTurns, Place

HOLD_SECONDS = 0.05


@in_loop
async def test_picture_told_to_come_back_is_asked_for_before_those_behind_it() -> None:
    turns, asked = CloudTurns(room=3), list[Place]()

    async def ask(place: Place) -> None:
        await turns.wait(place)
        asked.append(place)

    first, second, third = (1, 0), (1, 1), (2, 0)
    await ask(first)
    turns.hold(HOLD_SECONDS)
    await asyncio.gather(*(ask(place) for place in (third, second, first)))
    assert asked == [first, first, second, third]


@in_loop
async def test_nobody_has_a_turn_while_the_cloud_holds_all() -> None:
    loop = asyncio.get_running_loop()
    turns = CloudTurns(room=3, monotonic=loop.time)
    began = loop.time()
    turns.hold(HOLD_SECONDS)
    await asyncio.gather(*(turns.wait((number, 0)) for number in range(3)))
    assert loop.time() - began >= HOLD_SECONDS


@in_loop
async def test_turn_waits_until_there_is_room() -> None:
    turns = CloudTurns(room=1)
    turns.enter((1, 0))
    waiting = asyncio.create_task(turns.wait((2, 0)))
    for _ in range(10):
        await asyncio.sleep(0)
    assert not waiting.done()
    await turns.leave((1, 0))
    await waiting
