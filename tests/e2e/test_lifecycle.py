"""From start to end: health on both protocols, metrics after traffic, a clean end, a clear failed start."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from clip4str.checkpoint import WEIGHTS
from clip4str_service.samples import Sample
from samples.demo import RunningService, free_ports, running_service
from tests.e2e.observed import PATIENT, metrics
from tests.e2e.traffic import WAYS

JPEG = {"Content-Type": "image/jpeg"}
SERVICE = "clip4str.v1.RecognitionService"


@pytest.mark.parametrize(
    "path",
    ["/livez", "/readyz", "/startupz", "/v2/health/live", "/v2/health/ready", "/v2/models/clip4str/ready"],
)
def test_health_over_rest(rest: httpx.Client, path: str) -> None:
    assert rest.get(path).status_code == httpx.codes.OK


def test_open_inference_model_metadata(rest: httpx.Client) -> None:
    assert rest.get("/v2/models/clip4str").json()["name"] == "clip4str"


def test_openapi_describes_the_recognize_call(rest: httpx.Client) -> None:
    paths = rest.get("/openapi.json").json()["paths"]
    content = paths["/v1/recognize"]["post"]["requestBody"]["content"]
    assert {"application/json", "multipart/form-data", "image/jpeg", "image/png"} <= set(content)
    assert rest.get("/docs").status_code == httpx.codes.OK


@pytest.mark.parametrize("name", ["", SERVICE])
def test_health_over_grpc(channel: grpc.Channel, name: str) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    request = health_pb2.HealthCheckRequest(service=name)
    answer = stub.Check(request, timeout=60)  # type: ignore[attr-defined]  # typeshed leaves it out
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_reflection_lists_the_service(channel: grpc.Channel) -> None:
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    (answer,) = stub.ServerReflectionInfo(iter([request]), timeout=60)  # type: ignore[operator]  # as above
    assert SERVICE in [each.name for each in answer.list_services_response.service]


def test_metrics_count_the_traffic(
    service: RunningService, rest: httpx.Client, samples: list[Sample]
) -> None:
    rest.post("/v1/recognize", content=samples[0].content, headers=JPEG).raise_for_status()
    before = metrics(service)
    rest.post("/v1/recognize", content=samples[0].content, headers=JPEG).raise_for_status()
    assert rest.post("/v1/recognize", content=b"nothing", headers=JPEG).is_client_error
    after = metrics(service)

    def grown(*key: str) -> float:
        return after[key] - before.get(key, 0.0)

    assert after["clip4str_ready",] == 1
    assert grown("clip4str_word_confidence_count") == 1
    assert grown("clip4str_batch_size_count") == 1
    crops = [name for name in after if name[0] == "clip4str_crops_total"]
    assert sum(grown(*name) for name in crops) == 2
    requests = [name for name in after if name[0] == "clip4str_requests_total"]
    assert sum(grown(*name) for name in requests) == 2
    assert any(name[0] == "clip4str_build_info" for name in after)
    assert httpx.get(f"{service.http}/metrics").status_code == httpx.codes.NOT_FOUND


def test_full_disk_for_logs_harms_nobody(samples: list[Sample]) -> None:
    with running_service(output=Path("/dev/full")) as service:
        for ask in WAYS.values():
            for sample in samples:
                assert ask(service, [sample.content]).outcomes == [sample.text]
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(PATIENT) == 0


@pytest.mark.parametrize("kind", ["missing", "cut short"])
def test_model_that_cannot_be_loaded_ends_the_start_with_one_clear_line(tmp_path: Path, kind: str) -> None:
    model = tmp_path / "model.safetensors"
    if kind == "cut short":
        content = (WEIGHTS / "default.safetensors").read_bytes()
        model.write_bytes(content[: len(content) // 2])
    ports = dict(zip(("HTTP", "GRPC", "METRICS"), free_ports(3), strict=True))
    settings = {f"CLIP4STR_{name}_PORT": str(port) for name, port in ports.items()}
    ended = subprocess.run(
        [sys.executable, "-m", "clip4str_service"],
        env={**os.environ, **settings, "CLIP4STR_MODEL": str(model)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert str(model) in line
    assert "Traceback" not in ended.stdout
