"""What the service measures: by which names, whoever counts it, in formats that strict parsers take."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import get_args

import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics_families
from prometheus_client.parser import text_string_to_metric_families as text_families

from clip4str_service.metric_files import MetricFiles
from clip4str_service.metrics import DropReason, FrontEndMetrics, HubMetrics
from clip4str_service.readings import BranchReading, ModelInfo, Reading

OPENMETRICS = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.1"

CONTRACT = {
    "clip4str_requests_total": {"protocol", "method", "code"},
    "clip4str_request_duration_seconds": {"protocol", "method"},
    "clip4str_crops_total": {"outcome"},
    "clip4str_queued_crops": set(),
    "clip4str_inflight_crops": set(),
    "clip4str_capacity_crops": set(),
    "clip4str_load_ratio": set(),
    "clip4str_queue_wait_seconds": set(),
    "clip4str_stage_duration_seconds": {"stage"},
    "clip4str_batch_size": set(),
    "clip4str_dropped_total": {"reason"},
    "clip4str_branch_disagreement_total": set(),
    "clip4str_word_confidence": set(),
    "clip4str_ready": set(),
    "clip4str_workers": set(),
    "clip4str_worker_restarts_total": {"reason"},
    "clip4str_model_load_seconds": set(),
    "clip4str_open_connections": {"protocol"},
}

FRONT_END = """
import sys
from clip4str_service.metric_files import count_as
count_as(sys.argv[1])
from clip4str_service.metrics import OK, FrontEndMetrics
metrics = FrontEndMetrics()
metrics.request("rest", "/v1/recognize", OK, 0.01)
metrics.stage("decode", 0.002)
metrics.failed("internal", 3)
metrics.refused("shed", 2)
metrics.connections("rest", 5)
"""

SUPERVISOR = """
import asyncio, os, subprocess, sys
from clip4str_service.metric_files import MetricFiles, count_as
from clip4str_service.metrics import HubMetrics

class Load:
    queued, running, capacity, ready, workers, load_seconds = 3, 1, 8, True, 2, 2.5

async def main():
    files = MetricFiles()
    count_as("supervisor")
    metrics = HubMetrics(files, Load())
    metrics.sealed([0.003] * 4)
    metrics.read({"encode": 0.004, "inference": 0.01}, unwanted=1)
    metrics.dropped("deadline")
    metrics.restarted("hang")
    for number in (0, 1, 0):  # the first dies, and another follows it
        subprocess.run([sys.executable, "-c", sys.argv[1], f"frontend-{number}"], check=True)
    for accept in ("", sys.argv[2]):
        body, content_type = await metrics.exposition(accept)
        sys.stdout.buffer.write(content_type.encode() + b"\\n" + body + b"\\0")
    files.close()

asyncio.run(main())
"""


@dataclass
class Load:
    queued: int = 3
    running: int = 1
    capacity: int = 8
    ready: bool = True
    workers: int = 2
    load_seconds: float = 2.5


@pytest.fixture
def files() -> Iterator[MetricFiles]:
    files = MetricFiles()
    yield files
    files.close()


@pytest.fixture(scope="module")
def scraped() -> list[str]:
    """What a supervisor and three lives of two front ends counted: as text, and as OpenMetrics; the type first."""
    ended = subprocess.run(
        [sys.executable, "-c", SUPERVISOR, FRONT_END, OPENMETRICS], stdout=subprocess.PIPE, check=True
    )
    return ended.stdout.decode().split("\0")[:2]


def value(families: list[Metric], name: str, **labels: str) -> float:
    (found,) = [
        sample.value
        for family in families
        for sample in family.samples
        if sample.name == f"clip4str_{name}" and sample.labels == labels
    ]
    return found


def labels(families: list[Metric], name: str) -> list[dict[str, str]]:
    return [
        sample.labels for family in families for sample in family.samples if sample.name == f"clip4str_{name}"
    ]


def reading(*, agreement: bool) -> Reading:
    branch = BranchReading(text="A", confidence=0.5, eos_confidence=1.0, characters=())
    other = BranchReading(text="A" if agreement else "B", confidence=0.5, eos_confidence=1.0, characters=())
    return Reading(visual=other, cross_modal=branch, truncated=False)


def test_what_alerts_watch_is_there_before_it_happens(scraped: list[str]) -> None:
    families = list(text_families(scraped[0].partition("\n")[2]))
    never = {"dropped_total": {"reason": "cancelled"}, "worker_restarts_total": {"reason": "exit"}}
    for name, label in never.items():
        assert value(families, name, **label) == 0
    assert {each["reason"] for each in labels(families, "dropped_total")} == set(get_args(DropReason))
    assert {each["outcome"] for each in labels(families, "crops_total")} == {"ok", "internal"}


def test_both_formats_hold_the_same_for_strict_parsers(scraped: list[str]) -> None:
    (text_type, _, text), (open_type, _, open_text) = [each.partition("\n") for each in scraped]
    assert text_type.startswith("text/plain; version=0.0.4")
    assert open_type.startswith("application/openmetrics-text; version=1.0.0")
    families = [list(text_families(text)), list(openmetrics_families(open_text))]
    for found in families:
        names = [family.name for family in found]
        assert len(set(names)) == len(names)
    first, second = [
        {
            (sample.name, *sorted(sample.labels.items())): sample.value
            for family in found
            for sample in family.samples
        }
        for found in families
    ]
    assert first == second


def test_no_family_appears_twice(scraped: list[str]) -> None:
    for each in scraped:
        types = [line.split()[2] for line in each.splitlines() if line.startswith("# TYPE")]
        assert len(set(types)) == len(types)


def test_names_and_labels_are_those_of_the_contract(scraped: list[str]) -> None:
    text = scraped[0].partition("\n")[2]
    families = {family.name: family for family in text_families(text)}
    for name, labels in CONTRACT.items():
        family = families[name.removesuffix("_total")]
        assert family.type == "counter" or not name.endswith("_total")
        written = {label for sample in family.samples for label in sample.labels} - {"le"}
        assert written == labels
    assert set(families) - {name.removesuffix("_total") for name in CONTRACT} == {
        "clip4str_build_info",
        "clip4str_unwanted_crops",
    }


def test_what_all_processes_counted_is_added_up(scraped: list[str]) -> None:
    families = list(text_families(scraped[0].partition("\n")[2]))
    assert value(families, "requests_total", protocol="rest", method="/v1/recognize", code="ok") == 3
    assert value(families, "crops_total", outcome="internal") == 9
    assert value(families, "stage_duration_seconds_count", stage="decode") == 3
    assert value(families, "stage_duration_seconds_count", stage="encode") == 1
    assert value(families, "open_connections", protocol="rest") == 10
    assert value(families, "queue_wait_seconds_count") == 4
    assert value(families, "batch_size_sum") == 4
    assert value(families, "dropped_total", reason="shed") == 6  # of three front ends
    assert value(families, "dropped_total", reason="deadline") == 1
    assert value(families, "unwanted_crops_total") == 1
    assert value(families, "worker_restarts_total", reason="hang") == 1
    assert value(families, "worker_restarts_total", reason="exit") == 0


def test_reading_counts_its_confidence_and_whether_branches_differ() -> None:
    metrics = FrontEndMetrics()
    metrics.read(reading(agreement=True))
    metrics.read(reading(agreement=False))
    measured = metrics.registry.get_sample_value
    assert measured("clip4str_crops_total", {"outcome": "ok"}) == 2
    assert measured("clip4str_word_confidence_sum") == 1.0
    assert measured("clip4str_branch_disagreement_total") == 1


async def test_gauges_show_the_moment(files: MetricFiles) -> None:
    load = Load()
    metrics = HubMetrics(files, load)
    families = await gauges(metrics)
    assert value(families, "load_ratio") == 0.5
    assert value(families, "ready") == 1
    assert value(families, "workers") == 2
    assert value(families, "model_load_seconds") == 2.5
    load.queued, load.ready = 7, False
    families = await gauges(metrics)
    assert (value(families, "queued_crops"), value(families, "load_ratio")) == (7, 1.0)
    assert value(families, "ready") == 0


async def test_another_model_takes_the_place_of_the_one_before(files: MetricFiles) -> None:
    metrics = HubMetrics(files, Load())
    for revision in ("sha256:1", "sha256:2"):
        metrics.loaded(model(revision))
        families = await gauges(metrics)
        (build,) = [family.samples for family in families if family.name == "clip4str_build_info"]
        assert [sample.labels["revision"] for sample in build] == [revision]
        assert {"version", "model", "variant", "dtype", "device"} < set(build[0].labels)


@pytest.mark.parametrize(
    "accept",
    ["*/*", "application/openmetrics-text; version=junk", "text/plain;version=x", "\xff", "a" * 9000],
)
async def test_any_accept_header_has_an_answer(files: MetricFiles, accept: str) -> None:
    body, content_type = await HubMetrics(files, Load()).exposition(accept)
    assert b"clip4str_ready" in body
    assert content_type.split(";")[0] in ("text/plain", "application/openmetrics-text")


async def test_scrapes_at_once_wait_for_each_other(files: MetricFiles) -> None:
    metrics = HubMetrics(files, Load())
    bodies = await asyncio.gather(*(metrics.exposition("") for _ in range(20)))
    assert len({body for body, _ in bodies}) == 1


async def gauges(metrics: HubMetrics) -> list[Metric]:
    body, _ = await metrics.exposition("")
    return list(text_families(body.decode()))


def model(revision: str) -> ModelInfo:
    return ModelInfo(
        name="default",
        revision=revision,
        variant="tiny",
        dtype="fp32",
        device="cpu",
        image_size=(32, 128),
        max_length=25,
        charset="abc",
        parameters=1,
    )
