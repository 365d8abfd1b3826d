"""The engine when something fails or ends: its crops have an outcome all the same, and their places are free."""

import asyncio
import threading

import pytest
from PIL import Image

from clip4str_service import engine as engine_module
from clip4str_service.arena import Pixels
from clip4str_service.errors import (
    DrainingError,
    InternalError,
    UndecodableImageError,
)
from clip4str_service.options import Options
from tests.service.engine_stage import said, started
from tests.service.pixel_worker import POISON, UNREADABLE, plain


async def test_crop_that_kills_its_worker_fails_alone() -> None:
    async with started() as stage:
        colours = ["111111", POISON, "222222"]
        answer = await stage.engine.recognize(list(map(plain, colours)), Options())
        assert said(answer) == ["111111", InternalError, "222222"]
        assert stage.value("worker_restarts_total", reason="exit") == 2
        assert stage.worker.batches[0] == 3
        assert stage.worker.batches[1:] == [1] * (len(stage.worker.batches) - 1)
        assert stage.generation.slots.free == stage.capacity


async def test_crop_that_the_model_fails_on_is_an_error() -> None:
    async with started() as stage:
        answer = await stage.engine.recognize([plain(UNREADABLE), plain()], Options())
        assert said(answer) == [InternalError, "ABCDEF"]


async def test_crop_that_cannot_be_prepared_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(image: Image.Image, pixels: Pixels) -> None:
        raise RuntimeError(f"cannot resize {image.size} to {pixels.shape}")

    async with started() as stage:
        monkeypatch.setattr(engine_module, "prepare_into", fail)
        answer = await stage.engine.recognize([plain(), b""], Options())
        assert said(answer) == [InternalError, UndecodableImageError]
        await stage.until_queued(0)
        assert stage.generation.slots.free == stage.capacity


async def test_fault_of_ours_frees_every_place(monkeypatch: pytest.MonkeyPatch) -> None:
    async with started() as stage:
        monkeypatch.setattr(stage.engine, "_prepare", lambda: None)
        answer = await stage.engine.recognize([plain()] * 20, Options())
        assert said(answer) == [InternalError] * 20
        await stage.until_queued(0)


async def test_drain_finishes_what_was_accepted() -> None:
    async with started(max_batch=1) as stage:
        stage.worker.gate.clear()
        colours = ["111111", "222222", "333333", "888888", "999999"]
        request = asyncio.create_task(stage.engine.recognize(list(map(plain, colours)), Options()))
        await stage.until_running(1)
        draining = asyncio.create_task(stage.drain())
        await asyncio.sleep(0.02)
        assert not draining.done()
        with pytest.raises(DrainingError):
            await stage.engine.recognize([plain()], Options())
        stage.worker.gate.set()
        await draining
        assert said(await request) == colours


async def test_crops_given_up_at_the_end_are_told_so() -> None:
    async with started() as stage:
        stage.worker.gate.clear()
        request = asyncio.create_task(stage.engine.recognize([plain()], Options()))
        await stage.until_running(1)
        stage.generation.batcher.stop()
        assert said(await request) == [DrainingError]


async def test_front_end_that_dies_gives_up_its_crops() -> None:
    async with started(max_batch=1) as stage:
        stage.worker.gate.clear()
        colours = ["111111", "222222", "333333"]
        request = asyncio.create_task(stage.engine.recognize(list(map(plain, colours)), Options()))
        await stage.until_running(1)
        await stage.until_prepared(3)
        stage.peer.gone()
        assert (stage.queued, stage.value("dropped_total", reason="cancelled")) == (0, 2)
        stage.worker.gate.set()
        await stage.until_running(0)
        assert stage.generation.slots.free == stage.capacity
        request.cancel()


async def test_stop_waits_for_no_busy_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    entered, go_on, left = threading.Event(), threading.Event(), threading.Event()

    def prepare(_: Image.Image, __: Pixels) -> None:
        entered.set()
        go_on.wait(5)
        left.set()

    monkeypatch.setattr(engine_module, "prepare_into", prepare)
    async with started() as stage:
        request = asyncio.create_task(stage.engine.recognize([plain(size=(600, 400))], Options()))
        try:
            while not entered.is_set():  # noqa: ASYNC110 (it is set on a thread)
                await asyncio.sleep(0.001)
            stage.engine.stop()
            assert not left.is_set()
        finally:
            go_on.set()
        assert said(await request) == ["000000"]
