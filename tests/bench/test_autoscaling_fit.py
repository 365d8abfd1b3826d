"""What is made of a measurement: the figures that it was made from come out again."""

from __future__ import annotations

import urllib.request

import numpy as np
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

from bench.autoscaling_fit import FitError, Observed, nonnegative, speed
from bench.autoscaling_spans import TracedBatch, collecting

SIZES = [1, 2, 4, 8, 16, 32, 64] * 20


def window(refused: float = 0.0, factor: float = 1.0, batches: int = 100, crops: int = 1000) -> Observed:
    """Ten seconds of batches that take 5 ms a crop and 10 ms more, so many times."""
    traced = [TracedBatch(0.0, factor * (0.005 * size + 0.010), size) for size in SIZES]
    cpu = 0.004 * crops + 0.010 * batches + 0.001 * refused
    return Observed(10.0, crops, batches, refused, cpu, traced)


WINDOWS = [
    window(),
    window(batches=50, crops=1500),
    window(batches=900, crops=950),
    window(refused=2000, factor=1.2, crops=1100),
    window(refused=4000, factor=1.4),
]


def test_what_went_in_comes_out() -> None:
    found = speed(WINDOWS, 0.003)
    assert found["per_item_s"] == pytest.approx(0.005)
    assert found["per_batch_s"] == pytest.approx(0.010)
    assert found["slower_per_refusal_s"] == pytest.approx(0.2 / 200)
    assert found["cpu_per_crop_s"] == pytest.approx(0.004)
    assert found["cpu_per_batch_s"] == pytest.approx(0.010)
    assert found["cpu_per_refusal_s"] == pytest.approx(0.001)
    assert [spread["largest"] for spread in found["spreads"]] == [1, 2, 4, 8, 16, 32, 64]
    for spread in found["spreads"]:
        assert spread["quantiles"] == pytest.approx([1.0] * 21)
        assert spread["mean_s"] == pytest.approx(0.005 * spread["largest"] + 0.010, abs=1e-4)


def test_spreads_are_of_their_size() -> None:
    traced = [TracedBatch(0.0, 0.01 * part, 1) for part in np.linspace(0.5, 1.5, 101)]
    traced += [TracedBatch(0.0, 0.64, 64)] * 50
    one, many = speed([Observed(1.0, 100, 10, 0, 1.0, traced)], 0.0)["spreads"]
    assert (one["largest"], many["largest"]) == (1, 64)
    assert one["quantiles"][0] == pytest.approx(0.5, abs=0.02)
    assert one["quantiles"][-1] == pytest.approx(1.5, abs=0.02)
    assert max(many["quantiles"]) - min(many["quantiles"]) == 0


def test_a_measurement_that_tells_nothing_is_refused() -> None:
    with pytest.raises(FitError, match="3 batches were traced"):
        speed([Observed(1.0, 3, 3, 0, 1.0, [TracedBatch(0.0, 0.1, 1)] * 3)], 0.0)
    with pytest.raises(FitError, match="of several sizes"):
        speed([Observed(1.0, 50, 50, 0, 1.0, [TracedBatch(0.0, 0.1, 4)] * 50)], 0.0)


def test_no_coefficient_is_negative() -> None:
    columns = np.array([[1.0, 1.0], [2.0, 1.0], [3.0, 1.0]])
    assert nonnegative(columns, np.array([3.0, 5.0, 7.0])) == pytest.approx([2.0, 1.0])
    slope, rest = nonnegative(columns, np.array([1.0, 3.0, 5.0]))  # 2 x - 1, without the bound
    assert rest == 0
    assert slope == pytest.approx(22 / 14)


def test_the_collector_keeps_batches() -> None:
    size = KeyValue(key="clip4str.batch_size", value=AnyValue(int_value=12))
    batch = Span(
        name="batch", start_time_unix_nano=2_000_000_000, end_time_unix_nano=2_250_000_000, attributes=[size]
    )
    spans = ScopeSpans(spans=[Span(name="queue"), batch])
    content = ExportTraceServiceRequest(resource_spans=[ResourceSpans(scope_spans=[spans])])
    with collecting() as collector:
        request = urllib.request.Request(  # noqa: S310 (our own address)
            f"{collector.address}/v1/traces", content.SerializeToString(), {"Content-Encoding": "identity"}
        )
        with urllib.request.urlopen(request) as answer:  # noqa: S310
            assert answer.status == 200
    assert collector.batches == [TracedBatch(2.0, 0.25, 12)]
