"""The measurement on a real service, quickly: its figures mean little, but there are all of them."""

from __future__ import annotations

from itertools import pairwise

import pytest

from bench.autoscaling_measure import Plan, measure


@pytest.mark.timeout(900)
def test_a_quick_measurement() -> None:
    found = measure(Plan(closed_seconds=0.4, open_seconds=0.6, traced=1.0, starts=1))
    assert found["workers"] >= 1
    assert [each["clients"] for each in found["closed"]] == [1, 2, 4, 8, 16, 32, 64, 128]
    assert found["capacity"] == max(each["crops_per_second"] for each in found["closed"]) > 1
    assert found["wait_buckets_s"][0] < found["wait_buckets_s"][-1] == 30
    assert all(low < high for low, high in pairwise(found["wait_buckets_s"]))
    ((ready,), (complete,)) = found["ready_s"], found["complete_s"]
    assert 0.5 < ready <= complete
    speed = found["speed"]
    assert 0 < speed["per_item_s"] + speed["per_batch_s"] < 5
    assert speed["spreads"]
    assert speed["cpu_per_crop_s"] + speed["cpu_per_batch_s"] > 0
    for each in found["open"]:
        assert 0 <= each["refused"] <= 1
        assert 0 <= each["in_time"] <= each["offered"]
