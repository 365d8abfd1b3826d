"""The autoscaler's algorithm, held to the cases that kubernetes.io works through and to its rules."""

from __future__ import annotations

from itertools import pairwise

import pytest

from bench.autoscaling_hpa import (
    DEFAULT,
    Autoscaler,
    Behavior,
    Policy,
    Rules,
    Seen,
    by_average,
    by_pods,
)

ANY = Rules(0.0, (Policy("Percent", 1000, 15.0),))
FREE = Behavior(up=ANY, down=Rules(0.0, (Policy("Percent", 100, 15.0),)))
"""No windows, and steps as large as may be."""


def pods(*values: float | None) -> list[Seen]:
    return [Seen(value) for value in values]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.2, 6),  # twice the target doubles them,
        (0.05, 2),  # half of it halves them (1.5, rounded up)
        (0.109, 3),  # within a tenth nothing is done
        (0.091, 3),
        (0.111, 4),
        (0.0, 0),
    ],
)
def test_ratio_and_tolerance(value: float, expected: int) -> None:
    assert by_pods(3, pods(value, value, value), 0.1) == expected
    assert by_average(3, 3 * value, 0.1) == expected


def test_the_average_over_pods_counts() -> None:
    assert by_pods(2, pods(1.0, 2.0), 0.5) == 6


def test_missing_values_count_as_nothing_against_more() -> None:
    assert by_pods(4, pods(2.0, 2.0, 2.0, 2.0), 1.0) == 8
    assert by_pods(4, pods(2.0, 2.0, 2.0, None), 1.0) == 6
    assert by_pods(4, pods(2.0, 2.0, None, None), 1.0) == 4  # then it is on target
    assert by_pods(4, pods(2.0, None, None, None), 1.0) == 4  # it would even be fewer


def test_missing_values_count_as_the_target_against_fewer() -> None:
    assert by_pods(4, pods(0.25, 0.25, 0.25, 0.25), 1.0) == 1
    assert by_pods(4, pods(0.25, 0.25, 0.25, None), 1.0) == 2
    assert by_pods(10, pods(*[0.5], *[None] * 9), 1.0) == 10  # within the tolerance


def test_pods_that_are_not_ready_count_as_nothing_against_more() -> None:
    unready = Seen(5.0, unready=True)
    assert by_pods(3, [*pods(3.0, 3.0), unready], 1.0) == 6
    assert by_pods(6, [*pods(3.0, 3.0), *[unready] * 4], 1.0) == 6  # those on their way are enough
    assert by_pods(3, [*pods(3.0, 3.0), Seen(None, unready=True)], 1.0) == 6


def test_pods_that_are_not_ready_are_left_out_against_fewer() -> None:
    assert by_pods(4, [*pods(0.5, 0.5, 0.5), Seen(0.0, unready=True)], 1.0) == 2


def test_nothing_is_proposed_where_nothing_is_known() -> None:
    assert by_pods(2, pods(None, None), 1.0) is None
    assert by_pods(2, [Seen(1.0, unready=True)], 1.0) is None
    assert by_average(2, None, 1.0) is None


def test_the_largest_proposal_counts() -> None:
    assert Autoscaler(1, 100, FREE).decide(0.0, 4, [2, 7, 5]) == 7


def test_an_unknown_metric_forbids_fewer_but_not_more() -> None:
    autoscaler = Autoscaler(1, 100, FREE)
    assert autoscaler.decide(0.0, 4, [2, None]) == 4
    assert autoscaler.decide(15.0, 4, [6, None]) == 6
    assert autoscaler.decide(30.0, 6, [None, None]) == 6


def test_bounds() -> None:
    autoscaler = Autoscaler(2, 5, FREE)
    assert autoscaler.decide(0.0, 3, [9]) == 5
    assert autoscaler.decide(15.0, 5, [0]) == 2


def test_policies_of_the_documentation() -> None:
    """At most 4 pods or 10 % a minute: 80 go to 72 and on by 10 %, rounded up; from 40 on by 4."""
    down = Rules(0.0, (Policy("Pods", 4, 60.0), Policy("Percent", 10, 60.0)))
    autoscaler, seen = Autoscaler(10, 100, Behavior(up=ANY, down=down)), [80]
    for minute in range(20):
        seen.append(autoscaler.decide(60.0 * minute, seen[-1], [10]))
    assert seen[:10] == [80, 72, 64, 57, 51, 45, 40, 36, 32, 28]
    assert seen[-1] == 10
    assert all(before - after == 4 for before, after in pairwise(seen[6:14]))


def test_a_policys_period_looks_back_on_what_was_done() -> None:
    down = Rules(0.0, (Policy("Pods", 4, 60.0),))
    autoscaler = Autoscaler(1, 100, Behavior(up=ANY, down=down))
    assert autoscaler.decide(0.0, 20, [1]) == 16
    assert [autoscaler.decide(now, 16, [1]) for now in (15.0, 30.0, 45.0)] == [16, 16, 16]
    assert autoscaler.decide(60.0, 16, [1]) == 12


def test_select_min_takes_the_smaller_step() -> None:
    policies = (Policy("Percent", 10, 60.0), Policy("Pods", 5, 60.0))
    behavior = Behavior(up=Rules(0.0, policies, "Min"), down=Rules(0.0, policies, "Min"))
    assert Autoscaler(1, 200, behavior).decide(0.0, 100, [1]) == 95
    assert Autoscaler(1, 200, behavior).decide(0.0, 20, [1]) == 18
    assert Autoscaler(1, 200, behavior).decide(0.0, 100, [200]) == 105
    assert Autoscaler(1, 200, behavior).decide(0.0, 20, [200]) == 22


def test_select_disabled_forbids_the_direction() -> None:
    behavior = Behavior(up=ANY, down=Rules(0.0, (Policy("Percent", 100, 15.0),), "Disabled"))
    autoscaler = Autoscaler(1, 100, behavior)
    assert autoscaler.decide(0.0, 10, [1]) == 10
    assert autoscaler.decide(15.0, 10, [12]) == 12


def test_default_doubles_or_adds_four_in_a_period() -> None:
    autoscaler, seen = Autoscaler(1, 100), [1]
    for number in range(5):
        seen.append(autoscaler.decide(15.0 * number, seen[-1], [50]))
    assert seen == [1, 5, 10, 20, 40, 50]


def test_default_goes_down_only_after_five_minutes_of_saying_so() -> None:
    autoscaler = Autoscaler(1, 100, DEFAULT)
    assert autoscaler.decide(0.0, 6, [6]) == 6
    later = [autoscaler.decide(15.0 * number, 6, [2]) for number in range(1, 21)]
    assert later == [6] * 19 + [2]  # at 300 s what was proposed at 0 s is no longer within the window


def test_down_window_takes_the_highest_proposal() -> None:
    autoscaler = Autoscaler(1, 100, Behavior(up=ANY, down=Rules(60.0, (Policy("Percent", 100, 15.0),))))
    decided = [autoscaler.decide(15.0 * n, 9, [p]) for n, p in enumerate([9, 4, 7, 3])]
    assert decided == [9, 9, 9, 9]
    assert autoscaler.decide(60.0, 9, [2]) == 7


def test_up_window_takes_the_lowest_proposal() -> None:
    autoscaler = Autoscaler(1, 100, Behavior(up=Rules(30.0, ANY.policies), down=FREE.down))
    assert autoscaler.decide(0.0, 4, [4]) == 4
    assert autoscaler.decide(15.0, 4, [9]) == 4
    assert autoscaler.decide(30.0, 4, [7]) == 7  # the lowest of 9 and 7: what was proposed at 0 s is too old
