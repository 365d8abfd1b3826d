"""What a key may ask, in times of the test's own making."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip4str_service.errors import TooManyCropsError
from clip4str_service.limits import Allowance, Limits, RateLimitedError


def limits(**figures: float | None) -> Limits:
    made = Limits()
    made.configure({"a": Allowance(**figures)})  # type: ignore[arg-type]
    return made


def test_burst_then_rate() -> None:
    made = limits(crops_per_second=10, burst_crops=20)
    made.take("a", 20, 100.0)
    with pytest.raises(RateLimitedError, match=r"rate of 10 crops_per_second") as caught:
        made.take("a", 5, 100.0)
    assert caught.value.retry_after == pytest.approx(0.5)
    made.take("a", 5, 100.0 + caught.value.retry_after)
    made.take("a", 20, 1000.0)
    with pytest.raises(RateLimitedError):
        made.take("a", 1, 1000.0)


def test_refusal_takes_nothing() -> None:
    made = limits(crops_per_second=10, burst_crops=10, max_crops_in_flight=15)
    made.take("a", 8, 0.0)
    for _ in range(3):
        with pytest.raises(RateLimitedError):
            made.take("a", 3, 0.0)
    made.take("a", 2, 0.0)
    made.take("a", 5, 10.0)
    with pytest.raises(RateLimitedError, match="15 crops in flight"):
        made.take("a", 1, 20.0)


def test_in_flight() -> None:
    made = limits(max_crops_in_flight=4)
    made.take("a", 3, 0.0)
    with pytest.raises(
        RateLimitedError, match="has 3 crops in flight; its max_crops_in_flight is 4"
    ) as caught:
        made.take("a", 2, 0.0)
    assert 0 < caught.value.retry_after < 1
    made.give_back("a", 1)
    made.take("a", 2, 0.0)


@pytest.mark.parametrize(
    ("figures", "field"),
    [
        ({"crops_per_second": 1000.0, "burst_crops": 8}, "burst_crops allows 8"),
        ({"max_crops_in_flight": 8}, "max_crops_in_flight allows 8"),
    ],
)
def test_what_can_never_be_is_not_put_off(figures: dict[str, float], field: str) -> None:
    made = limits(**figures)
    made.take("a", 8, 0.0)
    with pytest.raises(TooManyCropsError, match=f"9 crops at once; the API key's {field}"):
        made.take("a", 9, 0.0)


def test_refund_is_as_if_nothing_was_taken() -> None:
    made = limits(crops_per_second=1, burst_crops=8, max_crops_in_flight=8)
    for _ in range(3):
        made.take("a", 8, 0.0)
        made.refund("a", 8)
    made.take("a", 8, 0.0)
    made.give_back("a", 8)
    with pytest.raises(RateLimitedError):
        made.take("a", 8, 0.0)


def test_time_that_seems_to_go_back_gives_and_takes_nothing() -> None:
    made = limits(crops_per_second=10, burst_crops=10)
    made.take("a", 5, 100.0)
    made.take("a", 5, 50.0)
    for now in (50.0, 100.0, 50.0, 100.0):
        with pytest.raises(RateLimitedError):
            made.take("a", 1, now)


def test_who_has_no_allowance_takes_freely() -> None:
    made = limits(max_crops_in_flight=1)
    for _ in range(100):
        made.take("", 1000, 0.0)
    made.give_back("", 5)
    made.refund("", 5)
    made.take("a", 1, 0.0)


def test_other_figures_keep_what_is_taken() -> None:
    made = limits(crops_per_second=1, burst_crops=10, max_crops_in_flight=20)
    made.take("a", 10, 0.0)
    made.configure({"a": Allowance(1, 10, 12), "b": Allowance(1, 2)})
    with pytest.raises(RateLimitedError, match="rate"):
        made.take("a", 1, 0.0)
    with pytest.raises(RateLimitedError, match="in flight"):
        made.take("a", 3, 100.0)
    made.take("b", 2, 0.0)
    made.configure({"a": Allowance(1, 15, 40)})  # five more at once
    made.take("a", 5, 0.0)
    with pytest.raises(RateLimitedError, match="rate"):
        made.take("a", 1, 0.0)
    made.take("b", 1000, 0.0)


def test_key_that_comes_back_is_not_paid_for_old_crops() -> None:
    made = limits(max_crops_in_flight=5)
    made.take("a", 5, 0.0)
    made.configure({})
    made.configure({"a": Allowance(max_crops_in_flight=5)})
    made.give_back("a", 5)
    made.take("a", 5, 0.0)
    with pytest.raises(RateLimitedError):
        made.take("a", 1, 0.0)


@settings(deadline=None)
@given(
    rate=st.floats(0.1, 1000),
    burst=st.integers(1, 200),
    asked=st.lists(st.tuples(st.integers(1, 250), st.floats(0, 2)), max_size=60),
)
def test_no_way_of_asking_beats_the_rate(rate: float, burst: int, asked: list[tuple[int, float]]) -> None:
    made = limits(crops_per_second=rate, burst_crops=burst)
    now, had = 1000.0, 0
    for crops, pause in asked:
        now += pause
        try:
            made.take("a", crops, now)
        except TooManyCropsError:
            assert crops > burst
        except RateLimitedError as limited:
            assert crops <= burst
            now += limited.retry_after
            made.take("a", crops, now)  # it is right to the moment
            had += crops
        else:
            had += crops
        assert had <= burst + rate * (now - 1000.0) + 1e-3
