"""Clients that leave, and thousands of requests: hardly a crop is read for nobody, and nothing grows."""

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import httpx

from clip4str_service.pb import recognition_pb2 as pb
from clip4str_service.pb.recognition_pb2_grpc import RecognitionServiceStub
from clip4str_service.samples import Sample
from samples.demo import RunningService
from tests.e2e.observed import FRONT_END, PATIENT, WORKER, children, metrics, resident, total, until
from tests.e2e.traffic import JPEG, OWN_CONNECTION, as_json, crops, reason, unlike

AT_ONCE, CROPS = 150, 5
"""Requests under way, and crops of each: so many that most of them wait."""

STAYING, OTHERS = 150, 300
"""Requests before anybody leaves, and after."""

LEAVING = 0.3
SOON = 40
"""A client that leaves does so before more others have been answered: long before its turn, on any machine."""

UNWANTED = 0.02
"""The part of the crops read that may be read for nobody."""

WARMING, REQUESTS = 600, 2000
CLIENTS = 4
GROWTH = 8 << 20
"""Bytes by which a process may grow: 4 KiB for each request. To keep its image would be more."""


async def test_crops_of_clients_who_left_are_not_read(service: RunningService, samples: list[Sample]) -> None:
    before = metrics(service)
    crowd = Crowd(service, samples)
    await crowd.run()
    until(lambda: not metrics(service)["clip4str_inflight_crops",])
    after = metrics(service)

    def grown(*key: str) -> float:
        return total(after, *key) - total(before, *key)

    answered, left = (grown("clip4str_requests_total", code) for code in ("ok", "cancelled"))
    assert left > 0.1 * OTHERS  # the answers of some who left were under way, or they had not asked yet
    read = grown("clip4str_batch_size_sum")
    assert grown("clip4str_unwanted_crops_total") <= UNWANTED * read
    assert read <= answered * CROPS + UNWANTED * read
    assert crowd.answered + crowd.left == STAYING + OTHERS
    assert crowd.answered <= answered <= STAYING + OTHERS - left


class Crowd:
    """Clients who ask by both protocols, many at once; of the later ones some leave, at random, while they wait.

    They leave by what others were answered in the meantime, not by the clock: so that they left while they waited
    stays true on a machine that is slow for a moment.
    """

    def __init__(self, service: RunningService, samples: Sequence[Sample]) -> None:
        self.answered = self.left = 0
        self._service = service
        self._samples = samples
        self._leaving: dict[asyncio.Timeout, int] = {}  # at how many answers

    async def run(self) -> None:
        chance = random.Random(5)
        turns = asyncio.Semaphore(AT_ONCE)
        limits = httpx.Limits(max_connections=AT_ONCE)
        async with (
            httpx.AsyncClient(base_url=self._service.http, timeout=PATIENT, limits=limits) as http,
            grpc.aio.insecure_channel(self._service.grpc) as channel,
            asyncio.TaskGroup() as group,
        ):
            stub = RecognitionServiceStub(channel)

            async def by_rest(contents: Sequence[bytes]) -> list[str]:
                headers = {"Content-Type": "application/json"}
                body = as_json(contents, timeout_ms=int(1000 * PATIENT))
                answer = await http.post("/v1/recognize", content=body, headers=headers)
                return [result["text"] for result in answer.json()["results"]]

            async def by_grpc(contents: Sequence[bytes]) -> list[str]:
                request = pb.RecognizeRequest(
                    crops=[pb.Crop(content=content) for content in contents],
                    options=pb.Options(timeout_ms=int(1000 * PATIENT)),
                )
                answer = await stub.Recognize(request, timeout=PATIENT)
                return [result.recognition.text for result in answer.results]

            for number in range(STAYING + OTHERS):
                await turns.acquire()
                patience = None
                if number >= STAYING and chance.random() < LEAVING:
                    patience = chance.randrange(SOON)
                asking = group.create_task(self._ask(by_rest if number % 2 else by_grpc, patience))
                asking.add_done_callback(lambda _: turns.release())

    async def _ask(
        self, ask: Callable[[Sequence[bytes]], Awaitable[list[str]]], patience: int | None
    ) -> None:
        contents, texts = crops(self._samples, CROPS)
        try:
            async with asyncio.timeout(None) as leaving:
                if patience is not None:
                    self._leaving[leaving] = self.answered + patience
                assert await ask(contents) == texts
        except TimeoutError:
            self.left += 1
        else:
            self.answered += 1
            self._leaving.pop(leaving, None)
            self._see_off()

    def _see_off(self) -> None:
        """Those who wanted no more than the answers that there are now leave."""
        for leaving in [each for each, answers in self._leaving.items() if answers <= self.answered]:
            del self._leaving[leaving]
            leaving.reschedule(0.0)


def test_memory_does_not_grow(service: RunningService, samples: list[Sample]) -> None:
    processes = [service.process.pid, *children(service, FRONT_END), *children(service, WORKER)]
    assert len(processes) >= 3
    ask_many(service, samples, WARMING)
    before = [resident(process) for process in processes]
    ask_many(service, samples, REQUESTS)
    growth = [resident(process) - was for process, was in zip(processes, before, strict=True)]
    assert max(growth) < GROWTH, growth
    assert set(processes[1:]) <= {*children(service, FRONT_END), *children(service, WORKER)}


def ask_many(service: RunningService, samples: Sequence[Sample], count: int) -> None:
    """Good and bad requests of every kind."""
    with ThreadPoolExecutor(CLIENTS) as pool:
        clients = [pool.submit(ask_in_turn, service, samples, count // CLIENTS) for _ in range(CLIENTS)]
        for client in clients:
            client.result()


def ask_in_turn(service: RunningService, samples: Sequence[Sample], count: int) -> None:
    with (
        httpx.Client(base_url=service.http, timeout=PATIENT) as http,
        grpc.insecure_channel(service.grpc, OWN_CONNECTION) as channel,
    ):
        kinds = requests(http, RecognitionServiceStub(channel))
        for sample, (ask, expected) in itertools.islice(
            zip(itertools.cycle(samples), itertools.cycle(kinds), strict=False), count
        ):
            assert ask(unlike(sample.content)) == (expected or sample.text)


def requests(http: httpx.Client, stub: Any) -> list[tuple[Callable[[bytes], str], str]]:
    """Ways to ask, and what is answered if it is not the text: the error's code."""

    def post(content: bytes, path: str = "/v1/recognize") -> str:
        answer = http.post(path, content=content, headers=JPEG).json()
        return str(answer["code"] if "code" in answer else answer["results"][0]["text"])

    def call(request: pb.RecognizeRequest) -> str:
        try:
            answer = stub.Recognize(request, timeout=PATIENT)
        except grpc.RpcError as error:
            return reason(error)
        return str(answer.results[0].recognition.text)

    def stream(content: bytes) -> str:
        request = pb.RecognizeStreamRequest(crops=[pb.Crop(content=content)])
        (answer,) = stub.RecognizeStream(iter([request]), timeout=PATIENT)
        return str(answer.results[0].recognition.text)

    return [
        (post, ""),
        (lambda content: call(pb.RecognizeRequest(crops=[pb.Crop(content=content)])), ""),
        (stream, ""),
        (lambda content: post(content[: len(content) // 2]), "undecodable_image"),
        (lambda content: post(content[::-1]), "unsupported_media_type"),
        (lambda content: post(content, "/v1/recognize?top_k=9"), "invalid_request"),
        (lambda content: post(content, "/v1/nothing"), "not_found"),
        (lambda _: call(pb.RecognizeRequest()), "invalid_request"),
    ]
