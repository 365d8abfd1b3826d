"""The form of bench/autoscaling.py's results: what was measured of the service, what the simulation made of it."""

from __future__ import annotations

from typing import TypedDict


class Spread(TypedDict):
    """How batches of up to `largest` crops (and more than the group before) were spread about the line.

    quantiles: of their seconds as parts of what the line says, equally spaced from the least to the most.
    """

    largest: int
    batches: int
    mean_s: float
    quantiles: list[float]


class Speed(TypedDict):
    """What a worker of the service does in a time, all in seconds; CPU seconds are of all its processes."""

    per_item_s: float  # of a batch, for each of its crops
    per_batch_s: float
    spreads: list[Spread]
    slower_per_refusal_s: float  # by so much more a batch takes for each request a second that is refused
    besides_s: float  # of an answer, outside of the queue and the batch
    cpu_per_crop_s: float
    cpu_per_batch_s: float
    cpu_per_refusal_s: float


class Closed(TypedDict):
    """A closed loop of the real service. Milliseconds."""

    clients: int
    crops_per_second: float
    p50_ms: float | None
    p99_ms: float | None


class Open(TypedDict):
    """An open loop (Poisson) of the real service or of a simulated pod. Shares from 0 to 1."""

    offered: float  # crops per second
    in_time: float  # crops per second
    p50_ms: float | None  # of what was read
    p99_ms: float | None
    refused: float
    late: float


class Measured(TypedDict):
    """measured.json."""

    machine: dict[str, str | int]
    model: dict[str, str | int]
    workers: int
    cores: int  # that the service may use
    capacity: float  # crops per second of the best closed loop
    others: float  # part of the processors that other programs used meanwhile, in the worst stretch
    timeout_s: float  # of the open loops' requests
    wait_buckets_s: list[float]  # upper bounds of the histogram of queue waits
    ready_s: list[float]  # from the start of the process until it was ready, each start
    complete_s: list[float]  # until all workers were warm
    speed: Speed
    closed: list[Closed]
    open: list[Open]


class Timeline(TypedDict):
    """A run, looked at every few seconds; lists of one length. `p99_ms`: of what was read since the last look."""

    time_s: list[float]
    offered: list[float]  # crops per second
    replicas: list[int]  # wanted
    ready: list[int]
    load_ratio: list[float]  # mean of the pods that are ready
    p99_ms: list[float | None]
    refused: list[float]  # part of what was asked


class Run(TypedDict):
    """A simulated run. Shares are parts of all requests."""

    case: str
    policy: str
    requests: int
    refused: float
    late: float  # accepted, but not answered by their deadline
    p50_ms: float | None  # of what was read
    p99_ms: float | None
    worst_p99_ms: float | None  # of any five seconds
    pod_hours: float  # that ran, were starting or draining
    most: int  # replicas
    changes: int  # of the number of replicas
    reversals: int  # of them in the other direction than the one before
    over_after_s: float | None  # from the first to the last five seconds with more than 1 % refused or late
    timeline: Timeline


class Level(TypedDict):
    """A pod under a constant load for long: what the metrics show."""

    utilisation: float  # of its capacity
    items: float  # queued and in flight, mean
    wait_p95_ms: float
    cpu: float  # part of its processors
    p99_ms: float | None
    refused: float


class Simulated(TypedDict):
    """simulated.json."""

    digest: str  # of what was measured, and of what was to be simulated
    pod: list[Open]  # one pod under the loads that the real service was measured under
    levels: list[Level]
    grid: list[Run]  # every policy in every case
    spike: list[Run]  # what else the spike was tried with
    slow: list[Run]  # the spike with a larger model
