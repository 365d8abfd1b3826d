"""The engine: one outcome for each crop, whatever happens to it or to its neighbours."""

import asyncio

import pytest

from clip4str_service.engine import Caller
from clip4str_service.errors import (
    DeadlineExceededError,
    DrainingError,
    ImageTooLargeError,
    InvalidRequestError,
    NotReadyError,
    OverloadedError,
    ServiceError,
    TooManyCropsError,
    UndecodableImageError,
)
from clip4str_service.limits import Allowance
from clip4str_service.options import Options, Priority
from clip4str_service.readings import Reading
from clip4str_service.refusals import MEMORY_SECONDS
from clip4str_service.wire import Phase
from tests.service.engine_stage import Stage, said, started
from tests.service.pixel_worker import MODEL, plain


async def test_crops_are_read_in_order() -> None:
    colours = [f"{index:02X}{255 - index:02X}7F" for index in range(100)]
    async with started(max_batch=16) as stage:
        answer = await stage.engine.recognize([plain(colour) for colour in colours], Options())
        assert said(answer) == colours
        assert answer.model == MODEL
        assert sum(stage.worker.batches) == 100
        assert max(stage.worker.batches) <= 16


async def test_bad_crops_fail_alone() -> None:
    crops: list[bytes | ServiceError] = [plain("010203"), b"", plain("040506"), b"\xff\xd8\xff"]
    crops += [ImageTooLargeError("by the front end"), plain()]
    async with started() as stage:
        answer = await stage.engine.recognize(crops, Options())
        assert said(answer) == [
            "010203",
            UndecodableImageError,
            "040506",
            UndecodableImageError,
            ImageTooLargeError,
            "ABCDEF",
        ]
        assert stage.value("crops_total", outcome="ok") == 3
        assert stage.value("crops_total", outcome="undecodable_image") == 2
        assert stage.value("crops_total", outcome="image_too_large") == 1
        assert stage.value("queued_crops") == stage.value("inflight_crops") == 0


async def test_options_reach_the_worker() -> None:
    async with started() as stage:
        answer = await stage.engine.recognize([plain("1A2B3C")], Options(top_k=3, charset="digits"))
    (reading,) = answer.outcomes
    assert isinstance(reading, Reading)
    assert reading.text == "123"
    assert [len(character.alternatives) for character in reading.cross_modal.characters] == [3, 3, 3]


async def test_limits_come_from_the_settings() -> None:
    async with started(max_crop_pixels=100, max_crop_bytes=200) as stage:
        crops = [plain(size=(11, 10)), plain(size=(10, 10)), bytes(201)]
        answer = await stage.engine.recognize(crops, Options())
        assert said(answer) == [ImageTooLargeError, "ABCDEF", ImageTooLargeError]


@pytest.mark.parametrize(("count", "error"), [(0, InvalidRequestError), (129, TooManyCropsError)])
async def test_wrong_number_of_crops_fails_whole(count: int, error: type[ServiceError]) -> None:
    async with started() as stage:
        with pytest.raises(error):
            await stage.engine.recognize([b""] * count, Options())


async def test_life() -> None:
    stage = Stage()
    engine = stage.engine
    await stage.connect()
    for ask in (engine.check_ready, lambda: engine.model):
        with pytest.raises(NotReadyError):
            ask()
    with pytest.raises(NotReadyError):
        await engine.recognize([plain()], Options())
    await stage.load()
    engine.check_ready()
    assert engine.model == MODEL
    await stage.say(Phase.RESTARTING)
    engine.check_alive()
    with pytest.raises(NotReadyError) as caught:
        engine.check_ready()
    assert caught.value.retry_after_ms == 700
    await stage.say(Phase.FAILED)
    with pytest.raises(NotReadyError):
        engine.check_alive()
    await stage.drain()
    with pytest.raises(DrainingError):
        await engine.recognize([plain()], Options())
    assert engine.model == MODEL
    await stage.stop()


async def test_supervisor_that_does_not_accept_is_believed_over_its_last_word() -> None:
    async with started() as stage:
        stage.dispatcher.refuse(DrainingError("the service is about to stop"))
        with pytest.raises(DrainingError):
            await stage.engine.recognize([plain()], Options())
        assert stage.value("crops_total", outcome="draining") == 1


async def test_limits_of_a_key_are_those_of_all_its_requests() -> None:
    async with started() as stage:
        stage.limits.configure({"slow": Allowance(max_crops_in_flight=2)})
        stage.worker.gate.clear()
        first = asyncio.create_task(stage.engine.recognize([plain()] * 2, Options(), Caller("slow")))
        await stage.until_running(2)
        with pytest.raises(TooManyCropsError):
            await stage.engine.recognize([plain()] * 3, Options(), Caller("slow"))
        with pytest.raises(OverloadedError):
            await stage.engine.recognize([plain()], Options(), Caller("slow"))
        assert stage.value("dropped_total", reason="limited") == 1
        await asyncio.sleep(MEMORY_SECONDS)
        other = asyncio.create_task(stage.engine.recognize([plain("123456")], Options(), Caller("other")))
        await stage.until_queued(1)
        stage.worker.gate.set()
        assert said(await first) == ["ABCDEF"] * 2
        assert said(await other) == ["123456"]
        assert said(await stage.engine.recognize([plain()] * 2, Options(), Caller("slow"))) == ["ABCDEF"] * 2


async def test_equal_crops_in_flight_are_read_once() -> None:
    async with started(max_batch=1) as stage:
        stage.worker.gate.clear()
        asks = [asyncio.create_task(stage.engine.recognize([plain("111111"), plain(), plain()], Options()))]
        await stage.until_running(1)
        asks.append(asyncio.create_task(stage.engine.recognize([plain()], Options())))
        asks.append(asyncio.create_task(stage.engine.recognize([plain()], Options(top_k=1))))
        await stage.until_queued(4)
        await asyncio.sleep(0.02)
        stage.worker.gate.set()
        assert [said(await ask) for ask in asks] == [["111111", "ABCDEF", "ABCDEF"], ["ABCDEF"], ["ABCDEF"]]
        assert stage.worker.batches == [1, 1, 1]
        assert stage.generation.slots.free == stage.capacity


async def test_full_queue_sheds_whole_requests() -> None:
    async with started(queue_crops=4, max_crops=4, max_batch=2) as stage:
        stage.worker.gate.clear()
        colours = ["111111", "222222", "333333"]
        first = asyncio.create_task(stage.engine.recognize(list(map(plain, colours)), Options()))
        await stage.until_running(2)
        with pytest.raises(OverloadedError) as caught:
            await stage.engine.recognize([plain()] * 2, Options())
        assert caught.value.retry_after_ms
        assert stage.value("dropped_total", reason="shed") == 2
        assert stage.value("crops_total", outcome="overloaded") == 2
        with pytest.raises(OverloadedError):  # without asking
            await stage.engine.recognize([plain()] * 2, Options())
        assert stage.value("dropped_total", reason="shed") == 4
        assert stage.value("crops_total", outcome="overloaded") == 4
        stage.worker.gate.set()
        assert said(await first) == colours
        await asyncio.sleep(MEMORY_SECONDS)
        assert said(await stage.engine.recognize([plain()] * 4, Options())) == ["ABCDEF"] * 4


async def test_queue_is_bounded_in_bytes() -> None:
    crop = plain()
    async with started(
        queue_bytes=2 * len(crop), max_request_bytes=2 * len(crop), max_crop_bytes=len(crop)
    ) as stage:
        stage.worker.gate.clear()
        first = asyncio.create_task(stage.engine.recognize([crop], Options()))
        await stage.until_running(1)
        with pytest.raises(OverloadedError):
            await stage.engine.recognize([crop, crop], Options())
        stage.worker.gate.set()
        await first


async def test_timeout_answers_in_time_even_when_the_worker_does_not() -> None:
    async with started(max_batch=1) as stage:
        stage.worker.gate.clear()
        loop = asyncio.get_running_loop()
        before = loop.time()
        crops = [plain("111111"), b"", plain("222222")]
        answer = await stage.engine.recognize(crops, Options(timeout_ms=500))
        assert 0.4 < loop.time() - before < 5
        assert said(answer) == [DeadlineExceededError, UndecodableImageError, DeadlineExceededError]
        await stage.until_queued(0)
        assert stage.value("dropped_total", reason="deadline") >= 1  # the other one runs already
        stage.worker.gate.set()
        await stage.until_running(0)
        assert stage.generation.slots.free == stage.capacity


@pytest.mark.parametrize("seconds", [0.05, -1])
async def test_deadline_of_the_call_fails_it_whole(seconds: float) -> None:
    async with started() as stage:
        stage.worker.gate.clear()
        deadline = asyncio.get_running_loop().time() + seconds
        with pytest.raises(DeadlineExceededError):
            await stage.engine.recognize([plain(), b""], Options(), deadline=deadline)
        await stage.until_queued(0)


async def test_default_timeout_comes_from_the_settings() -> None:
    async with started(default_timeout_ms=50) as stage:
        stage.worker.gate.clear()
        assert said(await stage.engine.recognize([plain()], Options())) == [DeadlineExceededError]


async def test_cancelled_request_frees_its_places() -> None:
    async with started(max_batch=1) as stage:
        stage.worker.gate.clear()
        colours = ["111111", "222222", "333333"]
        request = asyncio.create_task(stage.engine.recognize(list(map(plain, colours)), Options()))
        await stage.until_running(1)
        await stage.until_prepared(3)
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        await stage.until_queued(0)
        assert stage.value("dropped_total", reason="cancelled") == 2
        assert stage.value("crops_total", outcome="cancelled") == 3
        stage.worker.gate.set()
        assert said(await stage.engine.recognize([plain()], Options())) == ["ABCDEF"]
        assert stage.worker.batches == [1, 1]
        assert stage.generation.slots.free == stage.capacity


async def test_request_cancelled_while_it_is_admitted_frees_its_places() -> None:
    async with started() as stage:
        request = asyncio.create_task(stage.engine.recognize([plain()] * 3, Options()))
        await asyncio.sleep(0)  # the wish for places is on its way
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        assert stage.value("crops_total", outcome="cancelled") == 3
        assert said(await stage.engine.recognize([plain()], Options())) == ["ABCDEF"]
        assert stage.queued == stage.running == 0
        assert stage.generation.slots.free == stage.capacity


async def test_interactive_crops_go_before_bulk() -> None:
    order = []
    async with started(max_batch=1) as stage:

        async def ask(colour: str, priority: Priority) -> None:
            await stage.engine.recognize([plain(colour)], Options(priority=priority))
            order.append(colour)

        stage.worker.gate.clear()
        asks = [asyncio.create_task(ask("111111", Priority.BULK))]
        await stage.until_running(1)
        for colour, priority in (("222222", Priority.BULK), ("333333", Priority.INTERACTIVE)):
            asks.append(asyncio.create_task(ask(colour, priority)))
            await stage.until_prepared(len(asks))
        stage.worker.gate.set()
        await asyncio.gather(*asks)
    assert order == ["111111", "333333", "222222"]


async def test_timing_and_measures_tell_where_the_time_went() -> None:
    async with started() as stage:
        stage.worker.gate.clear()
        request = asyncio.create_task(stage.engine.recognize([plain(), plain("444444")], Options()))
        await stage.until_running(2)
        await asyncio.sleep(0.03)
        stage.worker.gate.set()
        timing = (await request).timing
        assert timing.decode_ms > 0
        assert timing.queue_ms >= 0
        assert timing.inference_ms > 25
        for stage_name, count in (("decode", 2), ("preprocess", 2), ("inference", 1)):
            assert stage.value("stage_duration_seconds_count", stage=stage_name) == count
        assert stage.value("stage_duration_seconds_sum", stage="inference") > 0.025
        assert stage.value("queue_wait_seconds_count") == stage.value("word_confidence_count") == 2
        assert stage.value("batch_size_sum") == 2
        assert stage.value("branch_disagreement_total") == 1
