"""Batches: their size, their timing and their end."""

import asyncio
from dataclasses import replace

import pytest

from clip4str_service.batcher import (
    BatcherClosedError,
    Bounds,
    ItemWithdrawnError,
    Place,
    State,
)
from tests.service.batching import BOUNDS, FOREVER, Caller, Stage, UnreadableError, play


def test_lone_item_does_not_wait() -> None:
    async def scenario(stage: Stage) -> None:
        caller = stage.submit(21)
        assert await caller.answered() == [42]
        place = caller.places[0]
        assert [place.submitted_at, place.sealed_at, place.finished_at] == pytest.approx([0, 0, 0.010])

    assert play(scenario).ran == [[21]]


def test_batch_waits_for_items_in_preparation_but_no_longer_than_the_delay() -> None:
    async def scenario(stage: Stage) -> None:
        caller = stage.ask(1, 1, 1)
        stage.batcher.submit(caller.places[0], 1, None)
        await asyncio.sleep(0.001)
        stage.batcher.submit(caller.places[1], 2, None)
        await asyncio.sleep(0.005)
        stage.batcher.submit(caller.places[2], 3, None)
        await caller.answered()

    stage = play(scenario)
    assert stage.ran == [[1, 2], [3]]
    assert stage.starts == pytest.approx([0.002, 0.012])  # the delay counts from the oldest item


def test_batch_waits_no_longer_than_the_preparation() -> None:
    async def scenario(stage: Stage) -> None:
        caller = stage.ask(1, 1)
        stage.batcher.submit(caller.places[0], 1, None)
        await asyncio.sleep(0.0005)
        stage.batcher.withdraw(caller.places[1], None)  # it could not be prepared
        await caller.answered()

    stage = play(scenario)
    assert stage.starts == pytest.approx([0.0005])
    assert stage.drops == []


def test_full_batch_does_not_wait() -> None:
    async def scenario(stage: Stage) -> None:
        stage.ask(1)
        await stage.submit(1, 2, 3, 4).answered()

    assert play(scenario).starts == [0]


def test_delay_counts_from_the_oldest_that_still_waits() -> None:
    async def scenario(stage: Stage) -> None:
        stage.ask(1)
        first = stage.submit(1)
        await asyncio.sleep(0.001)
        second = stage.submit(2)
        stage.batcher.withdraw(first.places[0], "cancelled")
        await second.answered()

    assert play(scenario).starts == pytest.approx([0.003])


def test_batch_is_sealed_late() -> None:
    async def scenario(stage: Stage) -> None:
        callers = [stage.submit(1)]
        await asyncio.sleep(0.001)
        callers.append(stage.submit(2))
        await asyncio.sleep(0.008)
        callers.append(stage.submit(3))
        for caller in callers:
            await caller.answered()

    assert play(scenario).ran == [[1], [2, 3]]


def test_runners_that_wait_share_what_waits() -> None:
    async def scenario(stage: Stage) -> None:
        await stage.submit(1, 2, 3).answered()

    stage = play(scenario, runners=["a", "b"])
    assert stage.ran == [[1, 2], [3]]
    assert stage.starts == [0, 0]
    assert [batch.runner for batch in stage.batches] == ["a", "b"]


def test_runners_that_become_free_together_share() -> None:
    async def scenario(stage: Stage) -> None:
        blockers = stage.submit(1, 2)
        await asyncio.sleep(0.001)
        waiting = stage.submit(3, 4)
        await blockers.answered()
        await waiting.answered()

    assert play(scenario, runners=["a", "b"]).ran == [[1], [2], [3], [4]]


def test_runner_leaves_a_busy_one_its_part() -> None:
    async def scenario(stage: Stage) -> None:
        callers = [stage.submit(1)]
        await asyncio.sleep(0.001)
        callers.append(stage.submit(2, 3, 4, 5, 6))
        for caller in callers:
            await caller.answered()

    stage = play(scenario, runners=["a", "b"])
    assert stage.ran == [[1], [2, 3, 4], [5, 6]]
    assert [batch.runner for batch in stage.batches] == ["a", "b", "a"]


def test_callers_who_ask_again_and_again_are_in_batches_of_one_size() -> None:
    async def ask_again(stage: Stage, number: int) -> None:
        for _ in range(10):
            await stage.submit(number).answered()

    async def scenario(stage: Stage) -> None:
        for name in ("a", "b"):
            stage.runner(name, lambda items: 0.010 + 0.005 * items)
        callers = [asyncio.create_task(ask_again(stage, 0))]
        await asyncio.sleep(0.001)  # else they would share from the start
        callers += [asyncio.create_task(ask_again(stage, number)) for number in range(1, 8)]
        await asyncio.gather(*callers)

    bounds = replace(BOUNDS, max_batch=16)
    sizes = [len(batch) for batch in play(scenario, bounds, runners=[]).batches]
    assert set(sizes[4:-4]) == {4}


def test_takers_of_one_runner_do_not_share() -> None:
    async def scenario(stage: Stage) -> None:
        await stage.submit(1, 2, 3).answered()

    assert play(scenario, runners=["a", "a"]).ran == [[1, 2, 3]]


def test_idle_runner_goes_before_the_other_lane_of_a_busy_one() -> None:
    async def scenario(stage: Stage) -> None:
        callers = [stage.submit(1)]
        await asyncio.sleep(0.001)
        callers.append(stage.submit(2))
        for caller in callers:
            await caller.answered()

    assert [batch.runner for batch in play(scenario, runners=["a", "a", "b"]).batches] == ["a", "b"]


def test_batch_holds_no_more_than_the_taker_wants() -> None:
    async def scenario(stage: Stage) -> None:
        stage.runner(limit=3)
        await stage.submit(*range(8)).answered()

    assert play(scenario, runners=[]).ran == [[0, 1, 2], [3, 4, 5], [6, 7]]


def test_taker_must_want_something() -> None:
    async def scenario(stage: Stage) -> None:
        with pytest.raises(ValueError, match="at least one item, not 0"):
            await stage.batcher.take("a", 0)

    play(scenario)


def test_cancelled_taker_loses_nothing() -> None:
    async def scenario(stage: Stage) -> None:
        first, second = (asyncio.create_task(stage.batcher.take(name)) for name in "ab")
        await asyncio.sleep(0)
        caller = stage.submit(1)  # wakes the first,
        first.cancel()  # which is cancelled before it runs
        batch = await second
        assert batch.items == [1]
        stage.batcher.finish(batch, [2])
        assert caller.outcomes == [2]
        assert first.cancelled()

    play(scenario, runners=[])


def test_item_that_fails_fails_alone() -> None:
    async def scenario(stage: Stage) -> None:
        stage.unreadable.add(2)
        caller = stage.submit(1, 2, 3)
        await caller.answered()
        assert caller.kinds == [int, UnreadableError, int]

    play(scenario)


def test_another_number_of_outcomes_is_an_error_of_the_batch_alone() -> None:
    async def scenario(stage: Stage) -> None:
        caller = stage.submit(1, 2)
        stage.batcher.finish(await stage.batcher.take("a"), [2])
        assert all("1 outcomes for 2 items" in str(outcome) for outcome in caller.outcomes)
        assert sorted(stage.gone) == [1, 2]

    play(scenario, runners=[])


def test_withdrawn_items_do_not_run_and_running_ones_run_on() -> None:
    async def scenario(stage: Stage) -> None:
        running = stage.submit(1)
        await asyncio.sleep(0.001)
        waiting, preparing = stage.submit(2), stage.ask(1)
        for caller in (running, waiting, preparing):
            stage.batcher.withdraw(caller.places[0], "cancelled")
            assert caller.kinds == [ItemWithdrawnError]
            stage.batcher.withdraw(caller.places[0], "cancelled")  # once is enough
        assert stage.gone == [2]  # the other is in a runner's hands
        assert (stage.batcher.queued, stage.batcher.running) == (0, 1)
        stage.batcher.submit(preparing.places[0], 3, None)  # it was on its way
        assert stage.gone == [2, 3]
        await asyncio.sleep(0.010)
        assert stage.gone == [2, 3, 1]
        assert stage.batcher.items == 0
        assert stage.batches[0].abandoned == 1

    stage = play(scenario)
    assert stage.ran == [[1]]
    assert stage.drops == ["cancelled", "cancelled"]


def test_closed_batcher_finishes_what_it_took() -> None:
    async def scenario(stage: Stage) -> None:
        caller = stage.submit(*range(10))
        stage.batcher.close()
        with pytest.raises(BatcherClosedError):
            stage.ask(1)
        await stage.batcher.drained()
        assert caller.outcomes == [2 * item for item in range(10)]
        await stage.batcher.drained()  # nothing is left: at once

    play(scenario)


def test_closed_batcher_is_drained_when_what_was_abandoned_has_run() -> None:
    async def scenario(stage: Stage) -> None:
        caller = stage.submit(1)
        await asyncio.sleep(0.001)
        stage.batcher.withdraw(caller.places[0], "cancelled")
        stage.batcher.close()
        await stage.batcher.drained()
        assert stage.now == pytest.approx(0.010)

    play(scenario)


def test_stopped_batcher_settles_everything() -> None:
    async def scenario(stage: Stage) -> None:
        callers = [stage.submit(*range(4)), stage.submit(5, 6)]
        batch = await stage.batcher.take("a")
        stage.batcher.withdraw(callers[0].places[0], "cancelled")
        taker = asyncio.create_task(stage.batcher.take("a", 1))
        callers.append(stage.ask(1, urgent=False))
        await asyncio.sleep(0)
        other = await taker
        stage.batcher.give_back(other)
        stage.batcher.stop()
        kinds = [kind for caller in callers for kind in caller.kinds]
        assert kinds == [ItemWithdrawnError] + 6 * [BatcherClosedError]
        assert (stage.batcher.queued, stage.batcher.running, stage.batcher.nbytes) == (0, 0, 0)
        await stage.batcher.drained()
        assert [caller.admission.open for caller in callers] == [0, 0, 0]
        assert sorted(stage.gone) == [5, 6]
        stage.batcher.submit(callers[2].places[0], 7, None)
        stage.batcher.finish(batch, [0] * 4)
        assert sorted(stage.gone) == [*range(4), 5, 6, 7]
        with pytest.raises(BatcherClosedError):
            stage.ask(1)
        with pytest.raises(BatcherClosedError):
            await stage.batcher.take("a")

    play(scenario, runners=[])


def test_stop_ends_waiting_takers() -> None:
    async def scenario(stage: Stage) -> None:
        taker = asyncio.create_task(stage.batcher.take("a"))
        await asyncio.sleep(0)
        stage.batcher.stop()
        with pytest.raises(BatcherClosedError):
            await taker

    play(scenario, runners=[])


class Impatient(Caller):
    """Gives all its places up as soon as it has one outcome, as a front end does that died."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self._stage = stage

    def settled(self, place: Place[int, int]) -> None:
        super().settled(place)
        for other in self.places:
            self._stage.batcher.withdraw(other, "cancelled")


def test_owner_may_call_the_batcher() -> None:
    async def scenario(stage: Stage) -> None:
        caller = Impatient(stage)
        caller.admission = stage.batcher.admit(
            [1] * 6, urgent=True, deadline=FOREVER, tenant="one", owner=caller
        )
        for place in caller.places[:-1]:
            stage.batcher.submit(place, place.index, None)
        await caller.answered()
        assert caller.outcomes[:4] == [0, 2, 4, 6]
        assert caller.kinds[4:] == [ItemWithdrawnError] * 2
        assert all(place.state is State.SETTLED for place in caller.places)
        assert sorted(stage.gone) == [0, 1, 2, 3, 4]

    play(scenario, Bounds(max_batch=4, max_delay=0, max_items=16, max_bytes=1000))


def test_one_caller_at_a_time_has_the_same_runner() -> None:
    """The one that ran last: its caches are warm."""

    async def scenario(stage: Stage) -> None:
        for item in range(10):
            await stage.submit(item).answered()
            await asyncio.sleep(0.005)

    stage = play(scenario, runners=["a", "b", "c"])
    assert len({batch.runner for batch in stage.batches[1:]}) == 1
