# mypy: disable-error-code="import-not-found,untyped-decorator"
"""BentoML, for `bentoml serve bento:Words`.

Batching as https://docs.bentoml.com/en/latest/get-started/adaptive-batching.html says.
"""

from __future__ import annotations

import base64
from typing import Any

import bentoml

from bench.rivals.shared import BATCH, QUEUE, TIMEOUT_S, WAIT_MS, WORKERS, answer, decode, load


@bentoml.service(
    workers=WORKERS,
    traffic={"timeout": TIMEOUT_S, "max_concurrency": QUEUE},
    logging={"access": {"enabled": False}},
    metrics={"enabled": False},
)
class Words:
    """Images in base64, their readings."""

    def __init__(self) -> None:
        self.recognizer = load()

    @bentoml.api(batchable=True, max_batch_size=BATCH, max_latency_ms=int(WAIT_MS))
    def read(self, images: list[str]) -> list[dict[str, Any]]:
        """One batch, of as many requests as came."""
        decoded = [decode(base64.b64decode(image)) for image in images]
        return [answer(reading) for reading in self.recognizer.read(decoded)]
