"""One real service for the session: its own process, real sockets, the shipped weights."""

from collections.abc import Iterator

import grpc
import httpx
import pytest

from clip4str_service.pb.recognition_pb2_grpc import RecognitionServiceStub
from clip4str_service.samples import Sample, load_samples
from samples.demo import SAMPLES, RunningService, running_service


@pytest.fixture(scope="session")
def samples() -> list[Sample]:
    return load_samples(SAMPLES)


@pytest.fixture(scope="session")
def exit_sign(samples: list[Sample]) -> Sample:
    """The plainest sample, for tests that need just one."""
    return next(sample for sample in samples if sample.text == "EXIT")


@pytest.fixture(scope="session")
def service() -> Iterator[RunningService]:
    with running_service() as running:
        yield running


@pytest.fixture(scope="session")
def rest(service: RunningService) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.http, timeout=60) as client:
        yield client


@pytest.fixture(scope="session")
def channel(service: RunningService) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(service.grpc) as opened:
        yield opened


@pytest.fixture(scope="session")
def rpc(channel: grpc.Channel) -> RecognitionServiceStub:
    return RecognitionServiceStub(channel)
