"""A job's shards on a Ray cluster, by Ray Data: a pool of actors, each with a model, and one shard a task.

What Ray does for us: it places the actors, hands out shards to whoever is free, and starts an actor that died anew,
with the shard it had. What it is not used for: moving crops. Workers read and write storage themselves.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import ray.data

from clip4str.bulk.errors import BulkError
from clip4str.bulk.job import Work
from clip4str.bulk.reader import Outcome, Reader
from clip4str.hardware import available_processors

_OBJECTS = 128 << 20  # bytes of shared memory of a cluster of our own: shards' numbers and outcomes alone
_TRIES = 4  # of a shard that kills its worker; Ray Data would go on for ever


class WorkerError(Exception):
    """Storage, a table or a worker failed for good; the message is one line. What is done is done."""


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
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # it reports to its makers unless it is told not to
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        # Of a container, Ray would count the machine's processors.
        processors_here = max(available_processors(), (count or 1) * processors)
        quiet |= {"num_cpus": processors_here, "object_store_memory": _OBJECTS, "include_dashboard": False}
    with _quiet_terminal():
        try:
            ray.init(address=address or "local", **quiet)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise BulkError(
                f"--address {address or 'local'}: no Ray cluster answers, or it wants RAY_AUTH_MODE=token "
                f"({_line(error)})"
            ) from error
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ray's own ends without a word
        try:
            there = ray.cluster_resources()
            gpus, cpus = int(there.get("GPU", 0)), int(there.get("CPU", 0))
            device = device or ("cuda" if gpus else "cpu")
            most = gpus if device == "cuda" else cpus // processors
            if not most:
                raise BulkError(
                    f"the cluster has {gpus} GPUs and {cpus} processors: there is no room for a worker on {device} "
                    f"with {processors} processors"
                )
            yield Workers(count or most, device, processors)
        finally:
            ray.shutdown()


@contextmanager
def _quiet_terminal() -> Iterator[None]:
    """Leave standard error to Python, and print nothing: Ray tells there what it sees to itself, and logs it as well.

    Its C++ part writes to the descriptor, and a thread of its Python part to standard output.
    """
    python, terminal = sys.stderr, os.dup(2)
    with (
        os.fdopen(terminal, "w", buffering=1, encoding=python.encoding) as sys.stderr,
        Path(os.devnull).open("w") as nowhere,
        redirect_stdout(nowhere),
    ):
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(terminal, 2)
            sys.stderr = python


def outcomes(work: Work, workers: Workers) -> Iterator[Outcome]:
    """Have all shards read that are to do; yield each as soon as it has its results.

    One that kills its worker again and again is left out. Raises WorkerError for any other failure.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    _silence()
    tries = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(_Tries).remote()
    numbers = [{"number": shard.number} for shard in work.todo]
    dataset = ray.data.from_items(numbers, override_num_blocks=len(numbers)).map(
        _Worker,
        fn_constructor_args=(work, workers, tries),
        compute=ray.data.ActorPoolStrategy(size=min(workers.count, len(numbers))),
        num_cpus=workers.processors,
        num_gpus=1 if workers.device == "cuda" else 0,
    )
    try:
        for row in dataset.iter_rows():
            if row["failure"]:
                raise WorkerError(row["failure"])
            if row["read"]:
                yield Outcome(row["shard"], row["crops"], json.loads(row["errors"]))
    except ray.exceptions.RayError as error:
        raise WorkerError(f"the workers failed ({_line(error)})") from error


def _silence() -> None:
    """Leave what Ray Data tells people in its log files."""
    log = logging.getLogger("ray.data")
    log.handlers = [handler for handler in log.handlers if not isinstance(handler, logging.StreamHandler)]


class _Tries:
    """An actor that counts how often each shard was begun: a worker that died cannot tell."""

    def __init__(self) -> None:
        self._begun: Counter[int] = Counter()

    def begin(self, shard: int) -> int:
        """Count one, and say how many there are."""
        self._begun[shard] += 1
        return self._begun[shard]


class _Worker:
    """The actor. Ray Data starts it anew when it died, and hands it the shard again that it had."""

    def __init__(self, work: Work, workers: Workers, tries: Any) -> None:
        self._reader = Reader(work, workers.device, workers.processors)
        self._shards = {shard.number: shard for shard in work.todo}
        self._tries = tries

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        shard = self._shards[row["number"]]
        told = {"shard": shard.number, "read": False, "crops": 0, "errors": "{}", "failure": ""}
        if ray.get(self._tries.begin.remote(shard.number)) > _TRIES:
            return told
        try:
            outcome = self._reader.read(shard)
        except (OSError, BulkError, pa.ArrowException) as error:
            return {**told, "failure": _line(error)}
        return {**told, "read": True, "crops": outcome.crops, "errors": json.dumps(outcome.errors)}


def _line(error: BaseException) -> str:
    """The last line of what Ray or a file system says, which is the cause."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
