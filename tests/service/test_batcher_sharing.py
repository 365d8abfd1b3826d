"""Identical items: run once, for everybody who wants them; and outcomes that are still known."""

import asyncio
from dataclasses import replace

import pytest

from clip4str_service.batcher import ItemExpiredError, ItemWithdrawnError, RunnerDiedError
from clip4str_service.batching.memory import Memory
from tests.service.batching import BOUNDS, Stage, UnreadableError, play

SERIAL = replace(BOUNDS, max_batch=1)
CACHING = replace(BOUNDS, cache_bytes=2000)


def test_identical_items_run_once() -> None:
    async def scenario(stage: Stage) -> None:
        leader = stage.submit(1, key="k")
        await asyncio.sleep(0.001)
        followers = [stage.submit(2, tenant="b", key="k") for _ in range(2)]
        assert stage.gone == [2, 2]  # only the leader's item is needed
        assert stage.batcher.running == 3  # but all of them take room
        for caller in (leader, *followers):
            assert await caller.answered() == [2]
        late = followers[0].places[0]
        assert late.submitted_at == late.sealed_at == pytest.approx(0.001)
        assert late.finished_at == pytest.approx(0.010)
        assert await stage.submit(3, key="k").answered() == [6]  # what has run is over

    stage = play(scenario)
    assert stage.ran == [[1], [3]]
    assert stage.gone == [2, 2, 1, 3]


def test_items_without_a_key_are_never_shared() -> None:
    async def scenario(stage: Stage) -> None:
        await stage.submit(1, 1).answered()

    assert play(scenario).ran == [[1, 1]]


def test_failure_is_shared_too() -> None:
    async def scenario(stage: Stage) -> None:
        stage.unreadable.add(1)
        callers = [stage.submit(1, key="k"), stage.submit(2, key="k")]
        for caller in callers:
            await caller.answered()
            assert caller.kinds == [UnreadableError]

    play(scenario, CACHING)


def test_item_goes_when_the_first_who_wants_it_has_its_turn() -> None:
    async def scenario(stage: Stage) -> None:
        stage.submit(0)
        await asyncio.sleep(0.001)
        bulk = stage.submit(1, 2, 3, urgent=False)
        leader = stage.submit(4, urgent=False, key="k")
        other = stage.submit(5)
        urgent = stage.submit(6, key="k")
        for caller in (bulk, leader, other, urgent):
            await caller.answered()
        assert leader.outcomes == urgent.outcomes == [8]

    assert play(scenario, SERIAL).ran == [[0], [5], [4], [1], [2], [3]]


def test_urgency_leaves_with_who_was_urgent() -> None:
    async def scenario(stage: Stage) -> None:
        stage.submit(0)
        await asyncio.sleep(0.001)
        callers = [stage.submit(1, urgent=False), stage.submit(2, urgent=False, key="k")]
        stage.batcher.withdraw(stage.submit(3, key="k").places[0], "cancelled")
        for caller in callers:
            await caller.answered()

    assert play(scenario, SERIAL).ran == [[0], [1], [2]]


def test_item_is_dropped_when_nobody_wants_it_any_more() -> None:
    async def scenario(stage: Stage) -> None:
        stage.submit(0)
        await asyncio.sleep(0.001)
        leader, follower = stage.submit(1, key="k"), stage.submit(2, key="k")
        stage.batcher.withdraw(leader.places[0], "cancelled")
        assert stage.gone == [2]
        stage.batcher.withdraw(follower.places[0], "cancelled")
        assert stage.gone == [2, 1]
        assert await stage.submit(3, key="k").answered() == [6]

    stage = play(scenario)
    assert stage.ran == [[0], [3]]
    assert stage.drops == ["cancelled", "cancelled"]


def test_follower_keeps_the_item_of_a_leader_who_left() -> None:
    async def scenario(stage: Stage) -> None:
        stage.submit(0)
        await asyncio.sleep(0.001)
        leader, follower = stage.submit(1, key="k"), stage.submit(2, key="k")
        stage.batcher.withdraw(leader.places[0], "cancelled")
        assert leader.kinds == [ItemWithdrawnError]
        assert await follower.answered() == [2]

    assert play(scenario).ran == [[0], [1]]


def test_who_comes_for_an_abandoned_item_gets_its_outcome() -> None:
    async def scenario(stage: Stage) -> None:
        leader = stage.submit(1, key="k")
        await asyncio.sleep(0.001)
        stage.batcher.withdraw(leader.places[0], "cancelled")
        follower = stage.submit(2, key="k")
        assert stage.batcher.items == 1
        assert await follower.answered() == [2]
        assert stage.batcher.items == 0

    stage = play(scenario)
    assert stage.ran == [[1]]
    assert stage.gone == [2, 1]
    assert stage.batches[0].abandoned == 0


def test_deadlines_are_each_places_own() -> None:
    async def scenario(stage: Stage) -> None:
        stage.submit(0)
        await asyncio.sleep(0.001)
        short, long = stage.submit(1, key="k", deadline=0.005), stage.submit(2, key="k")
        shorter = stage.submit(3, key="k", tenant="b", deadline=0.004)
        assert await long.answered() == [2]
        assert short.kinds == shorter.kinds == [ItemExpiredError]

    stage = play(scenario)
    assert stage.ran == [[0], [1]]
    assert stage.drops == ["deadline", "deadline"]


def test_followers_go_with_a_replay() -> None:
    async def scenario(stage: Stage) -> None:
        callers = [stage.submit(1, key="k"), stage.submit(2, key="k")]
        batch = await stage.batcher.take("a")
        stage.batcher.give_back(batch)
        callers.append(stage.submit(3, key="k"))
        again = await stage.batcher.take("a")
        callers.append(stage.submit(4, key="k"))
        assert again.items == [1]
        assert stage.gone == [2, 3, 4]
        stage.batcher.give_back(again)
        assert {kind for caller in callers for kind in caller.kinds} == {RunnerDiedError}
        assert stage.gone == [2, 3, 4, 1]
        stage.submit(5)
        assert (await stage.batcher.take("a")).items == [5]

    play(scenario, runners=[])


def test_known_outcome_is_given_at_once() -> None:
    async def scenario(stage: Stage) -> None:
        await stage.submit(1, key="k").answered()
        again = stage.submit(2, key="k")
        assert again.outcomes == [2]
        assert stage.gone == [1, 2]
        assert stage.batcher.items == 0
        place = again.places[0]
        assert place.submitted_at == place.sealed_at == place.finished_at == pytest.approx(0.010)
        assert await stage.submit(3, key="other").answered() == [6]

    assert play(scenario, CACHING).ran == [[1], [3]]


def test_memory_is_bounded_and_forgets_what_was_not_asked_for() -> None:
    memory: Memory[bytes] = Memory(3 * (100 + 256), len)
    for key in "abc":
        memory.keep(key, bytes(100))
    assert memory.recall("a") == bytes(100)
    memory.keep("d", bytes(99))
    assert [key for key in "abcd" if key in memory] == ["a", "c", "d"]
    memory.keep("e", bytes(1000))  # it alone would be too much
    memory.keep("a", bytes(50))  # known already
    assert [key for key in "abcde" if key in memory] == ["a", "c", "d"]
    assert memory.nbytes == 299 + 3 * 256


def test_nothing_is_kept_without_room_for_it() -> None:
    memory: Memory[bytes] = Memory(0, len)
    memory.keep("k", b"")
    assert "k" not in memory
