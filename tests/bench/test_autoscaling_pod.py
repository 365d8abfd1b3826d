"""A simulated pod: queueing theory, cases worked by hand, and what the service does with too much."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from random import Random

import numpy as np
import pytest

from bench.autoscaling_pod import Pod, Service, defaults, quantile
from bench.autoscaling_report import Speed
from bench.virtual_time import run
from clip4str_service.batcher import Bounds
from tests.bench.autoscaling import BUCKETS, speed

SINGLE = Bounds(max_batch=1, max_delay=0.0, max_items=100_000, max_bytes=1 << 40)


class Book:
    """What a pod told of its requests."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.lates = 0
        self.refusals = 0

    def read(self, seconds: float) -> None:
        self.seconds.append(seconds)

    def late(self) -> None:
        self.lates += 1

    def refused(self) -> None:
        self.refusals += 1


def play(
    scenario: Callable[[Pod], Awaitable[None]],
    work: Speed | None = None,
    bounds: Bounds | None = None,
    runners: int = 1,
) -> tuple[Book, Pod]:
    """A scenario with one pod, that then drains."""
    book = Book()

    async def main() -> Pod:
        pod = Pod(Service(work or speed()), bounds or defaults(1024), BUCKETS, book, Random(1))
        for _ in range(runners):
            pod.add_runner()
        await scenario(pod)
        await pod.drain()
        return pod

    return book, run(main())


async def send(pod: Pod, times: Sequence[float], good_for: float = 1e6) -> None:
    loop = asyncio.get_running_loop()
    for at in times:
        await asyncio.sleep(max(0.0, at - loop.time()))
        pod.ask(loop.time(), good_for)


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_a_pod_without_batches_is_an_m_d_1_queue(load: float) -> None:
    """Random arrivals, one server, equal times: each wait by Lindley, their mean by Pollaczek and Khinchine."""
    seconds, gaps = 0.01, np.random.default_rng(5).exponential(0.01 / load, 12_000)
    times = np.cumsum(gaps).tolist()
    book, _ = play(lambda pod: send(pod, times), speed(seconds, 0.0), SINGLE)
    waits = [0.0]
    for gap in gaps[1:]:
        waits.append(max(0.0, waits[-1] + seconds - gap))
    assert book.seconds == pytest.approx(np.array(waits) + seconds, abs=1e-9)
    assert np.mean(waits) == pytest.approx(load * seconds / (2 * (1 - load)), rel=0.1)


def test_batches_by_hand() -> None:
    """The first goes alone for 15 ms; the three that came meanwhile go together for 25 ms."""
    book, pod = play(lambda pod: send(pod, [0.0, 0.001, 0.002, 0.003]))
    assert book.seconds == pytest.approx([0.015, 0.039, 0.038, 0.037])
    assert pod.waits == [1, 3, 0, 0, 0, 0, 0, 0, 0]  # 0 s, then 14, 13 and 12 ms
    assert pod.cpu_seconds == pytest.approx(2 * 0.01 + 4 * 0.004)


def test_two_workers_share() -> None:
    book, _ = play(lambda pod: send(pod, [0.0, 0.0]), runners=2)
    assert book.seconds == pytest.approx([0.015, 0.015])


def test_a_full_queue_refuses() -> None:
    book, pod = play(lambda pod: send(pod, [0.0] * 20), bounds=defaults(8))
    assert (len(book.seconds), book.refusals, book.lates) == (8, 12, 0)
    assert pod.cpu_seconds > 12 * 0.001


def test_a_pod_that_knows_its_speed_refuses_what_would_be_late() -> None:
    rate, seconds = 600, 20  # three times what it can do
    times = [number / rate for number in range(rate * seconds)]
    book, _ = play(lambda pod: send(pod, times, good_for=1.0))
    asked = len(times)
    assert book.refusals + book.lates + len(book.seconds) == asked
    assert 0.55 < book.refusals / asked < 0.75
    assert book.lates < 0.02 * asked
    assert np.quantile(book.seconds, 0.99) < 1.03


def test_refusals_slow_batches_down() -> None:
    work = speed()
    work["slower_per_refusal_s"] = 0.01
    service, chance = Service(work), Random(1)
    assert service.seconds(10, 0.0, chance) == pytest.approx(0.06)
    assert service.seconds(10, 50.0, chance) == pytest.approx(0.09)


def test_times_are_drawn_from_the_spread_of_their_size() -> None:
    work = speed(quantiles=(0.5, 1.0, 2.5))
    work["spreads"].insert(0, {"largest": 4, "batches": 9, "mean_s": 0.02, "quantiles": [1.0, 1.0]})
    service, chance = Service(work, times=2.0), Random(2)
    assert service.seconds(4, 0.0, chance) == pytest.approx(2 * 0.03)
    drawn = np.array([service.seconds(64, 0.0, chance) for _ in range(4000)]) / service.expected(64)
    assert drawn.min() >= 0.5
    assert drawn.max() <= 2.5
    assert np.median(drawn) == pytest.approx(1.0, abs=0.03)
    assert drawn.mean() == pytest.approx((0.75 + 1.75) / 2, abs=0.03)


def test_a_pod_that_drains_answers_what_it_accepted() -> None:
    async def scenario(pod: Pod) -> None:
        await send(pod, [0.0] * 100)
        draining = asyncio.create_task(pod.drain())
        await asyncio.sleep(0)
        with pytest.raises(Exception, match="takes no more"):
            pod.ask(0.0, 1.0)
        await draining

    book, pod = play(scenario)
    assert len(book.seconds) == 100
    assert pod.items == 0


def test_load_ratio_is_what_is_queued_and_in_flight() -> None:
    async def scenario(pod: Pod) -> None:
        await send(pod, [0.0] * 100)
        await asyncio.sleep(0.001)
        assert pod.load_ratio == 100 / 256
        assert pod.batcher.queued == 99  # the first did not wait

    play(scenario, bounds=defaults(256))


def test_quantile_as_prometheus_has_it() -> None:
    upper = [0.1, 0.2, 0.5]
    assert quantile(upper, [0, 10, 0, 0], 0.5) == pytest.approx(0.15)
    assert quantile(upper, [10, 10, 0, 0], 0.5) == pytest.approx(0.1)
    assert quantile(upper, [10, 0, 10, 0], 0.75) == pytest.approx(0.35)
    assert quantile(upper, [10, 0, 0, 10], 0.95) == 0.5  # above the last bound it is that bound
    assert quantile(upper, [0, 0, 0, 0], 0.95) == 0.0
