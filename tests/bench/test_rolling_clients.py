"""Clients of bench/rolling.py before services that refuse, hang up or answer something else, on real sockets."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeAlias

import grpc
import orjson
import pytest
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from bench import rolling_clients
from bench.rolling_clients import Asked, Client, GrpcClient, RestClient, Try, steady
from clip4str_service.pb import recognition_pb2 as pb
from clip4str_service.pb.recognition_pb2_grpc import (
    RecognitionServiceServicer,
    add_RecognitionServiceServicer_to_server,
)
from clip4str_service.samples import Sample

EXIT = Sample("exit.jpg", "EXIT", b"image")
HANG_UP = b""


def http(status: int, body: object, *fields: str, content_type: str = "application/problem+json") -> bytes:
    content = orjson.dumps(body)
    head = [
        f"HTTP/1.1 {status} -",
        f"Content-Length: {len(content)}",
        f"Content-Type: {content_type}",
        *fields,
    ]
    return "\r\n".join([*head, "", ""]).encode() + content


READ = http(200, {"results": [{"text": "EXIT"}]}, content_type="application/json")
OVERLOADED = http(429, {"code": "overloaded"}, "Retry-After: 0")
DRAINING = http(503, {"code": "draining"}, "Retry-After: 0")
BAD_GATEWAY = http(502, "sorry", content_type="text/html")
UNDECODABLE = http(422, {"code": "undecodable_image"})


@asynccontextmanager
async def rest(*answers: bytes) -> AsyncIterator[RestClient]:
    """A client of something that answers so, one request a connection."""
    left = list(answers)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"POST /v1/recognize?detail=text ")
        await reader.readexactly(len(EXIT.content))
        writer.write(left.pop(0).replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
        writer.close()

    async with await asyncio.start_server(connected, "127.0.0.1", 0) as server:
        client = RestClient(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        try:
            yield client
        finally:
            await client.close()
    assert not left


Context: TypeAlias = "grpc.aio.ServicerContext[pb.RecognizeRequest, pb.RecognizeResponse]"
Step = Callable[[Context], Awaitable[pb.RecognizeResponse]]


async def reads(_: Context) -> pb.RecognizeResponse:
    return pb.RecognizeResponse(results=[pb.Result(recognition=pb.Recognition(text="EXIT"))])


async def fails(_: Context) -> pb.RecognizeResponse:
    result = pb.Result()
    result.error.message = "not an image"
    return pb.RecognizeResponse(results=[result])


def refuses(code: grpc.StatusCode, reason: str, seconds: int | None) -> Step:
    async def refuse(context: Context) -> pb.RecognizeResponse:
        status = status_pb2.Status(code=code.value[0], message="no")
        details = [error_details_pb2.ErrorInfo(reason=reason)]
        if seconds is not None:
            details.append(error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=seconds)))
        for each in details:
            packed = any_pb2.Any()
            packed.Pack(each)
            status.details.append(packed)
        await context.abort_with_status(rpc_status.to_status(status))
        raise AssertionError("it returned")

    return refuse


class Scripted(RecognitionServiceServicer):
    def __init__(self, steps: list[Step]) -> None:
        self._steps = steps

    async def Recognize(  # noqa: N802 (the protocol's name)
        self, _: pb.RecognizeRequest, context: Context
    ) -> pb.RecognizeResponse:
        return await self._steps.pop(0)(context)


@asynccontextmanager
async def rpc(*steps: Step) -> AsyncIterator[GrpcClient]:
    left = list(steps)
    server = grpc.aio.server()
    add_RecognitionServiceServicer_to_server(Scripted(left), server)  # type: ignore[abstract]  # asked for no more
    client = GrpcClient(f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
    await server.start()
    try:
        yield client
    finally:
        await client.close()
        await server.stop(None)
    assert not left


async def ask(client: Client, sample: Sample = EXIT) -> tuple[str, str]:
    asked = await client.ask(sample, asyncio.get_running_loop().time())
    assert asked.begun <= asked.first_ended <= asked.ended
    return asked.first, asked.last


@pytest.mark.parametrize(
    ("answers", "first", "last"),
    [
        ([READ], "", ""),
        ([OVERLOADED, DRAINING, READ], "overloaded", ""),
        ([BAD_GATEWAY, READ], "HTTP 502", ""),
        ([HANG_UP, READ], "RemoteProtocolError", ""),
        ([UNDECODABLE], "undecodable_image", "undecodable_image"),
        ([DRAINING, UNDECODABLE], "draining", "undecodable_image"),
    ],
)
async def test_rest(answers: list[bytes], first: str, last: str) -> None:
    async with rest(*answers) as client:
        assert await ask(client) == (first, last)


@pytest.mark.parametrize(
    ("steps", "first", "last"),
    [
        ([reads], "", ""),
        ([refuses(grpc.StatusCode.RESOURCE_EXHAUSTED, "overloaded", 0), reads], "overloaded", ""),
        ([refuses(grpc.StatusCode.UNAVAILABLE, "draining", None), reads], "draining", ""),
        ([refuses(grpc.StatusCode.INTERNAL, "internal", None)], "internal", "internal"),
        ([fails], "not an image", "not an image"),
    ],
)
async def test_grpc(steps: list[Step], first: str, last: str) -> None:
    async with rpc(*steps) as client:
        assert await ask(client) == (first, last)


async def test_what_is_read_wrong_is_no_success() -> None:
    async with rest(READ) as client:
        assert await ask(client, Sample("exit.jpg", "EX1T", EXIT.content)) == ("wrong", "wrong")


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
async def test_it_comes_back_when_it_is_told_to(protocol: str) -> None:
    again = http(429, {"code": "overloaded"}, "Retry-After: 1")
    refusal = refuses(grpc.StatusCode.RESOURCE_EXHAUSTED, "overloaded", 1)
    begun = time.monotonic()
    async with rest(again, READ) if protocol == "rest" else rpc(refusal, reads) as client:
        assert await ask(client) == ("overloaded", "")
    assert time.monotonic() - begun >= 1.0


async def test_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rolling_clients, "PATIENCE", 0.2)
    client = RestClient("http://127.0.0.1:9")
    assert await ask(client) == ("ConnectError", "ConnectError")
    await client.close()


async def test_load_is_steady_and_awaited() -> None:
    stop = asyncio.Event()

    class Slow(Client):
        asked = 0

        async def attempt(self, content: bytes) -> Try:
            assert content == EXIT.content
            self.asked += 1
            if self.asked == 20:
                stop.set()
            await asyncio.sleep(0.2)
            return Try("EXIT")

        async def close(self) -> None:
            pass

    client = Slow()
    asked: list[Asked] = await steady(client, [EXIT], 100, stop)
    assert len(asked) == client.asked == 20
    assert [each.last for each in asked] == [""] * len(asked)
    assert asked[10].begun - asked[0].begun == pytest.approx(0.1)
