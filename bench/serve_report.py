"""The form of bench/serve.py's results."""

from __future__ import annotations

from typing import TypedDict


class Point(TypedDict):
    """A closed loop. Latencies in milliseconds; CPU in seconds per 1,000 crops read."""

    clients: int
    crops_per_second: float
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    not_read: int  # requests that were not
    server_cpu: float
    client_cpu: float


class Beside(TypedDict):
    """Another server's closed loops, each in turns with that of the same number of clients."""

    title: str
    points: list[Point]


class Peak(TypedDict):
    """The closed loop with the highest throughput, measured in turns with the bare model."""

    clients: int
    crops_per_second: float  # median of the rounds
    of_ceiling: float  # median of the rounds, each against the bare model's mean before and after
    rounds: list[list[float]]  # bare model, server, bare model
    server_cpu: float
    client_cpu: float


class Alone(TypedDict):
    """One client, in turns with the bare model on one crop at a time. Milliseconds, medians."""

    p50_ms: float
    bare_ms: float
    added_ms: float  # median of the rounds


class Load(TypedDict):
    """An open loop. Milliseconds; shares from 0 to 1; bytes of all the server's processes."""

    load: float  # as a share of the peak's throughput
    offered: float  # crops per second
    goodput: float  # crops per second, read before their deadline
    answered_p50_ms: float | None  # of what was read
    answered_p99_ms: float | None
    refused: float
    refused_p50_ms: float | None
    refused_p99_ms: float | None
    retry_after: float | None  # of the refusals
    held_back: float
    late: float
    failed: float
    lag_p99_ms: float  # of the client, behind its own plan
    rss_before: int
    rss_after: int


class Result(TypedDict):
    """A way of having crops read, measured."""

    name: str
    title: str
    ours: bool
    crops: int  # of a request
    timeout_ms: int  # of an open loop's requests
    settings: dict[str, str]
    candidates: list[dict[str, str | float]]  # settings tried, and crops per second with them
    wrong: int  # crops that were read otherwise than by the bare model
    points: list[Point]
    beside: list[Beside]  # of a framework to compare with: this service
    peak: Peak
    alone: Alone | None  # of requests with one crop
    loads: list[Load]
    recovery_s: float | None  # after the last load; None: not while it was watched
    peak_rss: int


class Report(TypedDict):
    """The results file."""

    machine: dict[str, str | int]
    model: dict[str, str | int]
    crops: int
    crop_bytes: float  # mean
    best_batch: int  # of the bare model
    seconds: float  # of a closed loop
    overload_seconds: float
    results: list[Result]
