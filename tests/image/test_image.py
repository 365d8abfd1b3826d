"""The image under test: what it is, what it may not do, that it reads, and that it stops without losing anything."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator

import httpx
import pytest

from clip4str_service.__main__ import main
from clip4str_service.samples import Sample, load_samples
from clip4str_service.settings import variable
from samples.demo import SAMPLES, RunningService, running_service
from tests.e2e.observed import until
from tests.e2e.traffic import WAYS, in_flight
from tests.image.engine import Container, Engine, fresh_name, offline

GIB = 1 << 30
CPU_LIMIT = 1_600_000_000  # bytes, unpacked
GRACE = 120.0  # seconds that the service grants accepted crops
SETTINGS = tuple(
    variable(name)
    for name in ("host", "http_port", "grpc_port", "metrics_port", "default_timeout_ms", "drain_timeout_ms")
)
USER = 10001


@pytest.fixture(scope="module")
def engine(pytestconfig: pytest.Config) -> Engine:
    return Engine.named(pytestconfig.getoption("--engine"), pytestconfig.getoption("--image"))


@pytest.fixture(scope="module")
def container(engine: Engine) -> Iterator[Container]:
    """The service, alone in the world."""
    with offline(engine) as running:
        yield running


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return load_samples(SAMPLES)


@pytest.fixture
def service(engine: Engine) -> Iterator[RunningService]:
    """The service on this machine's network, in a container that passes signals on."""
    name = fresh_name()
    milliseconds = str(round(1000 * GRACE))
    try:
        with running_service(
            command=engine.run(name, "host", SETTINGS),
            CLIP4STR_DEFAULT_TIMEOUT_MS=milliseconds,
            CLIP4STR_DRAIN_TIMEOUT_MS=milliseconds,
        ) as running:
            yield running
    finally:
        engine.remove(name)


def test_it_says_how_it_is_run(engine: Engine) -> None:
    known = engine.inspect()
    config = known["Config"]
    assert config["User"] == f"{USER}:{USER}"
    assert config["Entrypoint"] == ["tini", "--", "clip4str-service"]
    health = config.get("Healthcheck") or known["Healthcheck"]  # podman keeps it elsewhere
    assert health["Test"] == ["CMD", "clip4str-service", "health"]
    labels = config["Labels"]
    for name in ("title", "description", "licenses", "version", "revision", "base.name"):
        assert labels[f"org.opencontainers.image.{name}"]


def test_size(engine: Engine) -> None:
    """Without CUDA's libraries it is small; with them, PyTorch's wheels alone are more than 4 GiB."""
    with_cuda = "NVIDIA_VISIBLE_DEVICES=all" in engine.inspect()["Config"]["Env"]
    assert engine.inspect()["Size"] <= (8 * GIB if with_cuda else CPU_LIMIT)


def test_it_has_no_rights(container: Container) -> None:
    status = dict(line.split(":\t", 1) for line in container.says("cat", "/proc/1/status").splitlines())
    assert status["Uid"].split() == [str(USER)] * 4
    assert status["Gid"].split() == [str(USER)] * 4
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
    assert status["NoNewPrivs"] == "1"


@pytest.mark.parametrize("path", ["/x", "/opt/clip4str/x", "/models/x"])
def test_it_can_write_nothing(container: Container, path: str) -> None:
    ended = container.execute("touch", path)
    assert ended.returncode != 0
    assert "Read-only file system" in ended.stderr


@pytest.mark.parametrize("tool", ["cc", "gcc", "make", "curl", "git"])
def test_it_has_no_tools(container: Container, tool: str) -> None:
    assert container.execute("sh", "-c", f"command -v {tool}").returncode != 0


def test_nothing_can_be_installed(container: Container) -> None:
    ended = container.execute("/opt/clip4str/bin/python", "-m", "pip", "--version")
    assert "No module named pip" in ended.stderr


def test_it_lists_what_it_holds(container: Container) -> None:
    bill = json.loads(container.says("cat", "/usr/share/doc/clip4str/clip4str.cdx.json"))
    held = {component["name"]: component["version"] for component in bill["components"]}
    assert bill["bomFormat"] == "CycloneDX"
    installed = container.says(
        "python", "-c", "from importlib.metadata import distributions as d; print(*{x.name for x in d()})"
    )
    assert {name.lower().replace("_", "-") for name in held} == {
        name.lower().replace("_", "-") for name in installed.split()
    }


def test_it_reads_without_a_network(container: Container) -> None:
    assert "12 of 12 samples read right" in container.says("clip4str-service", "samples")


def test_health(container: Container) -> None:
    assert container.says("clip4str-service", "health") == "http://127.0.0.1:9090/readyz: ready\n"
    assert container.execute("clip4str-service", "health", "--metrics-port", "1").returncode == 1


def test_it_drains(
    service: RunningService, samples: list[Sample], capsys: pytest.CaptureFixture[str]
) -> None:
    """What was accepted is answered, who comes later is sent elsewhere, and the end is a good one."""
    assert main(["samples", "--rest", service.http, "--grpc", service.grpc, str(SAMPLES)]) == 0
    assert "12 of 12 samples read right" in capsys.readouterr().out
    with in_flight(service, samples) as burst:
        service.process.send_signal(signal.SIGTERM)
        until(lambda: httpx.get(f"{service.metrics}/readyz").status_code == httpx.codes.SERVICE_UNAVAILABLE)
        late = {name: ask(service, [samples[0].content]).outcomes for name, ask in WAYS.items()}
    assert service.process.wait(GRACE) == 0
    burst.check()
    assert late == {name: ["draining"] for name in WAYS}
