"""The bench's HTTP client, against sockets that answer as servers do, and as they should not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress

import pytest

from bench.serve_http import BrokenAnswerError, HttpClient
from bench.serve_ways import post

Script = Sequence[bytes | None]
"""What a connection answers to each request, in turn: pieces of one answer; None hangs up."""


class Server:
    """Answers each connection's requests from a list of scripts; counts connections and keeps requests."""

    def __init__(self, *scripts: Script) -> None:
        self.scripts = scripts
        self.connections = 0
        self.requests: list[bytes] = []
        self._serving: set[asyncio.Task[None] | None] = set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        async with server:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/read?fast=1"
        await asyncio.gather(*filter(None, self._serving))

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._serving.add(asyncio.current_task())
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            for script in self.scripts:
                if not await self._answered(script, reader, writer):
                    break
            else:
                await reader.read()  # until the client hangs up
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()

    async def _answered(
        self, script: Script, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        """One request; False when the script says to hang up."""
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        self.requests.append(head + await reader.readexactly(length))
        for piece in script:
            if piece is None:
                return False
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.01)
        return True


def ok(body: bytes, fields: bytes = b"") -> bytes:
    return b"HTTP/1.1 200 OK\r\n%sContent-Length: %d\r\n\r\n%s" % (fields, len(body), body)


async def test_requests_arrive_whole_and_connections_are_kept() -> None:
    server = Server([ok(b"one")], [ok(b"two", b"X-More: Yes\r\n")])
    async with server.running() as url:
        client = HttpClient(url)
        first = await client.send(post(url, "image/jpeg", b"\xff\xd8"))
        second = await client.send(post(url, "image/jpeg", b""))
        client.close()
    assert (first.status, first.body) == (200, b"one")
    assert second.body == b"two"
    assert b"\r\nx-more: yes" in second.head
    assert server.connections == 1
    assert server.requests[0].startswith(b"POST /read?fast=1 HTTP/1.1\r\n")
    assert b"\r\nContent-Type: image/jpeg\r\n" in server.requests[0]
    assert server.requests[0].endswith(b"\r\n\r\n\xff\xd8")


async def test_an_answer_may_come_in_pieces() -> None:
    whole = ok(b"a longer body")
    server = Server(
        [whole[:9], whole[9:40], whole[40:-1], whole[-1:]], [b"HTTP/1.1 429 No\r\ncontent-length: 0\r\n\r\n"]
    )
    async with server.running() as url:
        client = HttpClient(url)
        assert (await client.send(post(url, "a/b", b"x"))).body == b"a longer body"
        refused = await client.send(post(url, "a/b", b"x"))
        assert (refused.status, refused.body) == (429, b"")
        client.close()


@pytest.mark.parametrize("cut", range(1, 29))
async def test_an_answer_may_come_in_chunks(cut: int) -> None:
    head = b"HTTP/1.1 408 Late\r\nServer: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunks = b"4\r\nbody\r\nA\r\n, and more\r\n0\r\n\r\n"
    assert len(chunks) == 29
    server = Server([head + chunks[:cut], chunks[cut:]], [ok(b"next")])
    async with server.running() as url:
        client = HttpClient(url)
        answer = await client.send(post(url, "a/b", b"x"))
        assert (answer.status, answer.body) == (408, b"body, and more")
        assert (await client.send(post(url, "a/b", b"x"))).body == b"next"
        client.close()
    assert server.connections == 1


async def test_as_many_connections_as_requests_at_a_time() -> None:
    server = Server([b"", ok(b"1")], [ok(b"2")])
    async with server.running() as url:
        client = HttpClient(url)
        request = post(url, "a/b", b"x")
        await asyncio.gather(*(client.send(request) for _ in range(3)))
        await client.send(request)
        client.close()
    assert server.connections == 3


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ([None], "hung up"),
        ([ok(b"body")[:-1], None], "hung up"),
        ([b"HTTP/1.1 200 OK\r\nServer: odd\r\n\r\nbody"], "without a length"),
        ([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbo", None], "hung up"),
    ],
)
async def test_a_broken_answer_is_an_error(script: Script, message: str) -> None:
    async with Server(script).running() as url:
        client = HttpClient(url)
        with pytest.raises(BrokenAnswerError, match=message):
            await client.send(post(url, "a/b", b"x"))
        client.close()


@pytest.mark.parametrize("fields", [b"", b"Connection: close\r\n"])
async def test_a_closed_connection_is_not_used_again(fields: bytes) -> None:
    server = Server([ok(b"1", fields), None])
    async with server.running() as url:
        client = HttpClient(url)
        for _ in range(2):
            assert (await client.send(post(url, "a/b", b"x"))).status == 200
            await asyncio.sleep(0.05)  # the server's end arrives
        client.close()
    assert server.connections == 2


async def test_who_gives_up_does_not_read_the_answer_of_another() -> None:
    server = Server([b"", b"", b"", ok(b"late")], [ok(b"mixed up")])
    async with server.running() as url:
        client = HttpClient(url)
        request = post(url, "a/b", b"x")
        with pytest.raises(TimeoutError):
            await within(0.01, lambda: client.send(request))
        assert (await client.send(request)).body == b"late"  # the first answer of a connection of its own
        client.close()
    assert server.connections == 2


async def within(seconds: float, call: Callable[[], Awaitable[object]]) -> None:
    async with asyncio.timeout(seconds):
        await call()
