"""Crops that end or hold up their worker: they alone fail, whoever was beside them is read."""

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from clip4str_service.batcher import RunnerDiedError
from tests.service.generation_stage import becomes, loaded, order
from tests.service.pixel_process import HANGING, POISON, SLOW, STUCK
from tests.service.processes import nothing_left, only_child, until


@pytest.fixture(autouse=True)
async def _nothing_is_left() -> AsyncIterator[None]:
    async with nothing_left():
        yield


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    becomes(path, "first")
    return path


async def test_crop_that_kills_its_worker_fails_alone_after_one_further_death(model: Path) -> None:
    async with loaded(order(model)) as stage:
        answers = await stage.read("111111", POISON, "ABCDEF", "222222")
        assert answers == ["111111", RunnerDiedError, "ABCDEF", "222222"]
        await until(lambda: stage.witness.restarts == ["exit", "exit"])
        assert [len(batch) for batch in stage.witness.batches] == [4, 1, 1, 1, 1]


async def test_crops_in_other_lanes_do_not_die_with_it(model: Path) -> None:
    async with loaded(order(model, lanes=2)) as stage:
        answers = await stage.read(SLOW, POISON, SLOW, "ABCDEF", SLOW, "222222")
        assert answers == [SLOW, RunnerDiedError, SLOW, "ABCDEF", SLOW, "222222"]
        await until(lambda: stage.witness.restarts == ["exit", "exit"])


async def test_several_deadly_crops_fail_each_for_itself(model: Path) -> None:
    async with loaded(order(model, "cpu", lanes=2), order(model, "cuda:0", lanes=2)) as stage:
        before = stage.ask(SLOW, POISON, SLOW, SLOW, POISON, SLOW)
        after = stage.ask(SLOW, SLOW, "ABCDEF")
        assert await before.answers() == [SLOW, RunnerDiedError, SLOW, SLOW, RunnerDiedError, SLOW]
        assert await after.answers() == [SLOW, SLOW, "ABCDEF"]


async def test_worker_killed_with_batches_in_all_lanes_loses_none(model: Path) -> None:
    async with loaded(order(model, lanes=2)) as stage:
        callers = [stage.ask(SLOW, SLOW, "ABCDEF") for _ in range(5)]
        await stage.until_running(15)
        os.kill(only_child(), signal.SIGKILL)
        for caller in callers:
            assert await caller.answers() == [SLOW, SLOW, "ABCDEF"]
        await until(lambda: stage.witness.restarts == ["exit"])


async def test_stopped_worker_is_found_and_replaced(model: Path) -> None:
    async with loaded(order(model), silence=0.5) as stage:
        os.kill(only_child(), signal.SIGSTOP)
        assert await stage.read("111111", "ABCDEF") == ["111111", "ABCDEF"]
        await until(lambda: stage.witness.restarts == ["hang"])


async def test_crop_that_stops_its_worker_fails_alone(model: Path) -> None:
    async with loaded(order(model), silence=0.5) as stage:
        assert await stage.read("111111", HANGING, "ABCDEF") == ["111111", RunnerDiedError, "ABCDEF"]
        await until(lambda: stage.witness.restarts == ["hang", "hang"])


async def test_crop_that_is_never_answered_fails_alone_though_its_worker_beats(model: Path) -> None:
    async with loaded(order(model, lanes=2), patience=0.3) as stage:
        await stage.learn()
        assert await stage.read(STUCK, "111111", "ABCDEF") == [RunnerDiedError, "111111", "ABCDEF"]
        await until(lambda: stage.witness.restarts == ["hang", "hang"])
