"""Runners that die: their items run once more, each alone."""

import asyncio

import pytest

from clip4str_service.batcher import (
    BatcherClosedError,
    Fate,
    ItemExpiredError,
    ItemWithdrawnError,
    RunnerDiedError,
)
from tests.service.batching import Stage, play


def test_deadly_item_fails_alone() -> None:
    async def scenario(stage: Stage) -> None:
        stage.deadly.add(2)
        caller = stage.submit(1, 2, 3)
        await asyncio.sleep(0.001)
        newcomer = stage.submit(4, 5)
        await caller.answered()
        assert caller.outcomes[::2] == [2, 6]
        assert caller.kinds[1] is RunnerDiedError
        assert caller.told == [0, 1, 2]
        await newcomer.answered()

    stage = play(scenario)
    assert stage.ran == [[1, 2, 3], [1], [2], [3], [4, 5]]
    assert [batch.replay for batch in stage.batches] == [False, True, True, True, False]
    assert sorted(stage.gone) == [1, 2, 3, 4, 5]


def test_lone_item_has_a_second_chance() -> None:
    async def scenario(stage: Stage) -> None:
        caller = stage.submit(1)
        stage.batcher.give_back(await stage.batcher.take("a"))
        assert (stage.batcher.queued, stage.batcher.running) == (1, 0)
        stage.batcher.finish(await stage.batcher.take("a"), [2])
        assert caller.outcomes == [2]

    play(scenario, runners=[])


def test_replay_runs_alone_in_its_fate() -> None:
    async def scenario(stage: Stage) -> None:
        fate = Fate()
        stage.submit(1, 2)
        stage.batcher.give_back(await stage.batcher.take("dead"))
        first = await stage.batcher.take("a", fate=fate)
        beside = asyncio.create_task(stage.batcher.take("b", fate=fate))
        stage.submit(3)
        await asyncio.sleep(1)
        assert (first.items, beside.done()) == ([1], False)
        stage.batcher.finish(first, [2])
        second = await beside
        assert second.items == [2]
        beside = asyncio.create_task(stage.batcher.take("a", fate=fate))
        await asyncio.sleep(1)
        assert not beside.done()
        stage.batcher.give_back(second)
        assert (await beside).items == [3]

    play(scenario, runners=[])


def test_replay_waits_for_what_runs_in_its_fate_but_not_for_others() -> None:
    async def scenario(stage: Stage) -> None:
        fate = Fate()
        stage.submit(1)
        running = await stage.batcher.take("a", fate=fate)
        stage.submit(2)
        stage.batcher.give_back(await stage.batcher.take("dead"))
        stage.submit(3)
        beside = asyncio.create_task(stage.batcher.take("b", fate=fate))
        await asyncio.sleep(1)
        assert not beside.done()  # not even with the item that is no replay: the replay goes first
        elsewhere = await stage.batcher.take("c", fate=Fate())
        assert elsewhere.items == [2]
        assert (await beside).items == [3]
        stage.batcher.finish(running, [2])

    play(scenario, runners=[])


def test_replay_that_comes_before_a_woken_taker_runs_is_alone_all_the_same() -> None:
    async def scenario(stage: Stage) -> None:
        fate = Fate()
        stage.submit(1)
        dying = await stage.batcher.take("dying")
        stage.submit(2)
        running = await stage.batcher.take("a", fate=fate)
        beside = asyncio.create_task(stage.batcher.take("b", fate=fate))
        await asyncio.sleep(1)
        stage.submit(3)  # wakes it
        stage.batcher.give_back(dying)
        await asyncio.sleep(1)
        assert not beside.done()
        stage.batcher.finish(running, [4])
        assert (await beside).items == [1]

    play(scenario, runners=[])


def test_nothing_is_left_for_takers_that_may_not_go() -> None:
    async def scenario(stage: Stage) -> None:
        fate = Fate()
        stage.submit(1)
        stage.batcher.give_back(await stage.batcher.take("dead"))
        replay = await stage.batcher.take("a", fate=fate)
        assert replay.replay
        takers = [asyncio.create_task(stage.batcher.take("b", fate=fate))]
        takers.append(asyncio.create_task(stage.batcher.take("c")))
        await asyncio.sleep(1)
        stage.submit(2, 3, 4, 5, 6)
        assert (await takers[1]).items == [2, 3, 4]  # the rest is the part of the one that is busy
        stage.batcher.finish(replay, [2])
        stage.batcher.stop()
        with pytest.raises(BatcherClosedError):
            await takers[0]

    play(scenario, runners=[])


def test_replays_do_not_wait_for_items_in_preparation() -> None:
    async def scenario(stage: Stage) -> None:
        stage.submit(1, 2)
        stage.batcher.give_back(await stage.batcher.take("a"))
        stage.ask(1)
        start = stage.now
        assert [(await stage.batcher.take(name)).items for name in "ab"] == [[1], [2]]
        assert stage.now == start

    play(scenario, runners=[])


def test_what_nobody_wants_any_more_is_not_replayed() -> None:
    async def scenario(stage: Stage) -> None:
        callers = [stage.submit(item, deadline=0.020 if item == 3 else 1.0) for item in range(4)]
        batch = await stage.batcher.take("a")
        stage.batcher.withdraw(callers[0].places[0], "cancelled")
        stage.batcher.give_back(batch)
        assert stage.gone == [0]
        stage.batcher.withdraw(callers[1].places[0], "cancelled")
        assert stage.gone == [0, 1]
        stage.batcher.finish(await stage.batcher.take("a"), [4])
        assert callers[2].outcomes == [4]
        await asyncio.sleep(0.030)
        taker = asyncio.create_task(stage.batcher.take("a"))
        await asyncio.sleep(0.001)
        assert not taker.done()
        assert callers[3].kinds == [ItemExpiredError]
        assert callers[0].kinds == callers[1].kinds == [ItemWithdrawnError]
        assert stage.batcher.items == 0
        taker.cancel()

    stage = play(scenario, runners=[])
    assert stage.drops == ["cancelled", "deadline"]  # the first had run
    assert stage.gone == [0, 1, 2, 3]


def test_waiting_taker_is_given_the_replay() -> None:
    async def scenario(stage: Stage) -> None:
        stage.submit(1)
        batch = await stage.batcher.take("a")
        taker = asyncio.create_task(stage.batcher.take("b"))
        await asyncio.sleep(0.001)
        stage.batcher.give_back(batch)
        assert (await taker).items == [1]

    play(scenario, runners=[])


def test_expired_replay_does_not_keep_a_taker_from_what_waits() -> None:
    async def scenario(stage: Stage) -> None:
        stage.submit(1, deadline=0.010)
        batch = await stage.batcher.take("a")
        stage.batcher.give_back(batch)
        await asyncio.sleep(0.010)
        stage.submit(2)
        assert (await stage.batcher.take("a")).items == [2]

    assert play(scenario, runners=[]).drops == ["deadline"]


def test_late_answer_of_a_runner_given_up_counts_for_nothing() -> None:
    async def scenario(stage: Stage) -> None:
        caller = stage.submit(1)
        batch = await stage.batcher.take("a")
        stage.batcher.give_back(batch)
        stage.batcher.finish(batch, [0])
        stage.batcher.give_back(batch)
        stage.batcher.finish(await stage.batcher.take("a"), [2])
        assert caller.outcomes == [2]

    play(scenario, runners=[])
