"""A job's shards on a Ray cluster, by Ray Data: a pool of actors, each with a model, and one shard a task.

What Ray does for us: it places the actors, hands out shards to whoever is free, and starts an actor that died anew,
with the shard it had. What it is not used for: moving crops. Workers read and write storage themselves.
"""

from __future__ import annotations

import json
import logging
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

os.environ["RAY_USAGE_STATS_ENABLED"] = (
    "0"  # Ray reports to its makers unless it is told not to, before its import
)

import pyarrow as pa
import ray
import ray.data

from clip4str.bulk.errors import BulkError
from clip4str.bulk.job import Work
from clip4str.bulk.reader import Outcome, Reader
from clip4str.hardware import available_processors

_OBJECTS = 128 << 20  # bytes of shared memory of a cluster of our own: shards' outlines and outcomes alone
_TRIES = 4  # of a shard that kills its worker


class ShardError(Exception):
    """A shard's storage or table failed; the message is one line. The others are as they were."""


@dataclass(frozen=True, slots=True)
class Workers:
    """How many, on which device, "cpu" or "cuda" (one GPU each), with how many processors each."""

    count: int
    device: str
    processors: int


@contextmanager
def connected(
    address: str | None, device: str | None, count: int | None, processors: int
) -> Iterator[Workers]:
    """Join the cluster at an address, or make one of this machine for as long as this lasts; yield who is to work.

    Without a `device` the GPUs if there are any; without a `count` one for each GPU, or for so many `processors`.
    Raises BulkError.
    """
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address is None:
            needed = (count or 1) * processors
            # Of a container, Ray would count the machine's processors.
            quiet |= {"num_cpus": max(available_processors(), needed), "object_store_memory": _OBJECTS}
            ray.init(address="local", include_dashboard=False, **quiet)
        else:
            ray.init(address=address, **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise BulkError(f"--address {address}: no Ray cluster can be joined ({_line(error)})") from error
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ray's own ends without a word
    try:
        there = ray.cluster_resources()
        gpus, cpus = int(there.get("GPU", 0)), int(there.get("CPU", 0))
        device = device or ("cuda" if gpus else "cpu")
        most = gpus if device == "cuda" else cpus // processors
        if not most and count is None:
            raise BulkError(f"the cluster has {gpus} GPUs and {cpus} processors: no room for one worker")
        yield Workers(count or most, device, processors)
    finally:
        ray.shutdown()


def outcomes(work: Work, workers: Workers) -> Iterator[Outcome]:
    """Have all shards read that are to do; yield each as soon as it has its results.

    A shard that kills its worker again and again is left out. Raises ShardError as soon as one cannot be read for
    another reason, and BulkError when the workers cannot be started.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.max_errored_blocks = -1  # a lost shard must not stop the others; it is missing in what comes back
    _silence()
    numbers = [{"number": shard.number} for shard in work.todo]
    dataset = ray.data.from_items(numbers, override_num_blocks=len(numbers)).map(
        _Worker,
        fn_constructor_args=(work, workers),
        compute=ray.data.ActorPoolStrategy(size=workers.count),
        num_cpus=workers.processors,
        num_gpus=1 if workers.device == "cuda" else 0,
        max_restarts=-1,
        max_task_retries=_TRIES - 1,
    )
    try:
        for row in dataset.iter_rows():
            if row["failure"]:
                raise ShardError(row["failure"])
            yield Outcome(row["shard"], row["crops"], json.loads(row["errors"]))
    except ray.exceptions.RayError as error:
        raise BulkError(f"the workers cannot be started ({_line(error)})") from error


def _silence() -> None:
    """Leave what Ray Data tells people in its log files."""
    log = logging.getLogger("ray.data")
    log.handlers = [handler for handler in log.handlers if not isinstance(handler, logging.StreamHandler)]


class _Worker:
    """The actor."""

    def __init__(self, work: Work, workers: Workers) -> None:
        self._reader = Reader(work, workers.device, workers.processors)
        self._shards = {shard.number: shard for shard in work.shards}

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        shard = self._shards[row["number"]]
        try:
            outcome = self._reader.read(shard)
        except (OSError, BulkError, pa.ArrowException) as error:
            return {"shard": shard.number, "crops": 0, "errors": "{}", "failure": _line(error)}
        return {**asdict(outcome), "errors": json.dumps(outcome.errors), "failure": ""}


def _line(error: BaseException) -> str:
    """The last line of what Ray or a file system says, which is the cause."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
