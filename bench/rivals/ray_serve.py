# mypy: disable-error-code="import-not-found,untyped-decorator,attr-defined"
"""Ray Serve, batching as https://docs.ray.io/en/latest/serve/advanced-guides/dyn-req-batch.html says."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse

from bench.rivals.shared import BATCH, PORT, QUEUE, THREADS, TIMEOUT_S, WAIT_MS, WORKERS, answer, decode, load


@serve.deployment(
    num_replicas=WORKERS,
    max_ongoing_requests=2 * BATCH,
    max_queued_requests=QUEUE,
    ray_actor_options={"num_cpus": THREADS},
)
class Words:
    """An image's bytes, its reading."""

    def __init__(self) -> None:
        self.recognizer = load()

    @serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=WAIT_MS / 1000)
    async def read(self, contents: list[bytes]) -> list[dict[str, Any]]:
        """One batch, on a thread: the replica goes on taking requests."""
        return await asyncio.to_thread(self.read_now, contents)

    def read_now(self, contents: list[bytes]) -> list[dict[str, Any]]:
        """Decode and read."""
        return [answer(reading) for reading in self.recognizer.read([decode(each) for each in contents])]

    async def __call__(self, request: Request) -> JSONResponse:
        """One request."""
        return JSONResponse(await self.read(await request.body()))


if __name__ == "__main__":
    ray.init(include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": PORT, "request_timeout_s": TIMEOUT_S})
    serve.run(Words.bind())
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
