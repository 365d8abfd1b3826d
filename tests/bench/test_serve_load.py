"""The bench's instruments, in virtual time, against a server whose speed is known."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from bench.serve_load import Arrivals, Sample, Window, closed_loop, open_loop, percentiles, recovery
from bench.serve_ways import Outcome, Verdict, Way
from bench.virtual_time import run

READ = Outcome(Verdict.READ, 1)


class Bunches(Way[Outcome]):
    """Answers all that has been asked every `period` seconds, as a server does that reads batches."""

    def __init__(self, period: float, outcome: Outcome = READ) -> None:
        super().__init__([b"one", b"two", b"three"], 1)
        self._period = period
        self._outcome = outcome
        self.asked: list[int] = []

    async def ask(self, number: int) -> Outcome:
        self.asked.append(number)
        now = asyncio.get_running_loop().time()
        rest = self._period - now % self._period
        await asyncio.sleep(rest if rest > 1e-6 else self._period)  # a rest of rounding would never pass
        return self._outcome

    def judge(self, answer: Outcome) -> Outcome:
        return answer

    def texts(self, answer: Outcome) -> list[str]:  # noqa: ARG002 (it reads nothing)
        return []

    async def close(self) -> None:
        """It has nothing open."""


def samples(*spans: tuple[float, float], outcome: Outcome = READ) -> list[Sample]:
    return [Sample(begun, ended, outcome) for begun, ended in spans]


def test_closed_loop_measures_what_bunches_come_to() -> None:
    cpu = iter([10.0, 12.5])
    window = run(closed_loop(Bunches(0.05), 8, 0.5, lambda: next(cpu)))
    assert window.ended - window.begun == pytest.approx(0.5)
    assert window.crops / 0.5 == pytest.approx(8 / 0.05)
    assert percentiles(window.samples)["p50_ms"] == pytest.approx(50)
    assert window.server_cpu == 2.5
    assert window.client_cpu > 0


def test_requests_go_round() -> None:
    way = Bunches(0.01)
    run(closed_loop(way, 2, 0.1, lambda: 0.0))
    assert way.asked[:7] == [0, 1, 2, 0, 1, 2, 0]


def test_a_request_that_an_edge_cuts_counts_in_part() -> None:
    outcome = Outcome(Verdict.READ, 10)
    window = Window(10.0, 20.0, samples((9.0, 11.0), (19.0, 29.0), (11.0, 12.0), outcome=outcome), 0, 0)
    assert window.crops == pytest.approx(5 + 1 + 10)


def test_open_loop_comes_whether_or_not_it_is_answered() -> None:
    slow = run(open_loop(Bunches(10.0), 200, 0.5, 0.2, seed=1))
    quick = run(open_loop(Bunches(0.01), 200, 0.5, 0.2, seed=1))
    assert len(slow.samples) == len(quick.samples) == pytest.approx(100, abs=30)
    assert {each.outcome.verdict for each in slow.samples} == {Verdict.LATE}
    assert all(each.seconds == pytest.approx(0.2) for each in slow.samples)
    assert quick.goodput(0.2) == pytest.approx(len(quick.samples) / 0.5)
    assert quick.goodput(0.0) == 0.0
    assert max(quick.lags) < 1e-6
    assert sorted(each.begun for each in quick.samples) == [each.begun for each in slow.samples]


def test_a_refusal_is_told_from_a_failure() -> None:
    arrivals = run(open_loop(Bunches(0.01, Outcome(Verdict.REFUSED, 0, True)), 100, 0.2, 0.2, seed=2))
    refused = arrivals.of(Verdict.REFUSED)
    assert len(refused) == len(arrivals.samples) > 0
    assert all(each.outcome.retry_after for each in refused)
    assert arrivals.goodput(1.0) == 0.0


def at(times: Sequence[float], seconds: float) -> list[Sample]:
    return [Sample(100 + time, 100 + time + seconds, READ) for time in times]


def test_recovery_is_when_answers_are_quick_again_and_stay_so() -> None:
    tenths = [number / 10 for number in range(60)]
    slow, quick = at(tenths[:15], 0.5), at(tenths[15:], 0.05)
    arrivals = Arrivals(6.0, slow + quick, [])
    assert recovery(arrivals, 0.1, 100.0) == pytest.approx(1.5, abs=0.11)
    assert recovery(arrivals, 1.0, 100.0) == 0.0
    assert recovery(arrivals, 0.01, 100.0) is None
    assert recovery(Arrivals(6.0, [], []), 1.0, 100.0) is None


def test_percentiles_of_nothing_are_nothing() -> None:
    assert set(percentiles([]).values()) == {None}
    found = percentiles(samples(*((0.0, number / 1000) for number in range(101))))
    assert found == {"p50_ms": pytest.approx(50), "p95_ms": pytest.approx(95), "p99_ms": pytest.approx(99)}
