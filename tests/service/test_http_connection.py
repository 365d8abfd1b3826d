"""The HTTP port against clients that are slow, silent, greedy or broken, on real sockets."""

import asyncio
from time import monotonic

import pytest

from clip4str_service.http_connection import MAX_HEAD_BYTES
from tests.service.guarded import GET, HEAD, LONGER, PATIENT, SHORT, SOON, Doors, post

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_requests_share_a_connection(doors: Doors) -> None:
    guarded = await doors.open()
    async with guarded.client() as client:
        for length in (5, 100_000):
            client.send(post("/", length) + b"x" * length)
            answer = await client.answer()
            assert (answer.status, answer.body) == (200, str(length).encode())
        assert guarded.server.open_connections == 1
        assert not guarded.refused


async def test_one_connection_too_many_is_told_so(doors: Doors) -> None:
    guarded = await doors.open(max_connections=2)
    async with guarded.client() as first, guarded.client() as second:
        async with guarded.client() as third:
            third.send(GET)
            answer = await third.answer()
            assert answer.status == 429
            assert answer.problem["code"] == "overloaded"
            assert answer.headers["retry-after"] == "1"
            assert answer.headers["connection"] == "close"
            assert await third.closed() == b""
        for client in (first, second):
            client.send(GET)
            assert (await client.answer()).status == 200
    await guarded.until_empty()
    async with guarded.client() as client:
        client.send(GET)
        assert (await client.answer()).status == 200
    assert guarded.app.calls == 3


async def test_flood_of_connections_holds_few(doors: Doors) -> None:
    guarded = await doors.open(max_connections=1)
    async with guarded.client() as first:
        clients = []
        for _ in range(100):
            clients.append(await asyncio.open_connection("127.0.0.1", guarded.port))
        first.send(GET)
        assert (await first.answer()).status == 200
        assert guarded.server.open_connections == 1
        assert len(guarded.server.lingering) <= 64
        for _, writer in clients:
            writer.close()


@pytest.mark.parametrize("trickle", [b"", b"\r\n"], ids=["silence", "empty lines"])
async def test_connection_without_a_request_is_closed(doors: Doors, trickle: bytes) -> None:
    guarded = await doors.open(idle_timeout=SHORT)
    async with guarded.client() as client:
        started = monotonic()
        while not (client.reader.at_eof() or client.reader.exception()):  # it sent on, and was told off
            assert monotonic() < started + PATIENT
            client.send(trickle)
            await asyncio.sleep(0.02)
        assert SHORT <= monotonic() - started < SOON
        assert await client.closed() == b""
        assert guarded.app.calls == 0


async def test_idle_time_begins_with_the_answer(doors: Doors) -> None:
    guarded = await doors.open(idle_timeout=LONGER)
    async with guarded.client() as client:
        for _ in range(3):
            await asyncio.sleep(LONGER / 2)
            client.send(GET)
            assert (await client.answer()).status == 200
        started = monotonic()
        assert await client.closed() == b""
        assert 0.9 * LONGER <= monotonic() - started < LONGER + SOON


async def test_head_that_drips_in_is_refused(doors: Doors) -> None:
    guarded = await doors.open(head_timeout=SHORT)
    async with guarded.client() as client:
        client.send(GET[:-2] + b"X-Slow: ")
        started = monotonic()
        while not guarded.refused and monotonic() < started + PATIENT:
            client.send(b"x")
            await asyncio.sleep(0.01)
        assert SHORT <= monotonic() - started < SOON
        answer = await client.answer()
        assert (answer.status, answer.problem["code"]) == (400, "invalid_request")
        assert "head: must arrive within 0.1 s" in answer.problem["detail"]
        assert await client.closed() == b""
        assert guarded.app.calls == 0


@pytest.mark.parametrize("over", [0, 1])
@pytest.mark.parametrize("first", [0, 100, 20_000])
async def test_head_has_a_size(doors: Doors, over: int, first: int) -> None:
    start = b"GET / HTTP/1.1\r\nHost: a\r\nX-Filler: "
    end = b"\r\n\r\n"
    head = start + b"x" * (MAX_HEAD_BYTES - len(start) - len(end) + over) + end
    guarded = await doors.open()
    async with guarded.client() as client:
        client.send(head[:first])
        await asyncio.sleep(0.02)
        client.send(head[first:])
        answer = await client.answer()
        assert answer.status == (400 if over else 200)
        assert guarded.app.calls == (0 if over else 1)
        if over:
            assert "head: must be shorter than 32768 bytes" in answer.problem["detail"]


async def test_endless_head_is_cut(doors: Doors) -> None:
    guarded = await doors.open()
    async with guarded.client() as client:
        client.send(GET[:-2])
        for number in range(10_000):
            client.send(b"X-%d: x\r\n" % number)
        assert (await client.answer()).status == 400
        assert guarded.app.calls == 0


@pytest.mark.parametrize("trailer", [b"T: x\r\n", b"y" * 10])
async def test_endless_trailers_are_cut(doors: Doors, trailer: bytes) -> None:
    guarded = await doors.open()
    async with guarded.client() as client:
        client.send(HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n" + trailer * 20_000)
        answer = await client.answer()
        assert "trailers: must be shorter" in answer.problem["detail"]
        await asyncio.sleep(0.05)
        assert guarded.app.disconnects == guarded.app.ended == 1


async def test_trailers_are_no_headers(doors: Doors) -> None:
    guarded = await doors.open()
    async with guarded.client() as client:
        client.send(HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nX-API-Key: k\r\n\r\n")
        assert (await client.answer()).body == b"1"
        names = [name for name, _ in guarded.app.scopes[0]["headers"]]
        assert names == [b"host", b"transfer-encoding"]


async def test_body_that_stops_is_refused(doors: Doors) -> None:
    guarded = await doors.open(idle_timeout=SHORT)
    async with guarded.client() as client:
        client.send(post("/", 10) + b"x")
        answer = await client.answer()
        assert (answer.status, answer.problem["code"]) == (400, "invalid_request")
        assert "body: must arrive within 5 s, with no pause of 0.1 s" in answer.problem["detail"]
        await asyncio.sleep(0.05)
        assert guarded.app.disconnects == guarded.app.ended == 1


async def test_body_that_drips_in_is_refused(doors: Doors) -> None:
    guarded = await doors.open(body_timeout=SHORT)
    async with guarded.client() as client:
        client.send(post("/", 1000))
        started = monotonic()
        while not guarded.refused and monotonic() < started + PATIENT:
            client.send(b"x")
            await asyncio.sleep(0.01)
        assert SHORT <= monotonic() - started < SOON
        assert (await client.answer()).status == 400
        await client.leave()
        await guarded.until_empty()
        assert guarded.app.disconnects == 1


async def test_steady_body_is_read(doors: Doors) -> None:
    guarded = await doors.open(idle_timeout=LONGER)
    async with guarded.client() as client:
        client.send(post("/", 6))
        for _ in range(6):
            await asyncio.sleep(LONGER / 4)
            client.send(b"x")
        assert (await client.answer()).body == b"6"
        assert not guarded.refused


@pytest.mark.parametrize("extra", [b"", b"Expect: 100-continue\r\n"], ids=["full", "awaiting 100"])
async def test_client_is_not_blamed_for_an_application_that_reads_late(doors: Doors, extra: bytes) -> None:
    size = 1 << 20
    guarded = await doors.open(idle_timeout=LONGER, body_timeout=LONGER)
    async with guarded.client() as client:
        client.send(post("/slow-start", size, extra))
        if not extra:
            client.send(b"x" * size)
        await asyncio.sleep(1.5 * LONGER)
        guarded.app.gate.set()
        if extra:
            assert (await client.answer()).status == 100
            client.send(b"x" * size)
        assert (await client.answer()).body == str(size).encode()


async def test_slow_application_is_waited_for(doors: Doors) -> None:
    guarded = await doors.open(idle_timeout=LONGER, head_timeout=LONGER, write_timeout=LONGER)
    async with guarded.client() as client:
        client.send(post("/wait", 1) + b"x")
        await asyncio.sleep(1.5 * LONGER)
        guarded.app.gate.set()
        assert (await client.answer()).body == b"1"
        await asyncio.sleep(LONGER / 2)  # its time to be idle begins only now
        client.send(GET)
        assert (await client.answer()).status == 200


async def test_early_answer_leaves_the_connection_in_use(doors: Doors) -> None:
    guarded = await doors.open()
    async with guarded.client() as client:
        client.send(post("/early", 5) + b"xx")
        assert (await client.answer()).body == b"no"
        client.send(b"xxx" + GET)
        assert (await client.answer()).body == b"0"


async def test_upload_that_was_answered_early_cannot_stay(doors: Doors) -> None:
    guarded = await doors.open(idle_timeout=SHORT)
    async with guarded.client() as client:
        client.send(post("/early", 5) + b"xx")
        assert (await client.answer()).body == b"no"
        assert await client.closed() == b""


@pytest.mark.parametrize("path", ["/large", "/large close"])
async def test_client_that_does_not_read_is_dropped(doors: Doors, path: str) -> None:
    closing = b"Connection: close\r\n" if "close" in path else b""
    guarded = await doors.open(write_timeout=SHORT)
    async with guarded.client(receive_buffer=8192) as client:
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        client.send(b"GET /large HTTP/1.1\r\nHost: a\r\n%s\r\n" % closing)
        await guarded.until_ended(1)
        await guarded.until_empty()


async def test_client_that_reads_slowly_is_served(doors: Doors) -> None:
    guarded = await doors.open(write_timeout=LONGER)
    async with guarded.client(receive_buffer=65536) as client:
        client.send(b"GET /large HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        await client.reader.readuntil(b"\r\n\r\n")
        read = 0
        started = monotonic()
        while read < 32 << 20:
            if monotonic() - started < 1.5 * LONGER:
                await asyncio.sleep(SHORT / 5)
            chunk = await client.reader.read(1 << 20)
            assert chunk
            read += len(chunk)
        assert await client.closed() == b""


async def test_client_that_never_rests_is_served(doors: Doors) -> None:
    guarded = await doors.open(write_timeout=SHORT)
    async with guarded.client() as client:
        started = monotonic()
        while monotonic() - started < 5 * SHORT:
            client.send(GET)
            assert (await client.answer()).status == 200


async def test_half_closed_client_is_taken_to_be_gone(doors: Doors) -> None:
    guarded = await doors.open()
    async with guarded.client() as client:
        client.send(post("/wait", 1) + b"x")
        client.writer.write_eof()
        assert await client.closed() == b""
        await guarded.until_empty()
        assert guarded.app.disconnects == 1


async def test_half_sent_request_of_a_client_that_left_is_forgotten(doors: Doors) -> None:
    guarded = await doors.open()
    for part in (GET[:9], post("/", 10) + b"x"):
        async with guarded.client() as client:
            client.send(part)
    await guarded.until_ended(1)
    await guarded.until_empty()
    assert guarded.app.calls == guarded.app.disconnects == 1


async def test_stop_waits_for_nobody_who_asks_nothing() -> None:
    own = Doors()
    guarded = await own.open()
    async with guarded.client() as idle, guarded.client() as half:
        half.send(GET[:9])
        await asyncio.sleep(0.05)
        started = monotonic()
        await own.close()
        assert monotonic() - started < SOON
        assert await idle.closed() == await half.closed() == b""
