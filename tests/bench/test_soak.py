"""What the soak finds off."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from bench import soak
from bench.serve_load import Sample
from bench.serve_tree import Tree
from bench.serve_ways import Outcome, Verdict
from tests.bench.processes import READY, running

READ = Outcome(Verdict.READ, 1)


def test_a_slope_and_its_doubt() -> None:
    minutes = np.linspace(0, 30, 301)
    noise = np.random.default_rng(1).normal(0, 500, 301)
    slope, doubt = soak.least_squares(minutes, 1e6 + 200 * minutes + noise)
    assert doubt == pytest.approx(500 / np.sqrt(((minutes - 15) ** 2).sum()), rel=0.2)
    assert slope == pytest.approx(200, abs=3 * doubt)
    assert soak.least_squares(minutes[:2], noise[:2])[1] == float("inf")


@pytest.mark.parametrize(("slope", "doubt", "kept"), [(129, 0.1, False), (500, 300, True), (-900, 1, True)])
def test_what_grows_beyond_doubt_is_off(slope: float, doubt: float, kept: bool) -> None:
    assert soak.Growth(1, "python", 1e6, 1e6, slope, doubt).kept is kept


@pytest.mark.parametrize(("last_ms", "is_slower"), [(100, False), (150, False), (171, True)])
def test_the_last_answers_are_held_against_the_first(last_ms: float, is_slower: bool) -> None:
    def minute(begun: float, ms: float) -> list[Sample]:
        waits = [ms] * 50 + [50 * ms] * 10  # few outliers change nothing
        return [Sample(begun + n, begun + n + wait / 1000, READ) for n, wait in enumerate(waits)]

    samples = [
        *minute(240, last_ms),
        *minute(0, 100),
        *(each for n in (60, 120, 180) for each in minute(n, 900)),
    ]
    first, last, found = soak.slower(samples)
    assert (first, last) == pytest.approx((100, last_ms))
    assert found is is_slower


async def test_processes_are_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "_EVERY", 0.05)
    monkeypatch.setattr(soak, "_SETTLING_SECONDS", 0.2)
    tree = Tree()
    growing = f"import time{READY[:-14]}\nkept = []\nwhile True: kept.append(b'x' * 200000); time.sleep(0.01)"
    with running("import time" + READY) as quiet, running(growing) as greedy:
        watch = soak.Watch(tree)
        looking = asyncio.create_task(watch.look())
        await asyncio.sleep(1.0)
        with running("import time" + READY) as passing:
            await asyncio.sleep(0.3)
        await asyncio.sleep(0.3)
        looking.cancel()
        grown = {each.process: each for each in watch.growth()}
    assert grown[quiet.pid].kept
    assert not grown[greedy.pid].kept
    assert grown[greedy.pid].last > grown[greedy.pid].first + 5000
    assert watch.came_or_went == {passing.pid}


def test_too_short_a_soak_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert soak.main(["--minutes", "1.9"]) == 2
    assert "expected 2 or more" in capsys.readouterr().err
