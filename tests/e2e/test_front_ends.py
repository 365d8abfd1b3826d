"""Several front ends before one model: all serve, one that dies takes nobody along, none outlives the service."""

import itertools
import json
import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import httpx
import pytest

from clip4str_service.samples import Sample
from samples.demo import RunningService, running_service
from tests.e2e.observed import FRONT_END, PATIENT, WORKER, alive, children, metrics, ready, until
from tests.e2e.traffic import WAYS, Answer, Ask, crops

NAMES = {"frontend-0", "frontend-1"}


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("front_ends") / "log"


@pytest.fixture(scope="module")
def service(log: Path) -> Iterator[RunningService]:
    settings = {"CLIP4STR_FRONTENDS": str(len(NAMES)), "CLIP4STR_HANG_TIMEOUT_MS": "60000"}
    settings |= {"CLIP4STR_CPU_PROCESSES": "1"}
    with running_service(output=log, **settings) as running:
        yield running


def answering(log: Path, protocol: str) -> set[str]:
    """The processes that have answered requests by a protocol."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return {line["process"] for line in lines if line.get("protocol") == protocol}


@pytest.mark.parametrize(("way", "protocol"), [("REST", "rest"), ("gRPC", "grpc"), ("stream", "grpc")])
def test_all_front_ends_serve(
    service: RunningService, log: Path, samples: list[Sample], way: str, protocol: str
) -> None:
    for sample in itertools.islice(itertools.cycle(samples), 100):
        assert WAYS[way](service, [sample.content]).outcomes == [sample.text]
        if answering(log, protocol) >= NAMES:
            return
    pytest.fail(f"of 100 connections all went to {answering(log, protocol)}")


def test_counts_of_all_front_ends_are_added_up(service: RunningService, samples: list[Sample]) -> None:
    before = metrics(service)
    for sample in samples:
        WAYS["REST"](service, [sample.content])
    key = "clip4str_crops_total", "ok"
    assert metrics(service)[key] - before[key] == len(samples)


def test_dead_front_end_takes_nobody_along(service: RunningService, samples: list[Sample]) -> None:
    before = children(service, FRONT_END)
    worker = children(service, WORKER)

    def asked(ask: Ask, number: int) -> tuple[Answer | None, list[str]]:
        contents, texts = crops(samples[number:], 24)
        try:
            return ask(service, contents), texts
        except (httpx.TransportError, grpc.RpcError):  # it was with the one that died
            return None, texts

    calls = [(ask, number) for number in range(4) for ask in WAYS.values()]
    with ThreadPoolExecutor(len(calls)) as pool:
        os.kill(worker[0], signal.SIGSTOP)  # that nothing is answered before
        asking = [pool.submit(asked, *call) for call in calls]
        until(lambda: metrics(service)["clip4str_queued_crops",] > 12 * len(calls))
        os.kill(before[0], signal.SIGKILL)
        os.kill(worker[0], signal.SIGCONT)
        answers = [each.result(PATIENT) for each in asking]
    whole = [(answer.outcomes, texts) for answer, texts in answers if answer is not None]
    assert whole
    assert all(outcomes == texts for outcomes, texts in whole)
    assert ready(service)
    until(lambda: len(set(children(service, FRONT_END)) - {before[0]}) == len(NAMES))
    until(
        lambda: not metrics(service)["clip4str_inflight_crops",] + metrics(service)["clip4str_queued_crops",]
    )
    for name, ask in WAYS.items():
        for sample in samples:
            assert ask(service, [sample.content]).outcomes == [sample.text], name
    assert children(service, WORKER) == worker


def test_nothing_outlives_a_killed_supervisor(service: RunningService) -> None:
    """The last test here: it ends the service."""
    processes = [*children(service, FRONT_END), *children(service, WORKER)]
    assert len(processes) == len(NAMES) + 1
    service.process.kill()
    service.process.wait()
    until(lambda: not any(alive(process) for process in processes))
    for address in (service.http, service.grpc, service.metrics):
        host, _, port = address.removeprefix("http://").partition(":")
        socket.create_server((host, int(port))).close()
