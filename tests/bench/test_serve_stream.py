"""The stream as a way of the bench, before a service whose worker can be stopped."""

import asyncio

from bench.serve_stream import StreamWay
from bench.serve_ways import Outcome, Verdict
from tests.service.front import PATIENCE
from tests.service.pixel_worker import plain, settings
from tests.service.rpc_service import serving


async def test_crops_are_read_and_what_comes_while_the_stream_holds_back_is_dropped() -> None:
    crops = [plain(f"{index:06X}") + bytes(20_000) for index in range(1, 101)]
    async with serving(settings(stream_crops=4)) as rpc:
        way = StreamWay(f"127.0.0.1:{rpc.port}", crops, 30_000)
        await way.open()
        assert await way.send() == Outcome(Verdict.READ, 1)
        rpc.stage.worker.gate.clear()
        sent: list[asyncio.Task[Outcome]] = []
        async with asyncio.timeout(PATIENCE):
            while not sent or not sent[-1].done():  # until one is dropped: nothing is read
                sent.append(asyncio.create_task(way.send()))
                await asyncio.sleep(0.02)
        assert sent[-1].result() == Outcome(Verdict.HELD_BACK)
        rpc.stage.worker.gate.set()
        assert await asyncio.gather(*sent[:-1]) == [Outcome(Verdict.READ, 1)] * (len(sent) - 1)
        assert await way.send() == Outcome(Verdict.READ, 1)
        await way.close()
