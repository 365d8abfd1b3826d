"""Who may call: without a key that holds, nothing of a request is looked at, over either protocol."""

from collections.abc import AsyncIterator, Awaitable
from pathlib import Path

import grpc
import pytest

from clip4str_service.auth import load_keys, new_key
from clip4str_service.errors import UnauthenticatedError
from clip4str_service.gate import Gate
from clip4str_service.pb import recognition_pb2 as pb
from clip4str_service.settings import Settings
from tests.service import rest_service, rpc_service
from tests.service.pixel_worker import plain, settings
from tests.service.rest_service import PNG, problem, said
from tests.service.rpc_service import asking, failure, told

KEY, _LINES = new_key("invoices")
OTHER, _OTHER_LINES = new_key("maps")


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys.toml"
    path.write_text(_LINES)
    return path


@pytest.fixture
def limits(keys: Path) -> Settings:
    return settings(max_request_bytes=10_000, max_crop_bytes=2000, api_keys_file=keys)


def change(path: Path, text: str) -> None:
    path.write_text(text)


def carrying(key: str) -> dict[str, list[str]]:
    return {"x-api-key": [key]}


def name_of(gate: Gate, key: str) -> str:
    """Whom the gate takes a caller for."""
    return gate.caller(lambda header: carrying(key).get(header, [])).tenant


def test_everybody_may_call_where_there_are_no_keys() -> None:
    caller = Gate(None).caller(lambda _: ["what", "ever"], "00-trace")
    assert (caller.tenant, caller.traceparent) == ("", "00-trace")


def test_caller_has_the_name_of_its_key(keys: Path) -> None:
    gate = Gate(keys)
    assert name_of(gate, KEY) == "invoices"
    for key in (OTHER, KEY[:-1], KEY.upper(), ""):
        with pytest.raises(UnauthenticatedError):
            name_of(gate, key)
    with pytest.raises(UnauthenticatedError):
        gate.caller(lambda _: [])


def test_reload_takes_good_files_and_keeps_the_keys_of_the_last(
    keys: Path, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate(keys)
    keys.write_text(_OTHER_LINES)
    gate.reload()
    assert name_of(gate, OTHER) == "maps"
    with pytest.raises(UnauthenticatedError):
        name_of(gate, KEY)
    keys.write_text("[keys")
    gate.reload()
    assert name_of(gate, OTHER) == "maps"
    assert "the API keys stay as they are" in caplog.text
    assert OTHER not in caplog.text


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-API-Key": OTHER},
        {"X-API-Key": KEY[:-1]},
        {"X-API-Key": ""},
        {"Authorization": f"Basic {KEY}"},
        {"Authorization": KEY},
        {"Authorization": f"Bearer {KEY}", "X-API-Key": OTHER},
        {"Cookie": f"X-API-Key={KEY}"},
    ],
)
async def test_rest_refuses_intruders_before_it_reads_a_body(
    limits: Settings, headers: dict[str, str]
) -> None:
    read = 0

    async def image() -> AsyncIterator[bytes]:
        nonlocal read
        read += 1
        yield plain()

    async with rest_service.serving(limits) as service:
        response = await service.recognize(content=image(), headers={**PNG, **headers})
        detail = problem(response, 401, "unauthenticated")["detail"]
        assert (response.headers["WWW-Authenticate"], read) == ("Bearer", 0)
        assert KEY not in detail
        assert OTHER not in detail
        problem(await service.http.get("/v1/models", headers=headers), 401, "unauthenticated")
        in_the_query = await service.recognize(content=plain(), headers=PNG, params={"x-api-key": KEY})
        problem(in_the_query, 401, "unauthenticated")
        assert service.stage.worker.batches == []


@pytest.mark.parametrize("headers", [{"X-API-Key": KEY}, {"authorization": f"bearer {KEY}"}])
async def test_rest_lets_the_key_in(limits: Settings, headers: dict[str, str]) -> None:
    async with rest_service.serving(limits) as service:
        assert said(await service.recognize(content=plain(), headers={**PNG, **headers})) == ["ABCDEF"]
        assert (await service.http.get("/v1/models", headers=headers)).status_code == 200


@pytest.mark.parametrize(
    "path", ["/livez", "/readyz", "/startupz", "/v2/models/clip4str", "/openapi.json", "/docs"]
)
async def test_health_and_documents_need_no_key(limits: Settings, path: str) -> None:
    async with rest_service.serving(limits) as service:
        assert (await service.http.get(path)).status_code == 200


METADATA: list[tuple[tuple[str, str | bytes], ...]] = [
    (),
    (("x-api-key", OTHER),),
    (("x-api-key", ""),),
    (("x-api-key-bin", KEY.encode()),),
    (("authorization", f"Basic {KEY}"),),
    (("authorization", f"Bearer {KEY}"), ("x-api-key", OTHER)),
]


@pytest.mark.parametrize("metadata", METADATA)
async def test_grpc_refuses_intruders(
    limits: Settings, metadata: tuple[tuple[str, str | bytes], ...]
) -> None:
    async with rpc_service.serving(limits) as rpc:
        calls: list[Awaitable[object]] = [
            rpc.stub.Recognize(asking(plain()), metadata=metadata),
            rpc.stub.GetModel(pb.GetModelRequest(), metadata=metadata),
            rpc.stub.RecognizeStream(metadata=metadata).read(),
        ]
        for call in calls:
            failed = await failure(call)
            assert (failed.code, failed.reason) == (grpc.StatusCode.UNAUTHENTICATED, "unauthenticated")
            assert KEY not in failed.message
        assert rpc.stage.worker.batches == []


@pytest.mark.parametrize("message", [b"\xff\xff", bytes(10_001)])
async def test_message_of_an_intruder_is_not_looked_at(limits: Settings, message: bytes) -> None:
    async with rpc_service.serving(limits) as rpc:
        assert (await failure(rpc.raw("Recognize", message))).reason == "unauthenticated"


@pytest.mark.parametrize("metadata", [(("x-api-key", KEY),), (("authorization", f"Bearer {KEY}"),)])
async def test_grpc_lets_the_key_in(limits: Settings, metadata: tuple[tuple[str, str | bytes], ...]) -> None:
    async with rpc_service.serving(limits) as rpc:
        answer = await rpc.stub.Recognize(asking(plain()), metadata=metadata)
        assert [told(result) for result in answer.results] == ["ABCDEF"]
        await rpc.stub.GetModel(pb.GetModelRequest(), metadata=metadata)
        messages = [pb.RecognizeStreamRequest(crops=[pb.Crop(content=plain())])]
        stream = rpc.stub.RecognizeStream(iter(messages), metadata=metadata)
        assert [told(result) for response in [r async for r in stream] for result in response.results] == [
            "ABCDEF"
        ]
        assert await rpc.health("") == 1  # and needs none


async def test_revoked_key_is_refused_over_both(limits: Settings, keys: Path) -> None:
    async with rpc_service.serving(limits) as rpc:
        metadata = (("x-api-key", KEY),)
        await rpc.stub.GetModel(pb.GetModelRequest(), metadata=metadata)
        change(keys, _OTHER_LINES)
        rpc.gate.reload()
        failed = await failure(rpc.stub.GetModel(pb.GetModelRequest(), metadata=metadata))
        assert failed.code is grpc.StatusCode.UNAUTHENTICATED


async def test_limits_of_a_key_hold_across_its_calls(limits: Settings, keys: Path) -> None:
    change(keys, _LINES + "crops_per_second = 0.01\nburst_crops = 2\n" + _OTHER_LINES)
    async with rpc_service.serving(limits) as rpc:
        rpc.gate.reload()
        rpc.stage.limits.configure(load_keys(keys).allowances)
        slow, other = (("x-api-key", KEY),), (("x-api-key", OTHER),)
        await rpc.stub.Recognize(asking(plain(), plain()), metadata=slow)
        failed = await failure(rpc.stub.Recognize(asking(plain()), metadata=slow))
        assert (failed.code, failed.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "overloaded")
        assert failed.retry_ms
        assert failed.retry_ms > 10_000
        await rpc.stub.Recognize(asking(plain()), metadata=other)
