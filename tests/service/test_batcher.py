"""Batches: their bounds, their order and their timing."""

import asyncio
from collections.abc import Sequence

import pytest

from clip4str_service.batcher import (
    BULK_EVERY,
    Admission,
    Batcher,
    BatcherClosedError,
    BatcherFullError,
    Bounds,
    ItemExpiredError,
    ItemWithdrawnError,
)
from tests.service.batching import BOUNDS, BreakdownError, Runner, with_batcher
from tests.service.virtual_time import run

FOREVER = 1e9


def submitted(
    batcher: Batcher[int, int], *items: int, urgent: bool = True, deadline: float = FOREVER
) -> Admission[int, int]:
    admission = batcher.admit([1] * len(items), urgent=urgent, deadline=deadline)
    for index, item in enumerate(items):
        admission.submit(index, item)
    return admission


def outcomes(admission: Admission[int, int]) -> list[int | Exception]:
    return [place.outcome for place in admission.places]


def test_lone_item_does_not_wait() -> None:
    async def scenario(batcher: Batcher[int, int]) -> None:
        admission = submitted(batcher, 21)
        await admission.settled()
        assert outcomes(admission) == [42]
        place = admission.places[0]
        assert [place.submitted_at, place.sealed_at, place.finished_at] == pytest.approx([0, 0, 0.010])

    assert with_batcher(scenario).waits == [0]


def test_batch_waits_for_items_in_preparation_but_no_longer_than_the_delay() -> None:
    async def scenario(batcher: Batcher[int, int]) -> None:
        early = batcher.admit([1] * 3, urgent=True, deadline=FOREVER)
        early.submit(0, 1)
        await asyncio.sleep(0.001)
        early.submit(1, 2)
        await asyncio.sleep(0.005)
        early.submit(2, 3)
        await early.settled()

    runner = with_batcher(scenario)
    assert runner.batches == [[1, 2], [3]]
    assert runner.starts == pytest.approx([0.002, 0.012])  # the delay counts from the oldest item


def test_batch_waits_no_longer_than_the_preparation() -> None:
    async def scenario(batcher: Batcher[int, int]) -> None:
        admission = batcher.admit([1] * 2, urgent=True, deadline=FOREVER)
        admission.submit(0, 1)
        await asyncio.sleep(0.0005)
        admission.withdraw(1)  # it could not be prepared
        await admission.settled()

    assert with_batcher(scenario).starts == pytest.approx([0.0005])


def test_full_batch_does_not_wait() -> None:
    async def scenario(batcher: Batcher[int, int]) -> None:
        unready = batcher.admit([1], urgent=True, deadline=FOREVER)
        await submitted(batcher, 1, 2, 3, 4).settled()
        unready.withdraw_all("cancelled")

    assert with_batcher(scenario).starts == [0]


def test_batch_is_sealed_late() -> None:
    async def scenario(batcher: Batcher[int, int]) -> None:
        first = submitted(batcher, 1)
        await asyncio.sleep(0.001)
        second = submitted(batcher, 2)
        await asyncio.sleep(0.008)
        third = submitted(batcher, 3)
        for admission in (first, second, third):
            await admission.settled()

    assert with_batcher(scenario).batches == [[1], [2, 3]]


def test_urgent_items_go_first_and_bulk_keeps_its_share() -> None:
    async def scenario(batcher: Batcher[int, int]) -> None:
        blocker = submitted(batcher, 0)
        await asyncio.sleep(0.001)
        bulk = submitted(batcher, *range(100, 104), urgent=False)
        urgent = submitted(batcher, *range(1, 21))
        for admission in (blocker, bulk, urgent):
            await admission.settled()

    runner = with_batcher(scenario, Bounds(max_batch=3, max_delay=0, max_items=100, max_bytes=1000))
    order = [item for batch in runner.batches[1:] for item in batch]
    assert order[: BULK_EVERY - 1] == list(range(1, BULK_EVERY))
    assert [index for index, item in enumerate(order) if item >= 100] == [7, 15, 22, 23]
    assert sorted(order) == [*range(1, 21), *range(100, 104)]


def test_full_queue_refuses_all_or_nothing() -> None:
    async def scenario(batcher: Batcher[int, int]) -> None:
        running = submitted(batcher, *range(10))
        await asyncio.sleep(0)
        with pytest.raises(BatcherFullError, match="16 items"):
            batcher.admit([1] * 7, urgent=True, deadline=FOREVER)
        assert batcher.queued + batcher.running == 10
        batcher.admit([1] * 6, urgent=True, deadline=FOREVER).withdraw_all("cancelled")
        with pytest.raises(BatcherFullError, match="1000 bytes"):
            batcher.admit([900, 91], urgent=True, deadline=FOREVER)
        await running.settled()
        batcher.admit([900, 91], urgent=True, deadline=FOREVER).withdraw_all("cancelled")

    with_batcher(scenario)


def test_broken_batch_fails_only_its_items() -> None:
    async def scenario(batcher: Batcher[int, int]) -> None:
        first = submitted(batcher, 1, -1)
        await asyncio.sleep(0.001)
        second = submitted(batcher, 2)
        await first.settled()
        await second.settled()
        assert [type(outcome) for outcome in outcomes(first)] == [BreakdownError, BreakdownError]
        assert outcomes(second) == [4]

    with_batcher(scenario)


def test_short_answer_of_the_runner_is_an_error_of_its_items() -> None:
    async def play() -> None:
        async def forgetful(items: list[int]) -> Sequence[int]:
            return items[1:]

        batcher = Batcher(forgetful, BOUNDS, Runner())
        batcher.start()
        admission = submitted(batcher, 1, 2)
        await admission.settled()
        assert all("1 outcomes for 2 items" in str(outcome) for outcome in outcomes(admission))
        await batcher.stop()

    run(play())


def test_item_expires_at_entry_and_at_sealing() -> None:
    async def scenario(batcher: Batcher[int, int]) -> None:
        running = submitted(batcher, 1)
        await asyncio.sleep(0.001)
        at_sealing = submitted(batcher, 2, deadline=0.005)
        at_entry = submitted(batcher, 3, deadline=0.001)
        await running.settled()
        await at_sealing.settled()
        assert isinstance(outcomes(at_entry)[0], ItemExpiredError)
        assert isinstance(outcomes(at_sealing)[0], ItemExpiredError)

    runner = with_batcher(scenario)
    assert runner.batches == [[1]]
    assert runner.drops == ["deadline", "deadline"]


def test_withdrawn_item_never_runs_and_a_running_one_runs_on() -> None:
    async def scenario(batcher: Batcher[int, int]) -> None:
        running = submitted(batcher, 1)
        await asyncio.sleep(0.001)
        waiting = submitted(batcher, 2)
        waiting.withdraw_all("cancelled")
        running.withdraw_all("cancelled")
        await waiting.settled()
        assert isinstance(outcomes(waiting)[0], ItemWithdrawnError)
        assert (batcher.queued, batcher.running) == (0, 1)
        await running.settled()
        assert outcomes(running) == [2]

    runner = with_batcher(scenario)
    assert runner.batches == [[1]]
    assert runner.drops == ["cancelled"]


def test_closed_batcher_finishes_what_it_took() -> None:
    async def scenario(batcher: Batcher[int, int]) -> None:
        admission = submitted(batcher, *range(10))
        batcher.close()
        with pytest.raises(BatcherClosedError):
            batcher.admit([1], urgent=True, deadline=FOREVER)
        await batcher.drained()
        assert outcomes(admission) == [2 * item for item in range(10)]
        await batcher.drained()  # nothing is left: at once

    with_batcher(scenario)


def test_stopped_batcher_settles_everything() -> None:
    async def scenario(batcher: Batcher[int, int]) -> None:
        running = submitted(batcher, *range(4))
        waiting = submitted(batcher, 5, 6)
        await asyncio.sleep(0.001)
        preparing = batcher.admit([1], urgent=False, deadline=FOREVER)
        await batcher.stop()
        preparing.submit(0, 7)
        for admission in (running, waiting, preparing):
            await admission.settled()
            assert {type(outcome) for outcome in outcomes(admission)} == {BatcherClosedError}
        assert (batcher.queued, batcher.running) == (0, 0)
        with pytest.raises(BatcherClosedError):
            batcher.admit([1], urgent=True, deadline=FOREVER)

    assert with_batcher(scenario).batches == [[0, 1, 2, 3]]


def test_serving_tells_whether_batches_are_run() -> None:
    async def play() -> None:
        runner = Runner()
        batcher = Batcher(runner, BOUNDS, runner)
        seen = [batcher.serving]
        batcher.start()
        seen.append(batcher.serving)
        await batcher.stop()
        seen.append(batcher.serving)
        assert seen == [False, True, False]

    run(play())
