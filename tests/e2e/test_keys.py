"""API keys at every door: who has none, a wrong one or one of yesterday stays out, and each may ask what is its own.

The service logs all there is to log; nothing of the keys and crops that it is sent may be in there.
"""

import base64
import hashlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import grpc
import httpx
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from clip4str_service.auth import new_key
from clip4str_service.pb import recognition_pb2 as pb
from clip4str_service.pb.recognition_pb2_grpc import RecognitionServiceStub
from clip4str_service.samples import Sample
from samples.demo import RunningService, running_service
from tests.e2e.observed import PATIENT, WORKER, children, metrics, until
from tests.e2e.traffic import OWN_CONNECTION, as_json, reason, unlike
from tests.service import planted

JPEG = {"Content-Type": "image/jpeg"}
JSON = {"Content-Type": "application/json"}
OK = "ok"
SLOWEST = 100  # seconds until the limited key may ask for one crop more
LIMITS = {
    "limited": "crops_per_second = 0.01\nburst_crops = 4\n",
    "narrow": "max_crops_in_flight = 3\n",
    "expired": f"expires = {(datetime.now(UTC) - timedelta(days=1)).date()}\n",
}


class Service(NamedTuple):
    """A service with keys, by their owners' names."""

    running: RunningService
    file: Path
    log: Path
    keys: dict[str, str]
    lines: dict[str, str]  # of the file


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    directory = tmp_path_factory.mktemp("keys")
    keys, lines = {}, {}
    for name in ("plain", "revoked", "limited", "narrow", "expired"):
        keys[name], known = new_key(name)
        lines[name] = known + LIMITS.get(name, "")
    keys["planted"] = planted.KEY
    digest = hashlib.sha256(planted.KEY.encode()).hexdigest()
    lines["planted"] = f'[keys.planted]\nsha256 = "{digest}"\n'
    file, log = directory / "keys.toml", directory / "log"
    file.write_text("".join(lines.values()))
    with running_service(
        output=log,
        CLIP4STR_API_KEYS_FILE=str(file),
        CLIP4STR_LOG_LEVEL="debug",
        CLIP4STR_HANG_TIMEOUT_MS="60000",
        CLIP4STR_CPU_PROCESSES="1",
    ) as running:
        yield Service(running, file, log, keys, lines)


def code_of(response: httpx.Response) -> str:
    return OK if response.status_code == httpx.codes.OK else str(response.json()["code"])


def by_rest(service: RunningService, key: str | None, content: bytes) -> str:
    headers = JPEG if key is None else {**JPEG, "Authorization": f"Bearer {key}"}
    address = f"{service.http}/v1/recognize"
    return code_of(httpx.post(address, content=content, headers=headers, timeout=PATIENT))


def by_models(service: RunningService, key: str | None, _: bytes) -> str:
    headers = {} if key is None else {"X-API-Key": key}
    return code_of(httpx.get(f"{service.http}/v1/models", headers=headers, timeout=PATIENT))


Metadata = tuple[tuple[str, str | bytes], ...]
Call = Callable[[RecognitionServiceStub, bytes, Metadata], object]

CALLS: dict[str, Call] = {
    "Recognize": lambda stub, content, metadata: stub.Recognize(
        pb.RecognizeRequest(crops=[pb.Crop(content=content)]), metadata=metadata, timeout=PATIENT
    ),
    "RecognizeStream": lambda stub, content, metadata: list(
        stub.RecognizeStream(
            iter([pb.RecognizeStreamRequest(crops=[pb.Crop(content=content)])]),
            metadata=metadata,
            timeout=PATIENT,
        )
    ),
    "GetModel": lambda stub, _, metadata: stub.GetModel(
        pb.GetModelRequest(), metadata=metadata, timeout=PATIENT
    ),
}


def by_call(call: Call) -> Callable[[RunningService, str | None, bytes], str]:
    def knock(service: RunningService, key: str | None, content: bytes) -> str:
        metadata: Metadata = () if key is None else (("authorization", f"Bearer {key}"),)
        with grpc.insecure_channel(service.grpc, OWN_CONNECTION) as channel:
            try:
                call(RecognitionServiceStub(channel), content, metadata)
            except grpc.RpcError as error:
                return reason(error)
        return OK

    return knock


DOORS: dict[str, Callable[[RunningService, str | None, bytes], str]] = {
    "/v1/recognize": by_rest,
    "/v1/models": by_models,
    **{name: by_call(call) for name, call in CALLS.items()},
}

doors = pytest.mark.parametrize("door", DOORS)


@doors
def test_right_key_comes_in(service: Service, exit_sign: Sample, door: str) -> None:
    assert DOORS[door](service.running, service.keys["plain"], exit_sign.content) == OK


@doors
def test_intruder_stays_out(service: Service, exit_sign: Sample, door: str) -> None:
    plain = service.keys["plain"]
    wrong = [None, "wrong", plain[:-1], plain + "x", plain.swapcase(), service.keys["expired"]]
    found = [DOORS[door](service.running, key, exit_sign.content) for key in wrong]
    assert found == ["unauthenticated"] * len(wrong)


def test_health_needs_no_key(service: Service) -> None:
    for path in ("/livez", "/readyz", "/startupz"):
        assert httpx.get(service.running.http + path).status_code == httpx.codes.OK
    with grpc.insecure_channel(service.running.grpc, OWN_CONNECTION) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=PATIENT)  # type: ignore[attr-defined]
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_rate_of_a_key_holds_at_every_door(service: Service, samples: list[Sample]) -> None:
    headers = {**JSON, "X-API-Key": service.keys["limited"]}
    address = f"{service.running.http}/v1/recognize"

    def ask(crops: int) -> httpx.Response:
        contents = [unlike(samples[0].content) for _ in range(crops)]
        return httpx.post(address, content=as_json(contents), headers=headers, timeout=PATIENT)

    assert code_of(ask(5)) == "too_many_crops"
    assert code_of(ask(4)) == OK
    refused = ask(1)
    assert (refused.status_code, code_of(refused)) == (429, "overloaded")
    assert 0 < refused.json()["retry_after_ms"] <= SLOWEST * 1000
    assert 0 < int(refused.headers["Retry-After"]) <= SLOWEST
    assert 0 < retry_after(service, samples[0]) <= SLOWEST
    assert by_rest(service.running, service.keys["plain"], samples[0].content) == OK


def retry_after(service: Service, sample: Sample) -> float:
    """What gRPC tells the limited key: seconds."""
    metadata: Metadata = (("x-api-key", service.keys["limited"]),)
    with (
        grpc.insecure_channel(service.running.grpc, OWN_CONNECTION) as channel,
        pytest.raises(grpc.RpcError) as caught,
    ):
        CALLS["Recognize"](RecognitionServiceStub(channel), sample.content, metadata)
    status = rpc_status.from_call(caught.value)  # type: ignore[arg-type]  # an RpcError that is a Call as well
    info = error_details_pb2.RetryInfo()
    assert status is not None
    assert status.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
    assert any(detail.Unpack(info) for detail in status.details)
    return float(info.retry_delay.seconds + info.retry_delay.nanos / 1e9)


def test_crops_in_flight_of_a_key_are_bounded(service: Service, samples: list[Sample]) -> None:
    headers = {**JSON, "X-API-Key": service.keys["narrow"]}
    address = f"{service.running.http}/v1/recognize"

    def ask(crops: int) -> httpx.Response:
        contents = [unlike(samples[0].content) for _ in range(crops)]
        return httpx.post(address, content=as_json(contents), headers=headers, timeout=PATIENT)

    (worker,) = children(service.running, WORKER)
    with ThreadPoolExecutor(1) as pool:
        os.kill(worker, signal.SIGSTOP)
        try:
            first = pool.submit(ask, 2)
            held = ("clip4str_queued_crops", "clip4str_inflight_crops")
            until(lambda: sum(metrics(service.running)[name,] for name in held) == 2)
            second = ask(2)
        finally:
            os.kill(worker, signal.SIGCONT)
        assert (second.status_code, code_of(second)) == (429, "overloaded")
        assert code_of(first.result(PATIENT)) == OK
    assert code_of(ask(4)) == "too_many_crops"
    assert code_of(ask(3)) == OK


def test_revoked_key_is_refused_after_a_reload(service: Service, exit_sign: Sample) -> None:
    assert [
        knock(service.running, service.keys["revoked"], exit_sign.content) for knock in DOORS.values()
    ] == [OK] * len(DOORS)
    fresh, known = new_key("fresh")
    lines = {name: text for name, text in service.lines.items() if name != "revoked"}
    service.file.write_text("".join(lines.values()) + known)
    service.running.process.send_signal(signal.SIGHUP)
    until(lambda: by_models(service.running, service.keys["revoked"], b"") == "unauthenticated")
    for door, knock in DOORS.items():
        assert knock(service.running, service.keys["revoked"], exit_sign.content) == "unauthenticated", door
        assert knock(service.running, fresh, exit_sign.content) == OK, door
        assert knock(service.running, service.keys["plain"], exit_sign.content) == OK, door


def test_neither_keys_nor_crops_are_logged(service: Service) -> None:
    contents = [planted.png(), planted.tiff(), planted.png()[:-100]]
    address = f"{service.running.http}/v1/recognize"
    for key in (planted.KEY, planted.KEY + "x", f"{planted.KEY}, {planted.KEY}"):
        for content in contents:
            ways = ({"Authorization": f"Bearer {key}"}, {"X-API-Key": key}, {"Authorization": f"Basic {key}"})
            for headers in ways:
                httpx.post(address, content=content, headers={**headers, "Content-Type": "image/png"})
            for body in (as_json([content]), as_json([content])[:-9], as_json([content], charset=key)):
                httpx.post(address, content=body, headers={**JSON, "X-API-Key": key})
            httpx.post(address, files=[("image", content), (key, content)], headers={"X-API-Key": key})
            for call in CALLS.values():
                by_call(call)(service.running, key, content)
    levels = [json.loads(line)["level"] for line in service.log.read_text().splitlines()]
    assert levels.count("INFO") > 50
    assert "DEBUG" in levels
    assert planted.planted_in(service.log.read_text()) == []
    assert planted.planted_in(base64.b64encode(planted.png()).decode()) != []  # it would be found
