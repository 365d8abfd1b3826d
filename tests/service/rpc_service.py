"""A gRPC server before a real engine, on a real port; a client for it, and how its calls fail."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from clip4str_service.pb import recognition_pb2 as pb
from clip4str_service.pb.recognition_pb2_grpc import RecognitionServiceStub
from clip4str_service.rpc import RpcServer
from clip4str_service.rpc_calls import SERVICE
from clip4str_service.settings import Settings
from tests.service.front import LIMITS, PATIENCE, Front

Detail = TypeVar("Detail", bound=Message)


class RpcService(Front):
    """A gRPC server and a client for it."""

    def __init__(self, limits: Settings = LIMITS) -> None:
        super().__init__(limits)
        self.server = self.another()
        self.port = self.server.bind("127.0.0.1", 0)
        self.channel = self.client()
        self.stub = RecognitionServiceStub(self.channel)

    def another(self) -> RpcServer:
        """A server of the same engine."""
        stage = self.stage
        return RpcServer(
            stage.engine, self.gate, self.intake, stage.settings, stage.metrics, self.tracing, None
        )

    def client(self, *options: tuple[str, int], **more: Any) -> grpc.aio.Channel:
        """Another connection."""
        settings = [("grpc.use_local_subchannel_pool", 1), *options]
        return grpc.aio.insecure_channel(f"127.0.0.1:{self.port}", options=settings, **more)

    async def open(self, loaded: bool = True) -> None:
        await super().open(loaded)
        await self.server.start()
        await self.server.set_serving(loaded)

    async def stop(self) -> None:
        self.stage.worker.gate.set()
        await self.channel.close()
        await self.server.stop(0)
        await super().stop()

    async def recognize(self, *crops: bytes, **options: Any) -> pb.RecognizeResponse:
        return await self.stub.Recognize(asking(*crops, **options), timeout=PATIENCE)

    async def raw(self, method: str, message: bytes) -> bytes:
        """Sends bytes that no stub would send."""
        call: Any = self.channel.unary_unary(f"/{SERVICE}/{method}")
        answer: bytes = await call(message, timeout=PATIENCE)
        return answer

    async def health(self, name: str) -> int:
        stub: Any = health_pb2_grpc.HealthStub(self.channel)
        answer: health_pb2.HealthCheckResponse = await stub.Check(health_pb2.HealthCheckRequest(service=name))
        return answer.status

    def watch(self, name: str) -> Any:
        """The call that tells each change of a service's health."""
        stub: Any = health_pb2_grpc.HealthStub(self.channel)
        return stub.Watch(health_pb2.HealthCheckRequest(service=name))

    def calls(self, method: str, code: str) -> float:
        """How many calls were counted so."""
        return self.stage.value("requests_total", protocol="grpc", method=method, code=code)

    async def until_counted(self, method: str, *codes: str) -> None:
        """Returns when a call that nobody waits for was counted as one of these."""
        async with asyncio.timeout(PATIENCE):
            while not any(self.calls(method, code) for code in codes):  # noqa: ASYNC110 (counts raise no event)
                await asyncio.sleep(0.001)


@asynccontextmanager
async def serving(limits: Settings = LIMITS, loaded: bool = True) -> AsyncIterator[RpcService]:
    service = RpcService(limits)
    await service.open(loaded)
    try:
        yield service
    finally:
        await service.stop()


def asking(*crops: bytes, **options: Any) -> pb.RecognizeRequest:
    return pb.RecognizeRequest(
        crops=[pb.Crop(content=crop) for crop in crops], options=pb.Options(**options) if options else None
    )


class Failure:
    """How a call failed: its status code, and the details of its rich status by type."""

    def __init__(self, error: grpc.aio.AioRpcError) -> None:
        self.code = error.code()
        self.trailers = dict(error.trailing_metadata() or ())
        status = status_pb2.Status.FromString(self.trailers["grpc-status-details-bin"])
        assert (status.code, status.message) == (self.code.value[0], error.details())
        info = unpacked(status, error_details_pb2.ErrorInfo)
        assert info is not None
        assert info.domain == "clip4str"
        self.reason: str = info.reason
        self.message = status.message
        bad_request = unpacked(status, error_details_pb2.BadRequest)
        self.fields = [each.field for each in bad_request.field_violations] if bad_request else []
        retry = unpacked(status, error_details_pb2.RetryInfo)
        self.retry_ms = retry.retry_delay.ToMilliseconds() if retry else None
        request = unpacked(status, error_details_pb2.RequestInfo)
        self.request_id = request.request_id if request else None


def unpacked(status: status_pb2.Status, kind: type[Detail]) -> Detail | None:
    """The detail of a kind."""
    found = kind()
    return found if any(detail.Unpack(found) for detail in status.details) else None


def told(result: pb.Result) -> str:
    """The text of a crop, or the code of its error."""
    if result.HasField("recognition"):
        return result.recognition.text
    info = unpacked(result.error, error_details_pb2.ErrorInfo)
    assert info is not None
    return str(info.reason)


async def failure(call: Awaitable[object]) -> Failure:
    """How a call that must fail does."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return Failure(caught.value)


class Stream:
    """A RecognizeStream of a client that writes and reads when it wants to."""

    def __init__(self, stub: RecognitionServiceStub, **call: Any) -> None:
        self.call: Any = stub.RecognizeStream(**call)
        self.responses: list[pb.RecognizeStreamResponse] = []

    async def send(self, *crops: bytes | pb.Crop, **options: Any) -> None:
        """One message; options are left out when there are none."""
        await self.call.write(
            pb.RecognizeStreamRequest(
                crops=[each if isinstance(each, pb.Crop) else pb.Crop(content=each) for each in crops],
                options=pb.Options(**options) if options else None,
            )
        )

    async def end(self) -> list[tuple[str, str]]:
        """Sends nothing more; as `rest`."""
        await self.call.done_writing()
        return await self.rest()

    async def read(self, results: int = 1) -> list[tuple[str, str]]:
        """The next results, so many or a few more: id, and text or code of the error."""
        found: list[tuple[str, str]] = []
        async with asyncio.timeout(PATIENCE):
            while len(found) < results:
                response = await self.call.read()
                assert response is not grpc.aio.EOF, found
                self.responses.append(response)
                found += [(result.id, told(result)) for result in response.results]
        return found

    async def rest(self) -> list[tuple[str, str]]:
        """Results up to the end of the stream, which must be a good one."""
        found: list[tuple[str, str]] = []
        async with asyncio.timeout(PATIENCE):
            while (response := await self.call.read()) is not grpc.aio.EOF:
                self.responses.append(response)
                found += [(result.id, told(result)) for result in response.results]
        return found

    async def failure(self) -> Failure:
        """How the stream ends; answers before that are in `responses`."""
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.rest()
        return Failure(caught.value)
