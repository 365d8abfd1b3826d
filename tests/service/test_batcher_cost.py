"""What batches cost, learned from those that ran."""

import random

import pytest

from clip4str_service.batching.cost import Cost


def learned(*sizes: int, per_item: float = 0.003, per_batch: float = 0.010, noise: float = 0.0) -> Cost:
    """From batches of these sizes."""
    rng = random.Random(0)
    cost = Cost()
    for size in sizes:
        cost.learn(size, (per_item * size + per_batch) * rng.uniform(1 - noise, 1 + noise))
    return cost


def test_nothing_is_known_without_evidence() -> None:
    cost = learned(1, 2, 3, 4)
    assert (cost.known, cost.seconds(10), cost.at_least(10), cost.economic(10)) == (False, 0, 0, 1)
    cost.learn(5, 0.025)
    assert cost.known
    assert cost.seconds(10) == pytest.approx(0.040, rel=1e-3)


def test_both_parts_of_the_cost_are_found() -> None:
    cost = learned(*[1, 64, 7, 30] * 10, noise=0.1)
    assert cost.seconds(1) == pytest.approx(0.013, abs=0.005)
    assert cost.seconds(64) == pytest.approx(0.202, rel=0.05)
    assert cost.at_least(64) == pytest.approx(cost.seconds(64), rel=0.1)
    assert cost.at_least(64) < cost.seconds(64)


@pytest.mark.parametrize(("first", "second"), [(0.100, 0.010), (0.010, 1.000)])
def test_neither_part_is_ever_negative(first: float, second: float) -> None:
    """Not even if small batches take longer than large ones, or the line would begin below nothing."""
    cost = Cost()
    for _ in range(10):
        cost.learn(5, first)
        cost.learn(50, second)
    assert cost.per_item >= 0
    assert cost.per_batch >= 0
    mean_items, mean_seconds = (
        (10 * 5 + 50) / 11,
        (10 * first + second) / 11,
    )  # the weights are 1 / 5 and 1 / 50
    assert cost.seconds(mean_items) == pytest.approx(mean_seconds, rel=0.1)


def test_batch_of_a_size_unlike_any_before_is_judged_with_caution() -> None:
    cost = learned(*[1] * 50, noise=0.1)
    assert cost.at_least(1) == pytest.approx(0.013, rel=0.15)
    assert cost.at_least(64) == 0  # nothing is known of what more items cost


def test_page_fault_is_no_evidence_but_a_slower_machine_is() -> None:
    cost = learned(*[8, 16, 32] * 10, noise=0.02)
    before = cost.seconds(32)
    cost.learn(32, 5.0)
    assert cost.seconds(32) == pytest.approx(before, rel=0.05)
    for size in [8, 16, 32] * 15:
        cost.learn(size, 5 * (0.003 * size + 0.010))
    assert cost.seconds(32) == pytest.approx(5 * before, rel=0.1)


def test_economic_batch_costs_little_more_for_each_item() -> None:
    cost = learned(*[1, 20, 64] * 10)
    each = cost.seconds(64) / 64
    size = cost.economic(64)
    assert 1 < size < 64
    assert cost.seconds(size) / size == pytest.approx(1.05 * each)
    assert learned(*[1, 20, 64] * 10, per_batch=0).economic(64) == pytest.approx(0, abs=0.1)
    assert learned(*[1, 20, 64] * 10, per_item=0).economic(64) == pytest.approx(61, rel=0.01)


def test_usual_size_is_that_of_late() -> None:
    assert learned(*[1] * 50, *[40] * 100).usual == pytest.approx(40, rel=0.01)
