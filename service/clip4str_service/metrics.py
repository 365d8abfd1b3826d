"""What the service measures, for Prometheus. One registry for each service, none for the process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Literal, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

from clip4str_service.readings import ModelInfo, Reading

OK = "ok"
"""The outcome and code of what did not fail; of what failed it is the error's code."""

Stage = Literal["decode", "preprocess", "inference"]

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_CONFIDENCES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)


class Load(Protocol):
    """What the gauges read when they are scraped."""

    @property
    def queued(self) -> int:
        """Crops accepted and in no batch yet."""

    @property
    def running(self) -> int:
        """Crops in the running batch."""


class Metrics:
    """Every measure of the service, by the names that dashboards know."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = self._counter("requests", "Requests answered.", "protocol", "method", "code")
        self._request_seconds = self._histogram(
            "request_duration_seconds",
            "From a request's start to its answer.",
            _SECONDS,
            "protocol",
            "method",
        )
        self._crops = self._counter("crops", "Crops answered, by outcome: ok or an error's code.", "outcome")
        self._dropped = self._counter("dropped", "Crops that were given up before they ran.", "reason")
        self._queue_wait = self._histogram(
            "queue_wait_seconds", "From a crop's being prepared to the sealing of its batch.", _SECONDS
        )
        self._stages = self._histogram(
            "stage_duration_seconds",
            "Work on one crop (decode, preprocess) or batch (inference).",
            _SECONDS,
            "stage",
        )
        self._batch_size = self._histogram("batch_size", "Crops in a batch.", _BATCHES)
        self._disagreements = self._counter(
            "branch_disagreement", "Crops that the two branches read differently."
        )
        self._word_confidence = self._histogram(
            "word_confidence", "Confidence of the final answer.", _CONFIDENCES
        )

    def watch(self, load: Load, capacity: int, ready: Callable[[], bool]) -> None:
        """Shows the service's load and readiness, as they are at each scrape."""
        gauges: dict[str, tuple[str, Callable[[], float]]] = {
            "queued_crops": ("Crops accepted and in no batch yet.", lambda: load.queued),
            "inflight_crops": ("Crops in the running batch.", lambda: load.running),
            "capacity_crops": ("Crops that may be queued or in flight.", lambda: capacity),
            "load_ratio": (
                "(queued + in flight) / capacity.",
                lambda: (load.queued + load.running) / capacity,
            ),
            "ready": ("1 while crops are accepted.", ready),
        }
        for name, (text, value) in gauges.items():
            Gauge(f"clip4str_{name}", text, registry=self.registry).set_function(value)

    def loaded(self, model: ModelInfo) -> None:
        """Names what runs."""
        Info("clip4str_build", "What runs.", registry=self.registry).info(
            {
                "version": version("clip4str"),
                "model": model.name,
                "revision": model.revision,
                "variant": model.variant,
                "dtype": model.dtype,
                "device": model.device,
            }
        )

    def request(self, protocol: str, method: str, code: str, seconds: float) -> None:
        """Counts an answered request."""
        self._requests.labels(protocol, method, code).inc()
        self._request_seconds.labels(protocol, method).observe(seconds)

    def stage(self, stage: Stage, seconds: float) -> None:
        """Times one stage of the work."""
        self._stages.labels(stage).observe(seconds)

    def sealed(self, waits: Sequence[float]) -> None:
        """Counts a sealed batch, and how long each of its crops waited, in seconds."""
        self._batch_size.observe(len(waits))
        for wait in waits:
            self._queue_wait.observe(wait)

    def dropped(self, reason: Literal["cancelled", "deadline", "shed"], crops: int = 1) -> None:
        """Counts crops that never run."""
        self._dropped.labels(reason).inc(crops)

    def failed(self, code: str, crops: int = 1) -> None:
        """Counts crops that an error answers, or would have answered."""
        self._crops.labels(code).inc(crops)

    def read(self, reading: Reading) -> None:
        """Counts a crop that was read."""
        self._crops.labels(OK).inc()
        self._word_confidence.observe(reading.confidence)
        if not reading.agreement:
            self._disagreements.inc()

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"clip4str_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: Sequence[float], *labels: str) -> Histogram:
        return Histogram(f"clip4str_{name}", text, labels, buckets=buckets, registry=self.registry)
