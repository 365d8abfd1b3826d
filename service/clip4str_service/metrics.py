"""What the service measures, for Prometheus: what front ends count, and what the supervisor counts and shows.

Counts of all processes are added up when they are scraped (see `metric_files`). What the service is like at that
moment, such as its load, the supervisor alone knows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import Literal, Protocol, TypeAlias

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily
from prometheus_client.exposition import choose_encoder

from clip4str_service.errors import InternalError
from clip4str_service.metric_files import MetricFiles
from clip4str_service.readings import ModelInfo, Reading

OK = "ok"
"""The outcome and code of what did not fail; of what failed it is the error's code."""

CropStage: TypeAlias = Literal["decode", "preprocess"]
DropReason: TypeAlias = Literal["cancelled", "deadline", "shed", "limited"]
RestartReason: TypeAlias = Literal["exit", "hang"]

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_CONFIDENCES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)


class FrontEndMetrics:
    """What a front end counts. Safe to use from several threads."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = _counter(
            self.registry, "requests", "Requests answered.", "protocol", "method", "code"
        )
        self._request_seconds = _histogram(
            self.registry,
            "request_duration_seconds",
            "From a request's start to its answer.",
            _SECONDS,
            "protocol",
            "method",
        )
        self._crops = _counter(
            self.registry, "crops", "Crops answered, by outcome: ok or an error's code.", "outcome"
        )
        self._crops_read = self._crops.labels(OK)
        _begin(self._crops, InternalError.code)
        self._dropped = _dropped(self.registry, "shed", "limited")
        stages = _stages(self.registry)
        self._stages: dict[CropStage, Histogram] = {
            "decode": stages.labels("decode"),
            "preprocess": stages.labels("preprocess"),
        }
        self._disagreements = _counter(
            self.registry, "branch_disagreement", "Crops that the two branches read differently."
        )
        self._word_confidence = _histogram(
            self.registry, "word_confidence", "Confidence of the final answer.", _CONFIDENCES
        )
        self._connections = Gauge(
            "clip4str_open_connections",
            "Connections of clients.",
            ("protocol",),
            registry=self.registry,
            multiprocess_mode="sum",
        )
        self.connections("rest", 0)  # those of a process that had the name before are gone

    def request(self, protocol: str, method: str, code: str, seconds: float) -> None:
        """Counts an answered request."""
        self._requests.labels(protocol, method, code).inc()
        self._request_seconds.labels(protocol, method).observe(seconds)

    def stage(self, stage: CropStage, seconds: float) -> None:
        """Times one stage of the work on a crop."""
        self._stages[stage].observe(seconds)

    def refused(self, reason: Literal["shed", "limited"], crops: int) -> None:
        """Counts crops that were refused, for want of room or time, or by their key's limits."""
        self._dropped.labels(reason).inc(crops)

    def failed(self, code: str, crops: int = 1) -> None:
        """Counts crops that an error answers, or would have answered."""
        self._crops.labels(code).inc(crops)

    def read(self, reading: Reading) -> None:
        """Counts a crop that was read."""
        self._crops_read.inc()
        self._word_confidence.observe(reading.confidence)
        if not reading.agreement:
            self._disagreements.inc()

    def connections(self, protocol: str, count: int) -> None:
        """Tells how many connections are open."""
        self._connections.labels(protocol).set(count)


class Load(Protocol):
    """What the gauges show of the service."""

    @property
    def queued(self) -> int:
        """Crops accepted and in no batch yet."""

    @property
    def running(self) -> int:
        """Crops in running batches."""

    @property
    def capacity(self) -> int:
        """Crops that may be queued or running."""

    @property
    def ready(self) -> bool:
        """True while crops are accepted."""

    @property
    def workers(self) -> int:
        """Workers that read, or could."""

    @property
    def load_seconds(self) -> float:
        """How long the last loading of the model took, warm-up included; 0 before the first."""


class HubMetrics:
    """What the supervisor counts, and the service's exposition."""

    def __init__(self, files: MetricFiles, load: Load) -> None:
        """`load` is looked at when metrics are scraped."""
        self.registry = CollectorRegistry()
        self._files = files
        self._load = load
        self._build: dict[str, str] = {"version": version("clip4str")}
        self._scraping = asyncio.Lock()
        self._dropped = _dropped(self.registry, "cancelled", "deadline")
        self._queue_wait = _histogram(
            self.registry,
            "queue_wait_seconds",
            "From a crop's being prepared to the sealing of its batch.",
            _SECONDS,
        )
        self._stages = _stages(self.registry)
        self._batch_size = _histogram(self.registry, "batch_size", "Crops in a batch.", _BATCHES)
        self._unwanted = _counter(
            self.registry, "unwanted_crops", "Crops that were read although all who asked for them had left."
        )
        self._restarts = _counter(
            self.registry,
            "worker_restarts",
            "Workers started again: after their exit, or killed for hanging.",
            "reason",
        )
        _begin(self._restarts, "exit", "hang")

    def loaded(self, model: ModelInfo) -> None:
        """Names what runs."""
        self._build.update(
            model=model.name,
            revision=model.revision,
            variant=model.variant,
            dtype=model.dtype,
            device=model.device,
        )

    def sealed(self, waits: Sequence[float]) -> None:
        """Counts a sealed batch, and how long each of its crops waited, in seconds."""
        self._batch_size.observe(len(waits))
        for wait in waits:
            self._queue_wait.observe(wait)

    def read(self, stages: Mapping[str, float], unwanted: int = 0) -> None:
        """Counts a batch that was read: the seconds of each stage; how many of its crops nobody waits for."""
        for stage, seconds in stages.items():
            self._stages.labels(stage).observe(seconds)
        self._unwanted.inc(unwanted)

    def dropped(self, reason: DropReason) -> None:
        """Counts an admitted crop that will never run."""
        self._dropped.labels(reason).inc()

    def restarted(self, reason: RestartReason) -> None:
        """Counts a worker that is gone and followed by another."""
        self._restarts.labels(reason).inc()

    async def exposition(self, accept: str) -> tuple[bytes, str]:
        """Everything measured, by all processes, in a format that `accept` names; and its content type.

        The files are added up on a thread, for one scrape at a time: the event loop goes on meanwhile.
        """
        try:
            encode, content_type = choose_encoder(accept)
        except (TypeError, ValueError):  # a version that is none
            encode, content_type = choose_encoder("")
        async with self._scraping:
            families = _Families(self._files, self._gauges())
            return await asyncio.to_thread(encode, families), content_type

    def _gauges(self) -> list[Metric]:
        load = self._load
        values: dict[str, tuple[str, float]] = {
            "queued_crops": ("Crops accepted and in no batch yet.", load.queued),
            "inflight_crops": ("Crops in running batches.", load.running),
            "capacity_crops": ("Crops that may be queued or in flight.", load.capacity),
            "load_ratio": (
                "(queued + in flight) / capacity.",
                (load.queued + load.running) / load.capacity,
            ),
            "ready": ("1 while crops are accepted.", load.ready),
            "workers": ("Workers whose model is warm.", load.workers),
            "model_load_seconds": ("The last loading of the model, warm-up included.", load.load_seconds),
        }
        gauges = [
            GaugeMetricFamily(f"clip4str_{name}", text, value) for name, (text, value) in values.items()
        ]
        return [*gauges, InfoMetricFamily("clip4str_build", "What runs.", self._build)]


class _Families:
    """What one scrape shows, as prometheus_client's encoders want it."""

    def __init__(self, files: MetricFiles, gauges: Sequence[Metric]) -> None:
        self._files = files
        self._gauges = gauges

    def collect(self) -> Iterable[Metric]:
        yield from self._files.collect()
        yield from self._gauges


def _stages(registry: CollectorRegistry) -> Histogram:
    """The one family that both kinds of processes add to."""
    return _histogram(
        registry,
        "stage_duration_seconds",
        "Work on one crop (decode, preprocess) or on one batch.",
        _SECONDS,
        "stage",
    )


def _dropped(registry: CollectorRegistry, *reasons: DropReason) -> Counter:
    """Likewise; each kind has reasons of its own."""
    dropped = _counter(registry, "dropped", "Crops that were given up before they ran, or refused.", "reason")
    _begin(dropped, *reasons)
    return dropped


def _begin(counter: Counter, *values: str) -> None:
    """Has a counter there from the start for these values of its label: a rate needs a zero to begin with."""
    for value in values:
        counter.labels(value)


def _counter(registry: CollectorRegistry, name: str, text: str, *labels: str) -> Counter:
    return Counter(f"clip4str_{name}", text, labels, registry=registry)


def _histogram(
    registry: CollectorRegistry, name: str, text: str, buckets: Sequence[float], *labels: str
) -> Histogram:
    return Histogram(f"clip4str_{name}", text, labels, buckets=buckets, registry=registry)
