"""Whose turn it is: urgent items and others, one tenant's and another's."""

import asyncio
from itertools import pairwise

from clip4str_service.batcher import Bounds
from clip4str_service.batching.turns import BULK_EVERY
from tests.service.batching import Stage, play

ROOMY = Bounds(max_batch=3, max_delay=0, max_items=1000, max_bytes=1000)


async def busy(stage: Stage) -> None:
    """Gives the runner something to do, so that what comes next waits."""
    stage.submit(0, tenant="nobody")
    await asyncio.sleep(0.001)


def order(stage: Stage) -> list[int]:
    """In which items ran, but that which kept the runner busy."""
    return [item for batch in stage.ran[1:] for item in batch]


def test_urgent_items_go_first_and_bulk_keeps_its_share() -> None:
    async def scenario(stage: Stage) -> None:
        await busy(stage)
        bulk = stage.submit(*range(100, 104), urgent=False)
        urgent = stage.submit(*range(1, 21))
        for caller in (bulk, urgent):
            await caller.answered()

    ran = order(play(scenario, ROOMY))
    assert ran[: BULK_EVERY - 1] == list(range(1, BULK_EVERY))
    assert [index for index, item in enumerate(ran) if item >= 100] == [7, 15, 22, 23]
    assert sorted(ran) == [*range(1, 21), *range(100, 104)]


def test_expired_bulk_item_costs_the_next_no_turn() -> None:
    async def scenario(stage: Stage) -> None:
        await busy(stage)
        stage.submit(100, urgent=False, deadline=0.005)
        callers = [stage.submit(101, urgent=False), stage.submit(*range(1, 21))]
        for caller in callers:
            await caller.answered()

    assert order(play(scenario, ROOMY)).index(101) == BULK_EVERY - 1


def test_tenants_take_turns_by_items_not_by_requests() -> None:
    async def scenario(stage: Stage) -> None:
        await busy(stage)
        callers = [
            stage.submit(*range(10, 16), tenant="a"),
            stage.submit(20, tenant="b"),
            stage.submit(21, 22, tenant="b"),
            stage.submit(30, tenant="c"),
        ]
        for caller in callers:
            await caller.answered()

    assert order(play(scenario, ROOMY)) == [10, 20, 30, 11, 21, 12, 22, 13, 14, 15]


def test_tenant_does_not_wait_behind_anothers_queue() -> None:
    """Nor does one that comes again and again get ahead of one that has waited since."""

    async def scenario(stage: Stage) -> None:
        await busy(stage)
        many = stage.submit(*range(100, 200), tenant="many")
        for item in range(10):
            assert await stage.submit(item, tenant="few").answered() == [2 * item]
        await many.answered()

    ran = order(play(scenario, ROOMY))
    places = [ran.index(item) for item in range(10)]
    assert places[0] <= 1
    assert all(later - earlier <= 2 * ROOMY.max_batch for earlier, later in pairwise(places))
    assert ran.index(110) <= 22  # and the many are served meanwhile


def test_withdrawn_item_leaves_the_turns_as_they_were() -> None:
    async def scenario(stage: Stage) -> None:
        await busy(stage)
        callers = [
            stage.submit(10, 11, tenant="a"),
            stage.submit(20, 21, tenant="b"),
            stage.submit(30, tenant="c"),
        ]
        stage.batcher.withdraw(callers[1].places[0], "cancelled")
        stage.batcher.withdraw(callers[2].places[0], "cancelled")
        await callers[0].answered()

    assert order(play(scenario, ROOMY)) == [10, 21, 11]
