"""Clients that leave while their crops wait: nobody's are read but those of clients who stayed."""

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial

import grpc
import httpx
import pytest

from clip4str_service.pb import recognition_pb2 as pb
from clip4str_service.pb.recognition_pb2_grpc import RecognitionServiceStub
from clip4str_service.samples import Sample
from samples.demo import RunningService, running_service
from tests.e2e.observed import PATIENT, WORKER, children, metrics, total, until
from tests.e2e.traffic import as_json, crops, prepared

ROUNDS = 3
FIRST, LATER = 40, 60
"""Requests of a round: those that the workers may have in hand already, and those that wait."""

CROPS = 5
LEAVING = 30
"""Clients of each round who leave, chosen at random among the later ones: 30 %."""

TIMEOUT_MS = round(1000 * PATIENT)

Ask = Callable[[Sequence[bytes]], Awaitable[list[str]]]


@pytest.fixture(scope="module")
def service() -> Iterator[RunningService]:
    """It lets its workers stand still for as long as a slow machine takes to decode what is sent meanwhile."""
    with running_service(CLIP4STR_HANG_TIMEOUT_MS="600000", CLIP4STR_BATCH_TIMEOUT_MS="600000") as running:
        yield running


async def test_crops_of_clients_who_left_are_not_read(service: RunningService, samples: list[Sample]) -> None:
    chance = random.Random(5)
    before = metrics(service)

    def grown(*key: str) -> float:
        return total(metrics(service), *key) - total(before, *key)

    def has_grown(by: float, *key: str) -> bool:
        return grown(*key) == by

    async with both_ways(service) as ways:
        for already in range(ROUNDS):
            decoded = prepared(service)
            with standing_still(service):
                first = [asyncio.create_task(read(ways, samples, number)) for number in range(FIRST)]
                await until_prepared(service, decoded + FIRST * CROPS)
                later = [asyncio.create_task(read(ways, samples, number)) for number in range(LATER)]
                await until_prepared(service, decoded + (FIRST + LATER) * CROPS)
                leaving = chance.sample(later, LEAVING)
                for client in leaving:
                    client.cancel()
                gone = (already + 1) * LEAVING
                await asyncio.to_thread(
                    until, partial(has_grown, gone, "clip4str_requests_total", "cancelled")
                )
            await asyncio.gather(*(client for client in first + later if client not in leaving))

    stayed = ROUNDS * (FIRST + LATER - LEAVING)
    assert grown("clip4str_requests_total", "ok") == stayed
    assert grown("clip4str_batch_size_sum") == stayed * CROPS
    assert grown("clip4str_unwanted_crops_total") == 0


@contextmanager
def standing_still(service: RunningService) -> Iterator[None]:
    """Its workers do nothing, so that whatever is asked waits."""
    workers = children(service, WORKER)
    assert workers
    for worker in workers:
        os.kill(worker, signal.SIGSTOP)
    try:
        yield
    finally:
        for worker in workers:
            os.kill(worker, signal.SIGCONT)


async def until_prepared(service: RunningService, count: float) -> None:
    """Returns when so many crops were decoded and prepared, since the service began."""
    await asyncio.to_thread(until, lambda: prepared(service) >= count)


@asynccontextmanager
async def both_ways(service: RunningService) -> AsyncIterator[list[Ask]]:
    """Ways to ask: REST, a connection a request, and gRPC."""
    limits = httpx.Limits(max_connections=FIRST + LATER)
    async with (
        httpx.AsyncClient(base_url=service.http, timeout=PATIENT, limits=limits) as http,
        grpc.aio.insecure_channel(service.grpc) as channel,
    ):
        stub = RecognitionServiceStub(channel)

        async def by_rest(contents: Sequence[bytes]) -> list[str]:
            headers = {"Content-Type": "application/json"}
            body = as_json(contents, timeout_ms=TIMEOUT_MS)
            answer = await http.post("/v1/recognize", content=body, headers=headers)
            return [result["text"] for result in answer.json()["results"]]

        async def by_grpc(contents: Sequence[bytes]) -> list[str]:
            request = pb.RecognizeRequest(
                crops=[pb.Crop(content=content) for content in contents],
                options=pb.Options(timeout_ms=TIMEOUT_MS),
            )
            answer = await stub.Recognize(request, timeout=PATIENT)
            return [result.recognition.text for result in answer.results]

        yield [by_rest, by_grpc]


async def read(ways: Sequence[Ask], samples: Sequence[Sample], number: int) -> None:
    """One client, by one way or the other: what it is told is right."""
    contents, texts = crops(samples, CROPS)
    assert await ways[number % len(ways)](contents) == texts
