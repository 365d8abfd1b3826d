"""A worker that is killed, hangs or is shown poison, and a wall clock that jumps: nobody's request is lost."""

import io
import json
import os
import signal
import struct
import time
from collections.abc import Iterator
from datetime import datetime
from functools import partial
from pathlib import Path

import httpx
import pytest
from PIL import Image

from clip4str_service.samples import Sample
from samples.demo import RunningService, running_service
from tests.e2e.observed import PATIENT, WORKER, children, metrics, ready, total, until
from tests.e2e.sabotage.sitecustomize import COLOUR
from tests.e2e.traffic import Ask, by_grpc, by_rest, by_stream, crops, in_flight, steady

SILENCE = 2.0
"""Seconds after which this service takes a process for hung."""

NOTICED = SILENCE * 1.5
"""Seconds until it has acted on it."""

SABOTAGE = Path(__file__).parent / "sabotage"
HOUR = 3600.0


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `clock`, `poisoned` and `log` are."""
    directory = tmp_path_factory.mktemp("faults")
    (directory / "clock").write_bytes(struct.pack("d", 0.0))
    return directory


@pytest.fixture(scope="module")
def service(files: Path) -> Iterator[RunningService]:
    with running_service(
        output=files / "log",
        PYTHONPATH=os.pathsep.join(filter(None, [str(SABOTAGE), os.environ.get("PYTHONPATH")])),
        SABOTAGE_CLOCK=str(files / "clock"),
        SABOTAGE_POISON=str(files / "poisoned"),
        CLIP4STR_HANG_TIMEOUT_MS=str(round(1000 * SILENCE)),
        CLIP4STR_DEFAULT_TIMEOUT_MS=str(round(1000 * PATIENT)),
        CLIP4STR_CPU_PROCESSES="1",  # so that none is there to stand in
    ) as running:
        yield running


def restarts(service: RunningService, reason: str) -> float:
    return metrics(service)["clip4str_worker_restarts_total", reason]


def back_after(service: RunningService, since: float) -> float:
    """Seconds from `since` until the service is ready again, without what it says that loading took."""
    seconds = until(lambda: ready(service)) - since
    return seconds - metrics(service)["clip4str_model_load_seconds",]


def test_killed_worker_loses_no_accepted_request(service: RunningService, samples: list[Sample]) -> None:
    before = restarts(service, "exit")
    (worker,) = children(service, WORKER)
    with in_flight(service, samples) as burst:
        os.kill(worker, signal.SIGKILL)
        killed = time.monotonic()
        until(lambda: not ready(service))
        check_new_requests_are_told_to_come_back(service, samples[0])
        delay = back_after(service, killed)
        burst.check()
    assert delay <= 1.0
    assert restarts(service, "exit") == before + 1
    assert children(service, WORKER) != [worker]


def check_new_requests_are_told_to_come_back(service: RunningService, sample: Sample) -> None:
    address, headers = f"{service.http}/v1/recognize", {"Content-Type": "image/jpeg"}
    refused = httpx.post(address, content=sample.content, headers=headers)
    assert (refused.status_code, refused.json()["code"]) == (503, "not_ready")
    assert int(refused.headers["Retry-After"]) >= 1
    assert by_grpc(service, [sample.content]).outcomes == ["not_ready"]
    assert httpx.get(f"{service.http}/livez").status_code == httpx.codes.OK


def test_hung_worker_is_found_and_its_crops_are_read(service: RunningService, samples: list[Sample]) -> None:
    before = restarts(service, "hang")
    (worker,) = children(service, WORKER)
    with in_flight(service, samples) as burst:
        os.kill(worker, signal.SIGSTOP)
        stopped = time.monotonic()
        until(lambda: not ready(service))
        delay = back_after(service, stopped)
        burst.check()
    assert delay <= NOTICED + 1.0
    assert restarts(service, "hang") == before + 1


def test_poison_fails_alone(service: RunningService, files: Path, samples: list[Sample]) -> None:
    before = restarts(service, "exit")
    contents, texts = crops(samples, 24)
    contents.insert(3, poison())
    texts.insert(3, "internal")
    assert by_rest(service, contents).outcomes == texts
    until(lambda: ready(service))
    in_company, alone = map(int, (files / "poisoned").read_text().split())
    assert in_company > 1
    assert alone == 1
    assert restarts(service, "exit") == before + 2
    assert by_rest(service, contents[:3]).outcomes == texts[:3]


def test_jumps_of_the_wall_clock_change_nothing(
    service: RunningService, files: Path, samples: list[Sample]
) -> None:
    # No deadline of gRPC's own: its core has not been told of the jumps, and would take them for a delay.
    ways: list[Ask] = [by_rest, partial(by_grpc, timeout=None), partial(by_stream, timeout=None)]
    before = metrics(service)
    with steady(service, samples, ways) as traffic:
        for ahead in (0.0, 5 * HOUR, -7 * HOUR, 0.0):
            with (files / "clock").open("r+b") as clock:
                clock.write(struct.pack("d", ahead))
            traffic.until_more(6)
            assert ready(service)
            jumped = datetime.now().astimezone().timestamp() + ahead
            assert abs(logged_at(files / "log") - jumped) < HOUR
    traffic.check()
    after = metrics(service)
    for name in ("clip4str_worker_restarts_total", "clip4str_dropped_total"):
        assert total(after, name) == total(before, name)


def poison() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 16), COLOUR).save(buffer, "PNG")
    return buffer.getvalue()


def logged_at(log: Path) -> float:
    """The time of the last line, as seconds since the epoch."""
    last = json.loads(log.read_text().splitlines()[-1])
    return datetime.fromisoformat(last["timestamp"]).timestamp()
