"""Admission: bounds, and how tenants share what they leave."""

import asyncio
import gc
import tracemalloc

import pytest

from clip4str_service.batcher import BatcherFullError, DeadlineUnmeetableError
from tests.service.batching import Stage, play


def test_full_queue_refuses_all_or_nothing() -> None:
    async def scenario(stage: Stage) -> None:
        batcher = stage.batcher
        running = stage.submit(*range(10))
        await asyncio.sleep(0.001)
        with pytest.raises(BatcherFullError, match="16 items"):
            stage.ask(*[1] * 7)
        assert (batcher.queued, batcher.running, batcher.items, batcher.nbytes) == (6, 4, 10, 10)
        for place in stage.ask(*[1] * 6).places:
            batcher.withdraw(place, "cancelled")
        with pytest.raises(BatcherFullError, match="1000 bytes"):
            stage.ask(900, 91)
        await running.answered()
        stage.ask(900, 91)

    play(scenario)


def test_bulk_leaves_room_for_urgent_items() -> None:
    async def scenario(stage: Stage) -> None:
        stage.ask(*[1] * 12, urgent=False)
        with pytest.raises(BatcherFullError, match="12 bulk items"):
            stage.ask(1, urgent=False)
        stage.ask(*[1] * 4)

    play(scenario)


def test_refused_caller_is_told_when_there_will_be_room() -> None:
    async def scenario(stage: Stage) -> None:
        with pytest.raises(BatcherFullError) as unknown:
            stage.ask(*[1] * 17)
        assert unknown.value.retry_after == 1
        for _ in range(10):
            await stage.submit(1, 2, 3, 4).answered()
        stage.submit(*range(16))
        await asyncio.sleep(0.001)
        with pytest.raises(BatcherFullError) as soon:
            stage.ask(1)
        with pytest.raises(BatcherFullError) as later:
            stage.ask(*[1] * 16)
        assert soon.value.retry_after == 0.05
        assert later.value.retry_after == 0.05
        assert stage.batcher.retry_after() == 0.05

    play(scenario)


def test_refused_tenant_finds_room_when_it_comes_back() -> None:
    """Though another, who holds all of it, asks more often."""

    async def scenario(stage: Stage) -> None:
        stage.submit(*range(16), tenant="greedy")
        with pytest.raises(BatcherFullError):
            stage.ask(1, 1, 1, tenant="modest")
        await asyncio.sleep(0.015)  # four have run
        with pytest.raises(BatcherFullError, match=r"you hold 12 of 16 .* others need room"):
            stage.ask(1, tenant="greedy")
        stage.ask(1, 1, 1, tenant="modest")

    play(scenario)


def test_nothing_is_left_of_tenants_that_came_and_went() -> None:
    async def scenario(stage: Stage) -> None:
        async def come_and_go(tenants: range) -> None:
            for tenant in tenants:
                await stage.submit(1, 2, tenant=str(tenant)).answered()
                place = stage.submit(1, tenant=str(tenant), urgent=False).places[0]
                stage.batcher.withdraw(place, "cancelled")
            for remembered in (stage.batches, stage.drops, stage.gone):
                remembered.clear()
            gc.collect()

        await come_and_go(range(50))
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        await come_and_go(range(50, 350))
        assert tracemalloc.get_traced_memory()[0] - before < 300 * 30  # bytes
        tracemalloc.stop()

    play(scenario)


def test_past_deadline_is_refused() -> None:
    async def scenario(stage: Stage) -> None:
        with pytest.raises(DeadlineUnmeetableError, match="has passed"):
            stage.ask(1, deadline=0)

    play(scenario)


def test_items_never_take_more_room_than_there_is() -> None:
    """Even if callers leave while they run, and others come."""

    async def scenario(stage: Stage) -> None:
        for _ in range(4):
            caller = stage.submit(*range(4))
            await asyncio.sleep(0.001)
            for place in caller.places:
                stage.batcher.withdraw(place, "cancelled")
        with pytest.raises(BatcherFullError):
            stage.ask(1)

    play(scenario, runners=["a"] * 4)
