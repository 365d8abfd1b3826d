"""Deadlines: what is too late never runs, and what would be too late does not come in."""

import asyncio
import random
from collections.abc import Callable

import pytest

from clip4str_service.batcher import (
    BatcherFullError,
    Bounds,
    DeadlineUnmeetableError,
    ItemExpiredError,
    RefusedError,
)
from tests.service.batching import Caller, Stage, play

ROOMY = Bounds(max_batch=10, max_delay=0.002, max_items=10_000, max_bytes=10_000)


def seconds(items: int) -> float:
    """What a batch takes: 11 ms with one item, 20 ms with ten."""
    return 0.010 + 0.001 * items


async def experienced(stage: Stage, *runners: str, cost: Callable[[int], float] = seconds) -> None:
    """Lets runners read batches of all sizes, so that their cost is known."""
    for runner in runners:
        stage.runner(runner, cost)
    for size in (1, 10, 5, 2, 8, 3, 10, 1):
        for _ in runners:
            stage.submit(*range(size))
        await asyncio.sleep(3)


def test_item_expires_at_entry_and_at_sealing() -> None:
    async def scenario(stage: Stage) -> None:
        running = stage.submit(1)
        await asyncio.sleep(0.001)
        preparing = stage.ask(1, deadline=0.002)
        at_sealing = stage.submit(2, deadline=0.005)
        await asyncio.sleep(0.001)
        stage.batcher.submit(preparing.places[0], 3, None)
        assert preparing.kinds == [ItemExpiredError]
        await running.answered()
        await at_sealing.answered()
        assert at_sealing.kinds == [ItemExpiredError]

    stage = play(scenario)
    assert stage.ran == [[1]]
    assert stage.drops == ["deadline", "deadline"]
    assert stage.gone == [3, 1, 2]


def test_nothing_is_refused_while_the_cost_is_unknown() -> None:
    async def scenario(stage: Stage) -> None:
        for _ in range(4):
            await stage.submit(1).answered()
        stage.submit(*range(1000))
        await stage.submit(1, deadline=stage.now + 0.001).answered()

    play(scenario, ROOMY)


def test_what_cannot_be_done_in_time_is_refused_at_once() -> None:
    async def scenario(stage: Stage) -> None:
        await experienced(stage, "a")
        stage.submit(*range(100))  # 200 ms of work
        stage.ask(1, deadline=stage.now + 0.300)
        with pytest.raises(
            DeadlineUnmeetableError, match=r"it may take 0\.2\d s .* deadline is in 0\.15 s"
        ) as refused:
            stage.ask(1, deadline=stage.now + 0.150)
        assert refused.value.retry_after == pytest.approx(0.080, abs=0.02)
        await asyncio.sleep(refused.value.retry_after)
        stage.ask(1, deadline=stage.now + 0.150)

    play(scenario, ROOMY, runners=[])


def test_full_queue_tells_when_there_will_be_room() -> None:
    async def scenario(stage: Stage) -> None:
        await experienced(stage, "a")
        stage.submit(*range(2000))
        for items, after in ((8_001, 0.050), (9_000, 2.0), (10_000, 4.0)):
            with pytest.raises(BatcherFullError) as refused:
                stage.ask(*[1] * items)
            assert refused.value.retry_after == pytest.approx(after, rel=0.1)
        assert stage.batcher.retry_after() == pytest.approx(4.0, rel=0.1)

    play(scenario, ROOMY, runners=[])


def test_idle_batcher_refuses_nobody() -> None:
    """Or else a wrong forecast would never be mended: nothing would run any more."""

    async def scenario(stage: Stage) -> None:
        await experienced(stage, "a")
        caller = stage.submit(1, deadline=stage.now + 0.011)
        await caller.answered()
        assert caller.kinds == [int]
        stage.submit(1)
        with pytest.raises(DeadlineUnmeetableError):
            stage.submit(1, deadline=stage.now + 0.011)

    play(scenario, ROOMY, runners=[])


def test_runners_share_the_work_that_is_forecast() -> None:
    async def scenario(stage: Stage) -> None:
        await experienced(stage, "a", "b")
        stage.submit(*range(200))
        stage.ask(1, deadline=stage.now + 0.300)
        stage.batcher.forget("b")
        with pytest.raises(DeadlineUnmeetableError):
            stage.ask(1, deadline=stage.now + 0.300)
        stage.batcher.forget("a")
        stage.ask(1, deadline=stage.now + 0.300)  # there is no telling when a runner comes

    play(scenario, ROOMY, runners=[])


def test_what_runs_counts_for_what_is_left_of_it() -> None:
    async def scenario(stage: Stage) -> None:
        await experienced(stage, "a", cost=lambda _: 1.0)
        stage.submit(1)
        await asyncio.sleep(0.1)
        with pytest.raises(DeadlineUnmeetableError):
            stage.ask(1, deadline=stage.now + 2.0)
        await asyncio.sleep(0.8)
        stage.ask(1, deadline=stage.now + 2.0)

    play(scenario, ROOMY, runners=[])


def test_batch_that_failed_as_a_whole_is_no_evidence() -> None:
    async def scenario(stage: Stage) -> None:
        await experienced(stage, "a")
        before = stage.batcher.cost.seconds(10)
        stage.unreadable.add(13)
        stage.runner("b", lambda _: 0.0001)
        for _ in range(10):
            await stage.submit(13).answered()
        assert stage.batcher.cost.seconds(10) == before

    play(scenario, ROOMY, runners=[])


def test_lanes_of_a_runner_do_not_make_it_slower() -> None:
    """Two batches in hand take as long as one after the other: what counts is how often one is finished."""

    async def scenario(stage: Stage) -> None:
        stage.runner("a", lambda _: 0.020, lanes=2)
        await stage.submit(*range(400)).answered()
        assert stage.batcher.cost.seconds(10) == pytest.approx(0.010, rel=0.2)
        stage.submit(*range(400))
        await asyncio.sleep(0.001)
        stage.ask(1, deadline=stage.now + 0.6)

    play(scenario, ROOMY, runners=[])


def test_forecast_knows_whose_turn_it_is() -> None:
    async def scenario(stage: Stage) -> None:
        await experienced(stage, "a")
        soon = 0.200
        stage.submit(*range(500), tenant="many")
        stage.submit(*range(500), tenant="many", urgent=False)
        with pytest.raises(DeadlineUnmeetableError):
            stage.ask(1, deadline=stage.now + soon, tenant="many")
        stage.ask(1, deadline=stage.now + soon, tenant="few")
        with pytest.raises(DeadlineUnmeetableError):
            stage.ask(*[1] * 80, deadline=stage.now + soon, tenant="few")
        stage.ask(1, deadline=stage.now + soon, tenant="few", urgent=False)
        with pytest.raises(DeadlineUnmeetableError):  # each has to let seven pass
            stage.ask(*[1] * 20, deadline=stage.now + soon, tenant="few", urgent=False)

    play(scenario, ROOMY, runners=[])


def test_batch_is_no_larger_than_its_first_deadline_allows() -> None:
    async def scenario(stage: Stage) -> None:
        await experienced(stage, "a", cost=lambda items: 0.010 * items)
        stage.submit(0)
        await asyncio.sleep(0.001)
        del stage.batches[:]
        pressing = stage.submit(1, deadline=stage.now + 0.081)
        others = stage.submit(*range(2, 11))
        await others.answered()
        assert pressing.outcomes == [2]
        assert [len(batch) for batch in stage.batches] == [6, 4]  # 66 ms, as far as one can tell

    play(scenario, ROOMY, runners=[])


def test_deadline_that_only_a_wasteful_batch_would_meet_gives_way() -> None:
    delay = 0.0

    async def scenario(stage: Stage) -> None:
        nonlocal delay
        await experienced(stage, "a", cost=lambda items: delay + 0.050 + 0.001 * items)
        delay = 0.060
        stage.unreadable.add(0)  # so that nothing is learned from the delay
        stage.submit(0)
        await asyncio.sleep(0.001)
        delay = 0.0
        del stage.batches[:]
        pressing = stage.submit(1, deadline=stage.now + 0.168)  # 58 ms when the runner is free again
        others = stage.submit(*range(2, 12))
        await others.answered()
        await pressing.answered()
        assert pressing.kinds == [ItemExpiredError]
        assert stage.ran == [list(range(2, 12))]

    assert play(scenario, ROOMY, runners=[]).drops == ["deadline"]


def test_what_seems_too_late_runs_if_there_is_nothing_else() -> None:
    """Since it may be the estimate that is wrong: here the runner is five times as fast as it was."""
    cost = 1.0

    async def scenario(stage: Stage) -> None:
        nonlocal cost
        await experienced(stage, "a", cost=lambda _: cost)
        cost = 0.2
        del stage.batches[:]
        late = stage.ask(*[1] * 14, deadline=stage.now + 0.5)
        for place in late.places:
            stage.batcher.submit(place, place.index, key=place.index)
        await asyncio.sleep(0.001)
        stage.batcher.withdraw(late.places[13], "cancelled")
        in_time = stage.submit(100, key=12)
        await late.answered()
        assert late.outcomes[:11] == [2 * index for index in range(11)]
        assert late.outcomes[12] == in_time.outcomes[0] == 24
        assert stage.ran == [list(range(10)), [12], [10, 11]]

    play(scenario, ROOMY, runners=[])


def overload(stage: Stage, rng: random.Random, until: float) -> list[tuple[Caller, float]]:
    """Twice as many callers as can be served; those that came in, with their deadlines, which they keep."""
    came_in: list[tuple[Caller, float]] = []
    rate = 2 * 64 / (0.010 + 64 * 0.010)

    async def call() -> None:
        deadline = stage.now + rng.uniform(1.6, 2.4)
        try:
            caller = stage.ask(1, deadline=deadline)
        except RefusedError:
            return
        came_in.append((caller, deadline))
        await asyncio.sleep(rng.uniform(0.001, 0.005))
        stage.batcher.submit(caller.places[0], 1, None)
        await asyncio.sleep(deadline - stage.now)
        stage.batcher.withdraw(caller.places[0], "deadline")

    async def arrive() -> None:
        async with asyncio.TaskGroup() as calls:
            while stage.now < until:
                await asyncio.sleep(rng.expovariate(rate))
                calls.create_task(call())

    stage.background(arrive())
    return came_in


def test_overload_costs_hardly_any_throughput_and_breaks_hardly_a_promise() -> None:
    """At twice what can be served, with times that vary, callers that give up, and batches that share a runner."""
    rng = random.Random(1)
    learned, until = 5.0, 30.0
    answers: list[bool] = []

    async def scenario(stage: Stage) -> None:
        stage.runner("a", lambda items: (0.010 + 0.010 * items) * rng.lognormvariate(0, 0.1))
        came_in = overload(stage, rng, until)
        await asyncio.sleep(35)
        for caller, deadline in came_in:
            if deadline > learned + 2.4:
                place = caller.places[0]
                answers.append(caller.kinds == [int] and place.finished_at <= deadline)

    play(scenario, Bounds(max_batch=64, max_delay=0.002, max_items=10_000, max_bytes=10_000), runners=[])
    capacity = (until - learned) * 64 / (0.010 + 64 * 0.010)
    assert sum(answers) >= 0.9 * capacity
    assert sum(answers) >= 0.97 * len(answers)
