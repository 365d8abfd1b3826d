"""How spans reach a collector, and that nobody waits for one."""

import logging
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from clip4str_service import span_export
from clip4str_service.tracing import RequestTracing, Tracing
from tests.service.otlp import Collector, collector


@pytest.fixture
def collected() -> Iterator[Collector]:
    with collector() as made:
        yield made


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is sent at the end arrives, however busy the machine is."""
    monkeypatch.setattr(span_export, "_CLOSE_SECONDS", 20)


def trace(tracing: Tracing) -> None:
    """One request."""
    RequestTracing(tracing.tracer, 1.0).rpc("a/B", None).end_rpc("OK", "ok", 1)


def test_variables_of_the_sdk_name_the_service_and_its_password(
    collected: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "words")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20a-password")
    tracing = Tracing(collected.address, "frontend-0")
    trace(tracing)
    tracing.close()
    assert collected.span("a/B").resource["service.name"] == "words"
    assert collected.headers[0]["authorization"] == "Bearer a-password"


def test_spans_are_sent_while_the_service_runs(monkeypatch: pytest.MonkeyPatch, collected: Collector) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    tracing = Tracing(collected.address, "frontend-0")
    trace(tracing)
    collected.wait_until(lambda: bool(collected.spans("a/B")))
    tracing.close()


def test_collector_that_is_down_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.05")
    forget_news()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
    tracing = Tracing(address, "frontend-0")
    for _ in range(10):
        trace(tracing)
        time.sleep(0.02)
    tracing.close()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING


def test_queue_that_is_full_costs_spans_and_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, collected: Collector
) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "8")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "8")
    forget_news()
    collected.gate.clear()
    tracing = Tracing(collected.address, "frontend-0")
    for _ in range(200):  # none of which waits
        trace(tracing)
    collected.gate.set()
    tracing.close()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert 8 <= len(collected.spans("a/B")) < 200


def test_end_does_not_wait_for_a_collector_that_hangs(
    monkeypatch: pytest.MonkeyPatch, collected: Collector
) -> None:
    monkeypatch.setattr(span_export, "_CLOSE_SECONDS", 0.1)
    collected.gate.clear()
    tracing = Tracing(collected.address, "frontend-0")
    trace(tracing)
    tracing.close()
    assert not collected.spans("a/B")
    collected.gate.set()
    for thread in threading.enumerate():  # they end by themselves, before the collector does
        if thread.name in ("spans", "OtelBatchSpanRecordProcessor"):
            thread.join(10)


def forget_news() -> None:
    """What another test's collector did is no old news."""
    for name in span_export._LOGGERS:
        for each in list(logging.getLogger(name).filters):
            if isinstance(each, span_export._Rarely):
                logging.getLogger(name).removeFilter(each)
