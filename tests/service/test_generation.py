"""A generation: loaded by all of its workers or by none, kept alive, stopped without a trace."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from clip4str_service import generation as generation_module
from clip4str_service.batcher import BatcherClosedError
from clip4str_service.generation import Care, Generation
from clip4str_service.workers import WorkerStartError
from tests.service.generation_stage import BOUNDS, Stage, Witness, becomes, loaded, order
from tests.service.pixel_process import DYING, ENDLESS, SLOW, UNREADABLE
from tests.service.pixel_worker import PixelWorker
from tests.service.processes import children, nothing_left, only_child, until

LONG = 60.0


@pytest.fixture(autouse=True)
async def _nothing_is_left(caplog: pytest.LogCaptureFixture) -> AsyncIterator[None]:
    async with nothing_left():
        yield
    assert [record for record in caplog.records if record.name == "asyncio"] == []


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model"
    becomes(path, "first")
    return path


async def test_workers_share_what_waits(model: Path) -> None:
    async with loaded(order(model, "cpu"), order(model, "cuda:0")) as stage:
        assert stage.generation.model.device == "cpu, cuda:0"
        assert stage.generation.model.revision == "first"
        callers = [stage.ask(SLOW, "123456", UNREADABLE) for _ in range(4)]
        for caller in callers:
            answers = await caller.answers()
            assert answers[:2] == [SLOW, "123456"]
            assert answers[2] is generation_module.UnreadableError
        assert len(set(stage.witness.read_by)) == 2
        assert stage.witness.failed == 0


@pytest.mark.parametrize("content", [None, DYING])
async def test_model_that_cannot_be_loaded_says_why(model: Path, content: str | None) -> None:
    becomes(model, content)
    stage = Stage(LONG, LONG)
    with pytest.raises(WorkerStartError, match="exit code 3" if content else "No such file"):
        await stage.generation.load([order(model)])


async def test_workers_of_different_models_are_all_ended(model: Path) -> None:
    becomes(model, "on {device}")
    stage = Stage(LONG, LONG)
    with pytest.raises(WorkerStartError, match="the model changed while it was loaded"):
        await stage.generation.load([order(model, "cpu"), order(model, "cuda:0")])


async def test_one_worker_that_cannot_start_ends_the_others(model: Path, tmp_path: Path) -> None:
    becomes(model, ENDLESS)
    stage = Stage(LONG, LONG)
    with pytest.raises(WorkerStartError, match="missing"):
        await stage.generation.load([order(model), order(tmp_path / "missing")])


async def test_load_can_be_given_up_at_any_moment(model: Path) -> None:
    becomes(model, ENDLESS)
    for processes in (0, 1, 2):
        stage = Stage(LONG, LONG)
        orders = [order(model, "cpu"), order(model, "cuda:0")]
        loading = asyncio.create_task(stage.generation.load(orders))
        await asyncio.sleep(0)
        await until(lambda: len(children()) >= processes)  # noqa: B023
        loading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loading
        assert children() == []


async def test_stop_with_batches_in_hand_settles_and_ends_everything(model: Path) -> None:
    async with loaded(order(model, lanes=2)) as stage:
        caller = stage.ask(SLOW)
        await stage.until_running(1)
    assert await caller.answers() == [BatcherClosedError]
    assert stage.witness.restarts == []


async def test_drained_generation_has_answered_what_it_took(model: Path) -> None:
    async with loaded(order(model)) as stage:
        callers = [stage.ask(SLOW, SLOW), stage.ask("ABCDEF")]
        await stage.generation.drained()
        assert [await caller.answers() for caller in callers] == [[SLOW, SLOW], ["ABCDEF"]]
        with pytest.raises(BatcherClosedError):
            stage.ask("ABCDEF")


async def test_worker_that_ends_is_replaced(model: Path) -> None:
    async with loaded(order(model)) as stage:
        first = only_child()
        os.kill(first, signal.SIGKILL)
        assert await stage.read("ABCDEF") == ["ABCDEF"]
        second = only_child()
        assert second != first
        assert stage.witness.restarts == ["exit"]


async def test_worker_that_cannot_start_again_is_tried_less_and_less_often(
    model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(generation_module, "_FIRST_PAUSE", 0.001)
    monkeypatch.setattr(generation_module, "_LAST_PAUSE", 0.01)
    async with loaded(order(model)) as stage:
        with monkeypatch.context() as broken:
            broken.setattr(sys, "executable", "/nowhere/python")
            os.kill(only_child(), signal.SIGKILL)
            caller = stage.ask("ABCDEF")
            changes = stage.changes
            await until(lambda: stage.generation.hopeless)
            assert stage.changes > changes  # somebody may look now
            failures = [record for record in caplog.records if record.message == "a worker cannot be started"]
            assert all("cannot be started" in record.__dict__["why"] for record in failures)
            pauses = [record.__dict__["next_s"] for record in failures]
            assert pauses[:5] == [0.001, 0.002, 0.004, 0.008, 0.01]
        await stage.until_up(1)  # where there is no hope it is tried nevertheless
        assert not stage.generation.hopeless
        assert await caller.answers() == ["ABCDEF"]
        assert stage.witness.restarts == ["exit"]


async def test_there_is_hope_while_one_worker_is_up_or_on_its_way(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation_module, "_FIRST_PAUSE", 0.001)
    monkeypatch.setattr(generation_module, "_LAST_PAUSE", 0.001)
    async with loaded(order(model, "cpu"), order(model, "cuda:0")) as stage:
        one, other = children()
        with monkeypatch.context() as broken:
            broken.setattr(sys, "executable", "/nowhere/python")
            os.kill(one, signal.SIGKILL)
            await until(lambda: stage.changes > 20)  # it was tried many times
            assert not stage.generation.hopeless
            assert await stage.read("ABCDEF") == ["ABCDEF"]
            assert not stage.generation.hopeless
            os.kill(other, signal.SIGKILL)
            await until(lambda: stage.generation.hopeless)
        await stage.until_up(2)


async def test_another_model_in_the_file_is_not_taken_for_the_same(
    model: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with loaded(order(model)) as stage:
        becomes(model, "second")
        os.kill(only_child(), signal.SIGKILL)
        await until(lambda: "a worker cannot be started" in caplog.messages)
        why = [record.__dict__["why"] for record in caplog.records if "why" in record.__dict__]
        assert why == ["the model's file is another one now"]
        assert not stage.generation.up
        becomes(model, "first")
        assert await stage.read("ABCDEF") == ["ABCDEF"]


async def live_and_die(number: int) -> None:
    worker = PixelWorker()
    generation = Generation(number, Care(lambda _: worker, LONG, lambda: None), BOUNDS, Witness())
    await generation.load([order(Path("pixels"))])
    assert generation.up == {worker}  # at once: calls may come
    await asyncio.sleep(number % 2 * 0.01)
    await generation.stop()
    await asyncio.wait_for(worker.over(), LONG)


async def test_nothing_is_left_of_many_generations() -> None:
    for number in range(200):
        await live_and_die(number)
