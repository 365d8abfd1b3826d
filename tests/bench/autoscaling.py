"""A measured service with round figures, for tests of the simulation."""

from __future__ import annotations

from bench.autoscaling_report import Measured, Speed

BUCKETS = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0]


def speed(
    per_item: float = 0.005, per_batch: float = 0.01, quantiles: tuple[float, ...] = (1.0, 1.0)
) -> Speed:
    """A worker that takes exactly that long, unless it is spread; what else costs time costs none."""
    return {
        "per_item_s": per_item,
        "per_batch_s": per_batch,
        "spreads": [{"largest": 64, "batches": 100, "mean_s": 0.1, "quantiles": list(quantiles)}],
        "slower_per_refusal_s": 0.0,
        "besides_s": 0.0,
        "cpu_per_crop_s": 0.004,
        "cpu_per_batch_s": 0.01,
        "cpu_per_refusal_s": 0.001,
    }


def measured(work: Speed | None = None) -> Measured:
    """A service of two workers that is ready after 10 seconds, and complete after 15."""
    return {
        "machine": {"device": "a processor", "threads": 2, "torch": "0"},
        "model": {"name": "default", "revision": "sha256:0", "dtype": "float32", "device": "cpu"},
        "workers": 2,
        "cores": 2,
        "capacity": 300.0,
        "others": 0.0,
        "timeout_s": 1.0,
        "wait_buckets_s": BUCKETS,
        "ready_s": [10.0],
        "complete_s": [15.0],
        "speed": work or speed(),
        "closed": [{"clients": 1, "crops_per_second": 300.0, "p50_ms": 15.0, "p99_ms": 20.0}],
        "open": [
            {"offered": 150.0, "in_time": 150.0, "p50_ms": 20.0, "p99_ms": 50.0, "refused": 0.0, "late": 0.0}
        ],
    }
