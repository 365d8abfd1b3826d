"""The commands that ask a running service: `clip4str-service health` and `clip4str-service samples`."""

import pytest

from clip4str_service.__main__ import main
from samples.demo import SAMPLES, RunningService


def test_health(service: RunningService, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["health", "--metrics-port", service.metrics.rpartition(":")[2]]) == 0
    assert capsys.readouterr().out == f"{service.metrics}/readyz: ready\n"


def test_samples(service: RunningService, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["samples", "--rest", service.http, "--grpc", service.grpc, str(SAMPLES)]) == 0
    assert "12 of 12 samples read right" in capsys.readouterr().out
