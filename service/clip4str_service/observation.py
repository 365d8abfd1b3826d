"""What the supervisor sees, as metrics and traces."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from clip4str_service.batcher import Batch, DropReason
from clip4str_service.dispatcher import Call
from clip4str_service.generation import Generation, Job
from clip4str_service.metrics import HubMetrics
from clip4str_service.tracing import BatchTracing, TracedCrop


class Observation:
    """The observer of every generation."""

    def __init__(self, metrics: HubMetrics, tracing: BatchTracing) -> None:
        self._metrics = metrics
        self._tracing = tracing

    def sealed(self, batch: Batch[Job, bytes]) -> None:
        """A batch goes to a worker."""
        self._metrics.sealed([batch.sealed_at - work.submitted_at for work in batch.works])

    def read(
        self,
        generation: Generation,
        batch: Batch[Job, bytes],
        finished_at: float,
        stages: Mapping[str, float],
        failure: str = "",
    ) -> None:
        """A batch was read, or failed as a whole; `stages` holds the seconds of each part of the work."""
        self._metrics.read(stages, batch.abandoned)
        traced = [
            TracedCrop(owner.traceparent, place.submitted_at)
            for work in batch.works
            for place in work.places
            if isinstance(owner := place.admission.owner, Call) and owner.traceparent
        ]
        if traced:
            self._tracing.record(
                traced,
                sealed_at=batch.sealed_at,
                finished_at=finished_at,
                attributes={
                    "batch_size": len(batch),
                    "revision": generation.model.revision,
                    "device": generation.model.device,
                },
                stages=stages,
                failure=failure,
            )

    def dropped(self, reason: DropReason) -> None:
        """An admitted crop will never run."""
        self._metrics.dropped(reason)

    def restarted(self, reason: Literal["exit", "hang"]) -> None:
        """A worker is gone and another is started."""
        self._metrics.restarted(reason)
