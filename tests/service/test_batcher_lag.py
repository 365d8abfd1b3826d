"""How much later than forecast items are done: learned, believed when the next are forecast, and forgotten."""

from __future__ import annotations

import asyncio
import itertools

import numpy as np
import pytest

from clip4str_service.batcher import Bounds, DeadlineUnmeetableError
from clip4str_service.batching.lag import Lag
from tests.service.batching import Stage, play

ROOMY = Bounds(max_batch=10, max_delay=0.002, max_items=10_000, max_bytes=1 << 30)


def test_few_items_are_later_than_it_says() -> None:
    lag = Lag()
    late = np.random.default_rng(1).gamma(4.0, 0.05, 5000)
    for seconds in late:
        lag.learn(float(seconds), batch=0.25)
    assert lag.seconds == pytest.approx(np.quantile(late, 0.98), rel=0.15)


def test_what_is_not_late_is_no_lag() -> None:
    lag = Lag()
    lag.learn(-1.0, batch=0.25)
    assert lag.seconds == 0.0


def test_what_stood_still_is_no_rule() -> None:
    lag = Lag()
    for _ in range(1000):
        lag.learn(60.0, batch=0.25)
    assert lag.seconds == 0.5
    for _ in range(1100):
        lag.learn(0.0, batch=0.25)
    assert lag.seconds == 0.0


def test_items_that_would_be_late_as_those_before_are_refused() -> None:
    """One batch of four takes four times as long as the others, and nobody knows which."""

    async def scenario(stage: Stage) -> None:
        costs = itertools.cycle((0.1, 0.1, 0.1, 0.4))
        stage.runner("a", lambda _: next(costs))
        for _ in range(300):
            stage.submit(1)
            await asyncio.sleep(0.03)
        for _ in range(100):
            stage.submit(1)
            await asyncio.sleep(0.03)
            with pytest.raises(DeadlineUnmeetableError):
                stage.ask(1, deadline=stage.now + 0.25)
        stage.ask(1, deadline=stage.now + 2.0)

    play(scenario, ROOMY, runners=[])
