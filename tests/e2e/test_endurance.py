"""Thousands of requests, good and bad: nothing grows."""

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import httpx

from clip4str_service.pb import recognition_pb2 as pb
from clip4str_service.pb.recognition_pb2_grpc import RecognitionServiceStub
from clip4str_service.samples import Sample
from samples.demo import RunningService
from tests.e2e.observed import FRONT_END, PATIENT, WORKER, children, resident
from tests.e2e.traffic import JPEG, OWN_CONNECTION, in_flight, reason, unlike

WARMING, REQUESTS = 600, 2000
CLIENTS = 4
GROWTH = 8 << 20
"""Bytes by which a process may grow: 4 KiB for each request. To keep its image would be more."""


def test_memory_does_not_grow(service: RunningService, samples: list[Sample]) -> None:
    processes = [service.process.pid, *children(service, FRONT_END), *children(service, WORKER)]
    assert len(processes) >= 3
    with in_flight(service, samples) as burst:  # enough for every worker to have had its largest batch
        burst.check()
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
