"""When items would be done: by whose turn it is, what batches cost, and what runners are busy with."""

import asyncio

import pytest

from clip4str_service.batcher import Admission, BatcherFullError, Bounds
from clip4str_service.batching.forecast import Forecast, Runner
from clip4str_service.batching.turns import Turns
from tests.service.batching import FOREVER, Caller, Stage, play


def waiting(turns: Turns[int, int], tenant: str, count: int, *, urgent: bool) -> None:
    """Lets so many places of a tenant wait."""
    admission: Admission[int, int] = Admission([1] * count, urgent, FOREVER, tenant, Caller())
    turns.expect(admission)
    for place in admission.places:
        turns.join(place)


def test_turns_ahead_are_counted_as_they_will_be_taken() -> None:
    turns: Turns[int, int] = Turns()
    assert turns.ahead("a", urgent=True, count=10) == 0
    waiting(turns, "a", 30, urgent=True)
    waiting(turns, "b", 5, urgent=True)
    assert turns.ahead("a", urgent=True, count=10) == 30 + 5
    assert turns.ahead("b", urgent=True, count=10) == 5 + 15
    assert turns.ahead("c", urgent=True, count=1) == 1 + 1
    waiting(turns, "a", 100, urgent=False)
    assert turns.ahead("c", urgent=True, count=40) == 35 + 10  # one for each seven
    assert turns.ahead("c", urgent=False, count=2) == 2 + 28  # seven for each
    turns.expect(Admission([1] * 7, True, FOREVER, "c", Caller()))
    assert turns.ahead("c", urgent=True, count=1) == 7 + 8 + 5 + 3  # those in preparation come before


def test_batches_in_hand_take_a_runners_time_one_after_the_other() -> None:
    runner = Runner(10)
    runner.begin(10, 0.0)
    runner.begin(5, 1.0)
    assert runner.end(10, 2.0) == 2.0
    assert runner.end(5, 2.5) == 0.5
    runner.begin(1, 9.0)
    assert runner.end(1, 9.25) == 0.25


def experienced(*, limit: int = 10) -> Forecast:
    """Batches of one to five cost 10 ms, and 10 ms for each item."""
    forecast = Forecast()
    forecast.runner("a", limit)
    for _ in range(10):
        for items in (1, 3, 5):
            forecast.cost.learn(items, 0.010 + 0.010 * items)
    return forecast


def test_last_items_are_in_a_batch_of_the_usual_size() -> None:
    forecast = experienced()
    assert forecast.seconds(1, 0) == pytest.approx(0.040, rel=0.05)
    assert forecast.seconds(10, 0) == pytest.approx(0.110, rel=0.05)
    assert forecast.seconds(28, 0) == pytest.approx(0.110 + 0.110 + 0.090, rel=0.05)


def test_idle_runner_takes_the_work_before_a_busy_one_does() -> None:
    forecast = experienced()
    forecast.runner("a", 10).begin(10, 0.0)
    forecast.runner("b", 10)
    assert forecast.seconds(1, 0.0) == pytest.approx(0.040, rel=0.05)
    assert forecast.seconds(10, 0.0) == pytest.approx(0.110, rel=0.05)
    assert forecast.seconds(20, 0.0) == pytest.approx((0.110 + 0.220) / 2, rel=0.05)
    assert forecast.seconds(20, 0.2) == pytest.approx(0.110, rel=0.05)  # the other is about to finish


def test_room_is_expected_from_what_runs() -> None:
    async def scenario(stage: Stage) -> None:
        stage.runner("a", lambda items: 1.0 + 0.1 * items)
        for size in (1, 10, 5, 2, 7, 10) * 4:
            await stage.submit(*range(size)).answered()
        stage.submit(*range(100))
        await asyncio.sleep(0.5)
        for items, seconds in ((10, 1.5), (20, 3.5), (11, 1.5 + 1.58)):
            with pytest.raises(BatcherFullError) as refused:
                stage.ask(*[1] * items)
            assert refused.value.retry_after == pytest.approx(seconds, rel=0.1)

    play(scenario, Bounds(max_batch=10, max_delay=0, max_items=100, max_bytes=1000), runners=[])
