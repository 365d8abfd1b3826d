"""How much of a RecognizeStream is in flight, and who waits for whom: the client, the stream, the full service."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import grpc
import pytest

from clip4str_service.auth import load_keys, new_key
from clip4str_service.limits import Allowance
from clip4str_service.pb.recognition_pb2_grpc import RecognitionServiceStub
from tests.service.front import PATIENCE
from tests.service.pixel_worker import plain, settings
from tests.service.rpc_service import RpcService, Stream, serving

QUIET = 0.3
"""Seconds after which what has not happened does not happen."""

NARROW = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 1024))
"""Options of a client that takes in little of what it does not read."""


@pytest.fixture
async def held_up() -> AsyncIterator[RpcService]:
    """A service of narrow streams whose worker does nothing yet."""
    async with serving(settings(stream_crops=4)) as rpc:
        rpc.stage.worker.gate.clear()
        yield rpc


def colours(count: int) -> list[str]:
    return [f"{index * 7:06X}" for index in range(1, count + 1)]


def answers(texts: Sequence[str]) -> list[tuple[str, str]]:
    return sorted((str(index), text) for index, text in enumerate(texts))


async def sent(rpc: RpcService, texts: Sequence[str]) -> Stream:
    """A stream of whose crops as many are in flight by now as may be."""
    stream = Stream(rpc.stub)
    for text in texts:
        await stream.send(plain(text))
    await stream.call.done_writing()
    await asyncio.sleep(QUIET)
    return stream


async def test_no_more_crops_are_in_flight_than_the_stream_may_have(held_up: RpcService) -> None:
    texts = colours(20)
    stream = await sent(held_up, texts)
    assert held_up.stage.queued + held_up.stage.running == 4
    assert held_up.intake.held == sum(len(plain(text)) for text in texts[:4])
    held_up.stage.worker.gate.set()
    assert sorted(await stream.rest()) == answers(texts)
    assert held_up.intake.held == 0
    assert max(held_up.stage.worker.batches) <= 4


async def test_stream_may_have_twice_as_many_crops_in_flight_as_are_read_at_a_time() -> None:
    async with serving(settings(max_batch=8)) as rpc:
        rpc.stage.worker.gate.clear()
        texts = colours(40)
        stream = await sent(rpc, texts)
        assert rpc.stage.queued + rpc.stage.running == 16
        rpc.stage.worker.gate.set()
        assert sorted(await stream.rest()) == answers(texts)


async def test_client_that_sent_fast_for_long_is_held_back_as_soon() -> None:
    async with serving(settings(stream_crops=4)) as rpc:
        stream = Stream(rpc.stub)
        texts = colours(2000)
        written = 0
        under_way = asyncio.Event()

        async def write() -> None:
            nonlocal written
            for text in texts:
                await stream.send(plain(text) + bytes(3_000))
                written += 1
                if written == 1000:
                    under_way.set()
            await stream.call.done_writing()

        writing, reading = asyncio.create_task(write()), asyncio.create_task(stream.rest())
        await under_way.wait()
        rpc.stage.worker.gate.clear()
        before = written
        await asyncio.sleep(QUIET)
        assert written - before < 100, "HTTP/2's windows have grown"
        rpc.stage.worker.gate.set()
        assert sorted(await reading) == answers(texts)
        await writing


async def test_client_that_sends_too_fast_is_held_back(held_up: RpcService) -> None:
    stream = Stream(held_up.stub)
    texts = colours(200)
    written = 0

    async def write() -> None:
        nonlocal written
        for text in texts:
            await stream.send(plain(text) + bytes(150_000))
            written += 1
        await stream.call.done_writing()

    writing = asyncio.create_task(write())
    before = -1
    while written > before:
        before = written
        await asyncio.sleep(QUIET)
    assert written < len(texts)
    held_up.stage.worker.gate.set()
    assert sorted(await stream.rest()) == answers(texts)
    await writing


async def test_client_that_never_reads_is_dropped() -> None:
    async with serving(settings(idle_timeout_ms=QUIET * 1000)) as rpc:
        channel = rpc.client(*NARROW)
        stream = Stream(RecognitionServiceStub(channel))
        await stream.send(top_k=5)
        for _ in range(3):
            await stream.send(*map(plain, colours(100)))
        await rpc.until_counted("RecognizeStream", "cancelled")
        await rpc.until_idle()
        failed = await stream.failure()  # for when it reads in the end
        assert (failed.code, failed.reason) == (grpc.StatusCode.CANCELLED, "cancelled")
        assert sum(len(response.results) for response in stream.responses) < 300
        assert len((await rpc.recognize(plain())).results) == 1
        await channel.close()


@pytest.mark.parametrize("how", ["cancels", "closes"])
async def test_client_that_leaves_its_answers_is_no_fault(how: str, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(settings()) as rpc:
        channel = rpc.client(*NARROW)
        stream = Stream(RecognitionServiceStub(channel))
        await stream.send(top_k=5)
        for _ in range(3):
            await stream.send(*map(plain, colours(100)))
        await asyncio.sleep(QUIET)
        if how == "cancels":
            stream.call.cancel()
        await channel.close()
        await rpc.until_counted("RecognizeStream", "cancelled")
        await rpc.until_idle()
        assert rpc.calls("RecognizeStream", "internal") == 0
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


async def test_client_that_reads_slowly_holds_up_itself_alone() -> None:
    async with serving(settings(stream_crops=32)) as rpc:
        channel = rpc.client(*NARROW)
        slow, quick = Stream(RecognitionServiceStub(channel)), Stream(rpc.stub)
        texts = colours(300)

        async def write(stream: Stream) -> None:
            await stream.send(top_k=5)
            for text in texts:
                await stream.send(plain(text))
            await stream.call.done_writing()

        writing = [asyncio.create_task(write(stream)) for stream in (slow, quick)]
        assert sorted(await quick.rest()) == answers(texts)
        await rpc.until_idle()
        assert rpc.stage.value("crops_total", outcome="ok") < 600
        assert sorted(await slow.rest()) == answers(texts)
        await asyncio.gather(*writing)
        await channel.close()


async def test_full_service_makes_the_stream_wait() -> None:
    async with serving(settings(queue_crops=2, max_crops=2)) as rpc:
        rpc.stage.worker.gate.clear()
        first = asyncio.create_task(rpc.recognize(plain("111111"), plain("222222")))
        await rpc.stage.until_running(2)
        stream = Stream(rpc.stub)
        texts = colours(12)
        await stream.send(plain(texts[0]), plain(texts[1]))
        reading = asyncio.create_task(stream.read())
        done, _ = await asyncio.wait([reading], timeout=QUIET)
        assert not done
        rpc.stage.worker.gate.set()
        await first
        found = await reading
        for start in range(2, 12, 2):
            await stream.send(*map(plain, texts[start : start + 2]))
        assert sorted(found + await stream.end()) == answers(texts)
        assert rpc.stage.value("dropped_total", reason="shed") == 0, "they waited and were read"


async def test_crops_that_wait_too_long_fail_and_the_stream_goes_on() -> None:
    async with serving(settings(queue_crops=2, max_crops=2)) as rpc:
        rpc.stage.worker.gate.clear()
        first = asyncio.create_task(rpc.recognize(plain("111111"), plain("222222")))
        await rpc.stage.until_running(2)
        loop = asyncio.get_running_loop()
        stream = Stream(rpc.stub)
        before = loop.time()
        await stream.send(plain(), plain("333333"), timeout_ms=400)
        assert sorted(await stream.read(2)) == [("0", "overloaded"), ("1", "overloaded")]
        assert 0.4 <= loop.time() - before < 5
        for result in (result for response in stream.responses for result in response.results):
            assert result.error.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
        assert rpc.stage.value("crops_total", outcome="overloaded") == 2
        assert rpc.stage.value("dropped_total", reason="shed") == 2, "however often they asked"
        rpc.stage.worker.gate.set()
        await first
        await stream.send(plain("444444"))
        assert await stream.end() == [("2", "444444")]


async def test_crop_that_came_later_has_its_own_time() -> None:
    async with serving(settings(queue_crops=1, max_crops=1)) as rpc:
        rpc.stage.worker.gate.clear()
        first = asyncio.create_task(rpc.recognize(plain("111111")))
        await rpc.stage.until_running(1)
        stream = Stream(rpc.stub)
        await stream.send(plain("222222"), timeout_ms=600)
        await asyncio.sleep(QUIET)
        await stream.send(plain("333333"))
        assert await stream.read() == [("0", "overloaded")]
        rpc.stage.worker.gate.set()
        await first
        assert await stream.end() == [("1", "333333")]


async def test_stream_takes_the_few_places_that_there_are() -> None:
    async with serving(settings(queue_crops=3, max_crops=3, max_batch=1)) as rpc:
        stream = Stream(rpc.stub)
        texts = colours(60)
        for start in range(0, 60, 3):
            await stream.send(*map(plain, texts[start : start + 3]))
        assert sorted(await stream.end()) == answers(texts)


@pytest.mark.parametrize(
    "allowance",
    [Allowance(max_crops_in_flight=2), Allowance(crops_per_second=100, burst_crops=2)],
)
async def test_limits_of_a_key_make_its_stream_wait(tmp_path: Path, allowance: Allowance) -> None:
    key, lines = new_key("slow")
    path = tmp_path / "keys.toml"
    path.write_text(lines)
    async with serving(settings(api_keys_file=path)) as rpc:
        rpc.stage.limits.configure(dict.fromkeys(load_keys(path).allowances, allowance))
        stream = Stream(rpc.stub, metadata=(("x-api-key", key),))
        texts = colours(20)
        await stream.send(*map(plain, texts))
        assert sorted(await stream.end()) == answers(texts)
        assert max(rpc.stage.worker.batches) <= 2


async def test_stream_waits_for_room_for_its_bytes() -> None:
    limits = settings(
        max_crop_bytes=2000, max_request_bytes=5000, queue_bytes=5000, default_timeout_ms=20_000
    )
    crop = bytes(1900 - len(plain()))
    async with serving(limits) as rpc:
        rpc.stage.worker.gate.clear()
        first = asyncio.create_task(rpc.recognize(plain("111111") + crop, plain("222222") + crop))
        await rpc.stage.until_running(2)
        held = rpc.intake.held
        stream = Stream(rpc.stub)
        await stream.send(plain("333333") + crop)
        await asyncio.sleep(QUIET)
        assert rpc.intake.held == held
        rpc.stage.worker.gate.set()
        await first
        assert await stream.read() == [("0", "333333")]
        assert rpc.intake.held == 0
        assert await stream.end() == []


async def test_crops_that_find_no_room_in_time_fail_alone() -> None:
    limits = settings(max_crop_bytes=2000, max_request_bytes=5000, queue_bytes=5000)
    async with serving(limits) as rpc:
        with rpc.intake.request() as other:
            other.take(4500)
            stream = Stream(rpc.stub)
            await stream.send(plain() + bytes(1000), timeout_ms=200)
            assert await stream.read() == [("0", "overloaded")]
            await stream.send(plain())
            assert await stream.read() == [("1", "ABCDEF")]
        assert await stream.end() == []


async def test_stream_that_ends_at_any_moment_leaves_nothing(held_up: RpcService) -> None:
    for pause in range(12):
        stream = Stream(held_up.stub)
        await stream.send(*map(plain, colours(6)))
        await asyncio.sleep(pause / 1000)
        stream.call.cancel()
    held_up.stage.worker.gate.set()
    await held_up.until_idle()
    async with asyncio.timeout(PATIENCE):
        while held_up.calls("RecognizeStream", "cancelled") < 11:  # noqa: ASYNC110 (one may not have arrived)
            await asyncio.sleep(0.001)
