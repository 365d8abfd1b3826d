"""Every PromQL expression of the chart, asked of a real Prometheus that scrapes the real service under load.

The service reads, refuses, is late, fails and loses workers first, so that there is nothing that an expression could
name and not find.
"""

from __future__ import annotations

import io
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import httpx
import pytest
from PIL import Image

from samples.demo import RunningService, running_service
from tests.e2e.observed import PATIENT, WORKER, children, metrics, ready, total, until
from tests.e2e.sabotage.sitecustomize import COLOUR
from tests.e2e.traffic import as_json, by_grpc, by_rest, unlike
from tests.helm import expressions
from tests.helm.charts import EVERYTHING, ROOT, only, rendered
from tests.helm.expressions import Expression
from tests.helm.prometheus_server import Prometheus, scraping

SABOTAGE = Path(__file__).parents[1] / "e2e" / "sabotage"
QUEUE = 64
FREEZE = 2.0
"""Seconds that a worker is stopped for; less than it may be silent."""

LOADING = 240.0
"""Seconds that a worker may load for, on a machine that does much else."""

STEADY = 6.0
"""Seconds of load at the end, without harm: several scrapes."""

pytestmark = pytest.mark.timeout(4 * LOADING)  # of the first test, which has the service loaded three times


@pytest.fixture(scope="module")
def crops() -> list[bytes]:
    return [path.read_bytes() for path in sorted((ROOT / "samples").glob("*.jpg"))]


@pytest.fixture(scope="module")
def prometheus(crops: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    home = tmp_path_factory.mktemp("prometheus")
    settings = {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(SABOTAGE), os.environ.get("PYTHONPATH")])),
        "SABOTAGE_POISON": str(home / "poisoned"),
        "CLIP4STR_QUEUE_CROPS": str(QUEUE),
        "CLIP4STR_MAX_CROPS": str(QUEUE),
        "CLIP4STR_CPU_PROCESSES": "1",
        "CLIP4STR_DEFAULT_TIMEOUT_MS": str(round(1000 * PATIENT)),
    }
    with (
        running_service(home / "service.log", **settings) as service,
        scraping(service, home) as prometheus,
        asked_steadily(service, crops),
    ):
        overload(service, crops)
        be_late(service, crops)
        fail(service)
        time.sleep(STEADY)
        yield prometheus


@contextmanager
def asked_steadily(service: RunningService, crops: list[bytes]) -> Iterator[None]:
    """Two clients, by REST and by gRPC, that ask until the end, whatever they are answered."""
    over = threading.Event()

    def client(number: int) -> None:
        ask = (by_rest, by_grpc)[number]
        while not over.is_set():
            try:
                ask(service, [unlike(crop) for crop in crops[:4]])
            except (httpx.TransportError, grpc.RpcError):
                time.sleep(0.1)

    with ThreadPoolExecutor(2) as pool:
        clients = [pool.submit(client, number) for number in range(2)]
        try:
            yield
        finally:
            over.set()
        for each in clients:
            each.result()


def overload(service: RunningService, crops: list[bytes]) -> None:
    """Asks for more than there is room for, until some is refused."""

    def flood() -> bool:
        with ThreadPoolExecutor(4) as pool:
            for _ in range(4):
                pool.submit(by_rest, service, [unlike(crops[n % len(crops)]) for n in range(QUEUE)])
        return total(metrics(service), "clip4str_dropped_total", "shed") > 0

    until(flood)


def be_late(service: RunningService, crops: list[bytes]) -> None:
    """Has a worker stand still until a crop's deadline has passed."""

    def wait() -> bool:
        (worker,) = children(service, WORKER)
        os.kill(worker, signal.SIGSTOP)
        try:
            with ThreadPoolExecutor(1) as pool:
                body = as_json([unlike(crops[0])], timeout_ms=round(500 * FREEZE))
                headers = {"Content-Type": "application/json"}
                pool.submit(httpx.post, f"{service.http}/v1/recognize", content=body, headers=headers)
                time.sleep(FREEZE)
        finally:
            os.kill(worker, signal.SIGCONT)
        return total(metrics(service), "clip4str_crops_total", "deadline_exceeded") > 0

    until(wait)


def fail(service: RunningService) -> None:
    """Shows workers a crop that kills them, twice."""
    image = io.BytesIO()
    Image.new("RGB", (128, 32), COLOUR).save(image, "PNG")
    until(lambda: ready(service), LOADING)
    assert by_rest(service, [image.getvalue()]).outcomes == ["internal"]
    until(lambda: ready(service), LOADING)


def shown(expression: Expression) -> str:
    return expression.place


@pytest.mark.parametrize(
    "expression",
    [*expressions.alerts(), *expressions.dashboard(), *expressions.scaler(), *expressions.adapter()],
    ids=shown,
)
def test_expression_has_data(prometheus: Prometheus, expression: Expression) -> None:
    for selector in expressions.selectors(expression.text):
        assert prometheus.values(selector), f"no series: {selector}"
    found = prometheus.values(expression.text)
    assert found, f"no data: {expression.text}"
    assert all(map(math.isfinite, found)), f"{found}: {expression.text}"


def test_autoscalers_see_the_same_load(prometheus: Prometheus) -> None:
    by_keda = {each.place: each.text for each in expressions.scaler()}
    by_adapter = {each.place: each.text for each in expressions.adapter()}
    for keda, adapter in (
        ("load-ratio", "clip4str_load_ratio"),
        ("queue-wait", "clip4str_queue_wait_p95_seconds"),
    ):
        difference = f"({by_keda[keda]}) - sum({by_adapter[adapter]})"
        assert prometheus.values(difference) == [0.0]


def test_hpa_asks_for_what_the_adapter_makes() -> None:
    scaled = only(rendered(EVERYTHING), "HorizontalPodAutoscaler")["spec"]["metrics"]
    assert {metric["pods"]["metric"]["name"] for metric in scaled} == expressions.adapter_metrics()
