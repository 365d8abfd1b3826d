"""docker/compose.yaml fits the service: its ports, its time to drain, and what it may not do."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from clip4str_service.settings import Settings
from tests.docker.scripts import DOCKER

DEFAULTS = {name: field.default for name, field in Settings.model_fields.items()}


def loaded(name: str) -> Any:
    return yaml.safe_load((DOCKER / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    found: dict[str, Any] = loaded("compose.yaml")["services"]
    return found


def test_nothing_is_published_beyond_this_machine(services: dict[str, Any]) -> None:
    for service in services.values():
        for port in service["ports"]:
            assert port.startswith("127.0.0.1:"), port


def test_both_public_ports_are_published_and_metrics_are_not(services: dict[str, Any]) -> None:
    inside = {int(port.rpartition(":")[2]) for port in services["clip4str"]["ports"]}
    assert inside == {DEFAULTS["http_port"], DEFAULTS["grpc_port"]}


def test_the_service_is_scraped_where_it_tells(services: dict[str, Any]) -> None:
    (job,) = loaded("prometheus.yaml")["scrape_configs"]
    (static,) = job["static_configs"]
    (target,) = static["targets"]
    name, port = target.split(":")
    assert name in services
    assert int(port) == DEFAULTS["metrics_port"]


def test_grafana_asks_prometheus(services: dict[str, Any]) -> None:
    (source,) = loaded("grafana/datasources.yaml")["datasources"]
    inside = services["prometheus"]["ports"][0].rpartition(":")[2]
    assert source["url"] == f"http://prometheus:{inside}"
    (provider,) = loaded("grafana/dashboards.yaml")["providers"]
    mounted = {volume.split(":")[1] for volume in services["grafana"]["volumes"]}
    assert provider["options"]["path"] in mounted
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home.startswith(provider["options"]["path"])


def test_it_has_time_to_drain(services: dict[str, Any]) -> None:
    seconds = int(services["clip4str"]["stop_grace_period"].removesuffix("s"))
    assert seconds * 1000 >= DEFAULTS["drain_timeout_ms"] + 5000


def test_it_is_locked_down(services: dict[str, Any]) -> None:
    for service in services.values():
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
    assert services["clip4str"]["read_only"]


def test_versions_are_named(services: dict[str, Any]) -> None:
    for name in ("prometheus", "grafana"):
        assert re.search(r":v?\d+\.\d+\.\d+$", services[name]["image"])


def test_files_that_are_mounted_exist(services: dict[str, Any]) -> None:
    mounted = [volume.split(":")[0] for service in services.values() for volume in service.get("volumes", ())]
    assert all((DOCKER / path).is_file() for path in mounted if path.startswith("./"))
