"""A Prometheus of one's own that scrapes one service as the chart's ServiceMonitor has it scraped."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import yaml

from helm.tools import PROMETHEUS
from samples.demo import RunningService, free_ports
from tests.e2e.observed import until
from tests.helm.charts import NAMESPACE, RELEASE

_STOP_SECONDS = 30


@dataclass(frozen=True)
class Prometheus:
    """Where it listens."""

    url: str

    def values(self, expression: str) -> list[float]:
        """What an expression is now, one value for each series. Fails the test when it is no PromQL."""
        body = httpx.get(f"{self.url}/api/v1/query", params={"query": expression}, timeout=30).json()
        assert body["status"] == "success", f"{expression}: {body.get('error')}"
        found = body["data"]["result"]
        samples = [found] if body["data"]["resultType"] == "scalar" else [each["value"] for each in found]
        return [float(value) for _, value in samples]

    def ready(self) -> bool:
        """Whether it answers questions: until it has begun it refuses them."""
        try:
            return httpx.get(f"{self.url}/-/ready").status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def scraped(self) -> bool:
        """Whether the service was scraped."""
        return self.values("up") == [1.0]


@contextmanager
def scraping(service: RunningService, home: Path) -> Iterator[Prometheus]:
    """Runs Prometheus until the end; its data and its log go to `home`."""
    labels = {"namespace": NAMESPACE, "pod": f"{RELEASE}-0", "service": f"{RELEASE}-clip4str-metrics"}
    target = {"targets": [urlsplit(service.metrics).netloc], "labels": labels}
    jobs = [{"job_name": RELEASE, "static_configs": [target]}]
    config = home / "prometheus.yaml"
    config.write_text(
        yaml.safe_dump({"global": {"scrape_interval": "1s", "scrape_timeout": "1s"}, "scrape_configs": jobs}),
        encoding="utf-8",
    )
    (port,) = free_ports(1)
    command = [
        str(PROMETHEUS),
        f"--config.file={config}",
        f"--storage.tsdb.path={home / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (home / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            prometheus = Prometheus(f"http://127.0.0.1:{port}")
            until(prometheus.ready)
            until(prometheus.scraped)
            yield prometheus
        finally:
            process.terminate()
            process.wait(_STOP_SECONDS)
