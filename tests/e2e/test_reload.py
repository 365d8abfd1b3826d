"""SIGHUP: another model file takes over without a failed request; a corrupt one changes nothing."""

import json
import queue
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from time import monotonic

import grpc
import httpx
import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from clip4str.checkpoint import WEIGHTS
from clip4str_service.pb import recognition_pb2 as pb
from clip4str_service.pb.recognition_pb2_grpc import RecognitionServiceStub
from clip4str_service.samples import Sample
from samples.demo import RunningService, running_service
from tests.e2e.observed import PATIENT, WORKER, children, ready, until
from tests.e2e.traffic import OWN_CONNECTION, crops, steady


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "mine.safetensors"
    shutil.copyfile(WEIGHTS / "default.safetensors", path)
    return path


@pytest.fixture(scope="module")
def log(model: Path) -> Path:
    return model.with_name("log")


@pytest.fixture(scope="module")
def service(model: Path, log: Path) -> Iterator[RunningService]:
    with running_service(output=log, CLIP4STR_MODEL=str(model), CLIP4STR_CPU_PROCESSES="1") as running:
        yield running


def replace(model: Path, write: Callable[[Path], object]) -> None:
    """Another file takes the model's place at once, as whoever deploys one would do it."""
    unfinished = model.with_suffix(".part")
    write(unfinished)
    unfinished.replace(model)


def revise(path: Path) -> None:
    """Writes the default weights as a file that is another one by its digest."""
    default = WEIGHTS / "default.safetensors"
    with safe_open(default, "pt") as file:
        metadata = file.metadata()
    save_file(load_file(default), path, {**metadata, "comment": "revised"})


def corrupt(path: Path) -> None:
    content = (WEIGHTS / "default.safetensors").read_bytes()
    path.write_bytes(content[: len(content) // 2])


def revision(service: RunningService) -> str:
    told: str = httpx.get(f"{service.http}/v1/models").json()["models"][0]["revision"]
    return told


def logged(log: Path, message: str) -> list[dict[str, str]]:
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [line for line in lines if line["message"] == message]


def test_corrupt_file_changes_nothing(
    service: RunningService, model: Path, log: Path, samples: list[Sample]
) -> None:
    before, workers = revision(service), children(service, WORKER)
    replace(model, corrupt)
    with steady(service, samples) as traffic:
        service.process.send_signal(signal.SIGHUP)
        until(lambda: logged(log, "the model stays as it is") != [])
        traffic.until_more(6)
        assert ready(service)
    traffic.check()
    (line,) = logged(log, "the model stays as it is")
    assert str(model) in line["why"]
    assert {each.revision for each in traffic.heard} == {before}
    assert children(service, WORKER) == workers


def test_good_file_takes_over_under_load(service: RunningService, model: Path, samples: list[Sample]) -> None:
    before, workers = revision(service), children(service, WORKER)
    replace(model, revise)
    with steady(service, samples) as traffic, long_stream(service, samples) as stream:
        traffic.until_more(3)
        service.process.send_signal(signal.SIGHUP)
        until(lambda: revision(service) != before)
        swapped = monotonic()
        traffic.until_more(6)
        after = revision(service)
        assert ready(service)
        until(lambda: not set(workers) & set(children(service, WORKER)))  # the old one has gone
        traffic.until_more(3)
    traffic.check()
    assert {each.revision for each in traffic.heard} == {before, after}
    assert {each.revision for each in traffic.since(swapped)} == {after}
    read = stream.result(PATIENT)
    assert [text for _, text in read] == [samples[0].text] * len(read)
    in_order = [told for told, _ in read]
    assert set(in_order) == {before, after}
    assert in_order == sorted(
        in_order, key=[before, after].index
    )  # no answer of the old after one of the new


@contextmanager
def long_stream(
    service: RunningService, samples: Sequence[Sample]
) -> Iterator[Future[list[tuple[str, str]]]]:
    """A stream of crops, one after another until the end; what it heard: revisions and texts."""
    answered: queue.Queue[bool] = queue.Queue()  # whether to send one more

    def requests() -> Iterator[pb.RecognizeStreamRequest]:
        while answered.get():
            (content,), _ = crops(samples[:1], 1)
            yield pb.RecognizeStreamRequest(crops=[pb.Crop(content=content)])

    def listen() -> list[tuple[str, str]]:
        heard = []
        with grpc.insecure_channel(service.grpc, OWN_CONNECTION) as channel:
            for response in RecognitionServiceStub(channel).RecognizeStream(requests()):
                heard += [(response.model.revision, result.recognition.text) for result in response.results]
                answered.put(True)
        return heard

    with ThreadPoolExecutor(1) as pool:
        listening = pool.submit(listen)
        answered.put(True)
        try:
            yield listening
        finally:
            answered.put(False)
