"""What comes to the HTTP port and is no request, or more than one, or offers something else than HTTP/1.1."""

import asyncio
from time import monotonic

import pytest

from clip4str_service import http_connection
from tests.service.guarded import GET, HEAD, SHORT, SOON, Doors, post

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"nonsense\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # a TLS handshake
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
async def test_what_is_no_request_is_answered_with_a_problem(doors: Doors, request_bytes: bytes) -> None:
    guarded = await doors.open()
    async with guarded.client() as client:
        started = monotonic()
        client.send(request_bytes)
        answer = await client.answer()
        assert (answer.status, answer.problem["code"]) == (400, "invalid_request")
        assert answer.problem["request_id"] == answer.headers["x-request-id"]
        assert answer.headers["connection"] == "close"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "date" in answer.headers
        assert await client.closed() == b""
        assert monotonic() - started < SOON / 2
        assert [error.code for error in guarded.refused] == ["invalid_request"]
        assert guarded.app.calls == 0


UPGRADE = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"


@pytest.mark.parametrize("before", [b"", b"\r\n\r\n"], ids=["", "after empty lines"])
@pytest.mark.parametrize("piece", [1, 200, 1 << 20])
@pytest.mark.parametrize("length", [0, 30, 100_000])
async def test_offer_of_another_protocol_is_ignored(
    doors: Doors, length: int, piece: int, before: bytes
) -> None:
    """Its body is the request's, whatever is in it, and the connection goes on."""
    guarded = await doors.open()
    body = (GET * length)[:length]
    sent = before + HEAD + UPGRADE + b"Content-Length: %d\r\n\r\n" % length + body
    async with guarded.client() as client:
        for start in range(0, min(len(sent), 500), piece):
            client.send(sent[start : start + piece][: 500 - start])
            await asyncio.sleep(0)
        client.send(sent[500:])
        for request in (b"", GET):
            client.send(request)
            answer = await client.answer()
            assert (answer.status, answer.body) == (200, b"0" if request else str(length).encode())
        assert guarded.app.calls == 2
        assert b"upgrade" not in dict(guarded.app.scopes[0]["headers"])
        assert not guarded.refused


async def test_offer_of_another_protocol_behind_a_forsaken_body_is_refused(doors: Doors) -> None:
    """There the request's first bytes are gone."""
    guarded = await doors.open()
    async with guarded.client() as client:
        client.send(HEAD.replace(b"/", b"/early", 1) + b"Content-Length: 5\r\n\r\n")
        assert (await client.answer()).body == b"no"
        client.send(b"12345" + HEAD + UPGRADE + b"Content-Length: 2\r\n\r\nab")
        assert (await client.answer()).status == 400
        assert await client.closed() == b""


async def test_nothing_follows_a_refusal(doors: Doors, caplog: pytest.LogCaptureFixture) -> None:
    guarded = await doors.open()
    async with guarded.client() as client:
        client.send(HEAD + b"Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n")
        assert (await client.answer()).status == 400
        assert await client.closed() == b""
    await guarded.until_empty()
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def test_bad_chunk_ends_the_request(doors: Doors) -> None:
    guarded = await doors.open()
    async with guarded.client() as client:
        client.send(HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\nnonsense\r\n")
        assert (await client.answer()).status == 400
        await client.leave()
        await guarded.until_empty()
        assert guarded.app.disconnects == 1


async def test_refused_client_is_heard_out(doors: Doors) -> None:
    """Input left unread would make the system reset the connection, answer and all, instead of closing it."""
    guarded = await doors.open()
    chunk = b"%x\r\n%s\r\n" % (66_000, b"x" * 66_000)
    async with guarded.client() as client:
        # More than the server holds for an application that does not read, and then no chunk.
        client.send(
            HEAD.replace(b"/", b"/slow-start", 1) + b"Transfer-Encoding: chunked\r\n\r\n" + chunk + b"no!"
        )
        assert (await client.answer()).status == 400
        client.send(b"x" * 100_000)
        assert await client.closed() == b""
    started = monotonic()
    while guarded.server.open_connections:  # noqa: ASYNC110 (it raises no event)
        await asyncio.sleep(0.01)
    assert monotonic() - started < SOON / 2
    guarded.app.gate.set()


async def test_refused_client_cannot_stay(doors: Doors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_connection, "_LINGER", SHORT)
    guarded = await doors.open()
    async with guarded.client() as client:
        client.send(b"nonsense\r\n\r\n")
        assert (await client.answer()).status == 400
        assert await client.closed() == b""
        assert guarded.server.open_connections == 1
        await guarded.until_empty()


async def test_connection_that_is_over_is_not_looked_at(
    doors: Doors, monkeypatch: pytest.MonkeyPatch
) -> None:
    guarded = await doors.open(head_timeout=SHORT)
    async with guarded.client() as client:
        client.send(GET)
        await client.answer()
    await guarded.until_empty()
    looks = 0

    def spy(_: object) -> int:
        nonlocal looks
        looks += 1
        return 0

    monkeypatch.setattr(http_connection, "_unsent", spy)
    await asyncio.sleep(2 * SHORT)
    assert looks == 0


@pytest.mark.parametrize("rest", [b"nonsense\r\n\r\n", GET, GET * 1000, post("/", 1) + b"x", b"G"])
async def test_request_in_advance_is_not_taken(doors: Doors, rest: bytes) -> None:
    guarded = await doors.open()
    async with guarded.client() as client:
        client.send(post("/wait", 1) + b"x" + rest)
        await asyncio.sleep(0.05)
        client.send(rest)
        guarded.app.gate.set()
        answer = await client.answer()
        assert (answer.body, answer.headers["connection"]) == (b"1", "close")
        assert await client.closed() == b""
        assert guarded.app.calls == 1


async def test_empty_lines_between_requests_are_nothing(doors: Doors) -> None:
    guarded = await doors.open()
    async with guarded.client() as client:
        for _ in range(2):
            client.send(post("/", 1) + b"x\r\n\r\n")
            assert (await client.answer()).body == b"1"


async def test_client_that_leaves_after_a_request_in_advance_is_missed(doors: Doors) -> None:
    guarded = await doors.open()
    async with guarded.client() as client:
        client.send(post("/wait", 1) + b"x" + GET)
        await asyncio.sleep(0.05)
    await guarded.until_empty()
    assert guarded.app.disconnects == 1
