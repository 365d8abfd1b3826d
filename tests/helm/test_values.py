"""What the chart takes, and what it refuses, in one line that names the value."""

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from clip4str_service.settings import PREFIX, Settings
from helm.schema import OWNED, settings_schema
from tests.helm.charts import VALUES, named, rendered, settings_of, template

DIGEST = json.dumps("0" * 64)


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("unknown=1", "unknown"),
        ("image.tga=1", "tga"),
        ('image.tag="latest"', "/image/tag"),
        ('image.digest="sha256:12"', "/image/digest"),
        ('image.pullPolicy="Sometimes"', "/image/pullPolicy"),
        ("replicas=0", "/replicas"),
        ('replicas="2"', "/replicas"),
        ("settings.queue_crop=1", "queue_crop"),
        ("settings.queue_crops=0", "/settings/queue_crops"),
        ('settings.precision="fp8"', "/settings/precision"),
        ('settings.devices="gpu"', "/settings/devices"),
        ("settings.http_port=0", "/settings/http_port"),
        ("settings.http_port=443", "/settings/http_port"),
        ('settings.model="base16"', "model"),
        ('settings.tls_key_file="/x"', "tls_key_file"),
        ('model.source="s3"', "/model/source"),
        ('model.fetch.sha256="abc"', "/model/fetch/sha256"),
        ('model.fetch.file="../x.pt"', "/model/fetch/file"),
        ('model.pvc.path="/etc/passwd"', "/model/pvc/path"),
        ('autoscaling.mode="vpa"', "/autoscaling/mode"),
        ("autoscaling.loadRatio=1.5", "/autoscaling/loadRatio"),
        ("autoscaling.queueWaitSeconds=0", "/autoscaling/queueWaitSeconds"),
        ('autoscaling.behavior.scaleUp.policies=[{"type":"Pods","valu":1}]', "valu"),
        ("resources.limit={}", "limit"),
        ('scheduling.tolerations=[{"keys":"x"}]', "keys"),
        ('scheduling.affinity={"podAntiaffinity":{}}', "podAntiaffinity"),
        ("rollout.marginSeconds=1", "/rollout/marginSeconds"),
        ("rollout.preStopSleepSeconds=-1", "/rollout/preStopSleepSeconds"),
        ("pod.runAsUser=0", "/pod/runAsUser"),
        ("networkPolicy.clients=[{}, 1]", "/networkPolicy/clients/1"),
        ('gateway.rest.parentRefs=[{"nam":"x"}]', "nam"),
        ('gateway.rest.timeout="soon"', "/gateway/rest/timeout"),
        ("alerts.refusedShare=5", "/alerts/refusedShare"),
        ("image=null", "image"),
    ],
)
def test_schema_refuses(setting: str, named: str) -> None:
    done = template(None, setting)
    assert done.returncode != 0
    assert "values don't meet the specifications of the schema" in done.stderr
    assert named in done.stderr


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (['model.source="pvc"'], "model.pvc: "),
        (['model.source="fetch"', f"model.fetch.sha256={DIGEST}"], "model.fetch: "),
        (['model.source="fetch"', 'model.fetch.url="https://a/b"'], "model.fetch: "),
        (
            ['model.source="fetch"', 'model.fetch.url="https://a/b"', f"model.fetch.sha256={DIGEST}"],
            "networkPolicy.egress: model.source",
        ),
        (
            ['settings.otlp_endpoint="http://a:4318/v1/traces"'],
            "networkPolicy.egress: settings.otlp_endpoint",
        ),
        (["tls.certManager.enabled=true"], "tls.certManager.issuerRef.name: "),
        (['tls.existingSecret="a"', "tls.certManager.enabled=true"], "tls: "),
        (['tls.clientCA.existingSecret="a"'], "tls.clientCA: "),
        (['autoscaling.mode="hpa"', "autoscaling.minReplicas=11"], "autoscaling.minReplicas "),
        (['autoscaling.mode="hpa"', "autoscaling.minReplicas=0"], "autoscaling.minReplicas: 0"),
        (['autoscaling.mode="keda"', "autoscaling.minReplicas=0"], "autoscaling.minReplicas: 0"),
        (["ingress.grpc.enabled=true"], "ingress.grpc.hosts: "),
        (["gateway.rest.enabled=true"], "gateway.rest.parentRefs: "),
    ],
)
def test_values_that_need_others_are_refused_without_them(settings: list[str], message: str) -> None:
    done = template(None, *settings)
    assert done.returncode != 0
    assert message in done.stderr


def test_every_setting_of_the_service_can_be_set() -> None:
    assert settings_schema().keys() | OWNED == Settings.model_fields.keys()


@pytest.mark.parametrize("values", VALUES, ids=named)
def test_the_service_takes_what_it_is_told(values: Path | None) -> None:
    told = settings_of(rendered(values))
    Settings.model_validate({name.removeprefix(PREFIX).lower(): value for name, value in told.items()})


def test_settings_reach_the_service_as_they_were_written() -> None:
    wanted: dict[str, object] = {
        "cache_bytes": 3_000_000_000,
        "cpu_processes": 3,
        "devices": "cpu",
        "frontends": 2,
        "host": "::",
        "log_level": "debug",
        "max_delay_ms": 0.25,
        "otlp_sample_ratio": 0.5,
        "precision": "bf16",
        "queue_bytes": 536_870_912,
        "queue_crops": 1_000_000,
        "threads": 7,
    }
    documents = rendered(None, *(f"settings.{name}={json.dumps(value)}" for name, value in wanted.items()))
    told = {name.removeprefix(PREFIX).lower(): value for name, value in settings_of(documents).items()}
    settings = Settings.model_validate(told)
    for name, value in wanted.items():
        found = getattr(settings, name)
        assert (",".join(found) if isinstance(found, tuple) else found) == value


@pytest.mark.parametrize("name", sorted(settings_schema()))
def test_limits_of_settings_are_those_of_the_service(name: str) -> None:
    limits = settings_schema()[name]
    beyond = [limits[kind] + step for kind, step in (("minimum", -1), ("maximum", 1)) if kind in limits]
    for value in beyond:
        if name.endswith("_port") and 0 <= value <= 65535:
            continue  # the service takes any; a pod is no root, and its ports are known before it starts
        with pytest.raises(ValidationError):
            Settings.model_validate({name: value})
