"""Companions: the processes that share a CPU with the worker that was started first."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.service.generation_stage import becomes, loaded, order
from tests.service.pixel_process import SLOW
from tests.service.processes import children, until


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    becomes(path, "first")
    return path


async def test_companions_join_and_share_what_waits(model: Path) -> None:
    async with loaded(order(model, processes=3)) as stage:
        assert stage.generation.model.device == "cpu"
        await stage.until_up(3)
        assert len(children()) == 3
        callers = [stage.ask(SLOW) for _ in range(3)]
        for caller in callers:
            assert await caller.answers() == [SLOW]
        assert len(set(stage.witness.read_by)) == 3
    assert children() == []


async def test_each_of_them_is_replaced(model: Path) -> None:
    async with loaded(order(model, processes=2)) as stage:
        await stage.until_up(2)
        for pid in children():
            os.kill(pid, signal.SIGKILL)
            await until(lambda: pid not in children())  # noqa: B023
            assert await stage.read("ABCDEF") == ["ABCDEF"]
        await stage.until_up(2)
        assert stage.witness.restarts == ["exit", "exit"]


async def test_stop_while_a_companion_starts_leaves_nothing(model: Path) -> None:
    async with loaded(order(model, processes=2)) as stage:
        assert await stage.read("ABCDEF") == ["ABCDEF"]
    assert children() == []
