"""What every pod of the chart satisfies, whatever the values: security, probes, resources, time to drain."""

import math
import re
from pathlib import Path
from typing import Any

import pytest

from clip4str_service.settings import PREFIX, Settings
from tests.helm.charts import (
    CHART,
    EVERYTHING,
    VALUES,
    Pod,
    named,
    of_kind,
    only,
    pods,
    rendered,
    server,
    settings_of,
)

PROCESS_SHM = 768 << 10
"""Bytes that each process of the service takes of /dev/shm."""

OTHER_PROCESSES = 2
"""The supervisor and, meanwhile, one that is started in place of another."""

_UNITS = {"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}

every = pytest.mark.parametrize("values", VALUES, ids=named)


def containers(pod: Pod) -> list[dict[str, Any]]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def size(quantity: str) -> int:
    return int(quantity[:-2]) * _UNITS[quantity[-2:]]


@every
def test_pods_meet_the_restricted_standard(values: Path | None) -> None:
    for pod in pods(rendered(values)):
        security = pod["securityContext"]
        assert security["runAsNonRoot"] is True
        assert security["runAsUser"] > 0
        assert security["runAsGroup"] > 0
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not pod.keys() & {"hostNetwork", "hostPID", "hostIPC"}
        kinds = {kind for volume in pod["volumes"] for kind in volume if kind != "name"}
        assert kinds <= {"configMap", "emptyDir", "persistentVolumeClaim", "secret"}
        for container in containers(pod):
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["readOnlyRootFilesystem"] is True
            assert security["runAsNonRoot"] is True
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert "privileged" not in security
            assert all("hostPort" not in port for port in container.get("ports", []))


@every
def test_pods_hold_no_token_and_no_links_of_services(values: Path | None) -> None:
    documents = rendered(values)
    for pod in pods(documents):
        assert pod["automountServiceAccountToken"] is False
        # Of a Service named clip4str-grpc the link would be CLIP4STR_GRPC_PORT=tcp://…
        assert pod["enableServiceLinks"] is False
    for account in of_kind(documents, "ServiceAccount"):
        assert account["automountServiceAccountToken"] is False


@every
def test_containers_have_requests_and_limits(values: Path | None) -> None:
    for pod in pods(rendered(values)):
        for container in containers(pod):
            for kind in ("requests", "limits"):
                assert {"cpu", "memory"} <= container["resources"][kind].keys()
            assert size_of_memory(container, "requests") <= size_of_memory(container, "limits")


def size_of_memory(container: dict[str, Any], kind: str) -> int:
    return size(container["resources"][kind]["memory"])


@every
def test_images_are_pinned(values: Path | None) -> None:
    for pod in pods(rendered(values)):
        for container in containers(pod):
            image = container["image"]
            assert re.search(r"(:[^:/@]+|@sha256:[0-9a-f]{64})$", image), image
            assert not image.endswith(":latest")


@every
def test_probes_ask_the_metrics_port(values: Path | None) -> None:
    container = server(rendered(values))
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    told = settings_of(rendered(values))
    assert ports == {
        name: int(told.get(f"{PREFIX}{name.upper()}_PORT", Settings.model_fields[f"{name}_port"].default))
        for name in ("http", "grpc", "metrics")
    }
    for probe, path in (("startup", "/startupz"), ("readiness", "/readyz"), ("liveness", "/livez")):
        assert container[f"{probe}Probe"]["httpGet"] == {"path": path, "port": "metrics"}
    start = container["startupProbe"]
    assert (
        start["periodSeconds"] * start["failureThreshold"] >= 180
    )  # a loading process may be silent so long


@every
def test_grace_is_longer_than_the_drain(values: Path | None) -> None:
    documents = rendered(values)
    pod = only(documents, "Deployment")["spec"]["template"]["spec"]
    drain = settings_of(documents).get(f"{PREFIX}DRAIN_TIMEOUT_MS")
    drain_ms = Settings.model_fields["drain_timeout_ms"].default if drain is None else float(drain)
    sleep = server(documents)["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert sleep > 0
    assert pod["terminationGracePeriodSeconds"] >= sleep + math.ceil(drain_ms / 1000) + 10


def test_grace_is_the_sum_of_what_it_is_for() -> None:
    deployment = only(
        rendered(None, "rollout.preStopSleepSeconds=0", "settings.drain_timeout_ms=61001"), "Deployment"
    )
    pod = deployment["spec"]["template"]["spec"]
    assert "lifecycle" not in pod["containers"][0]
    assert pod["terminationGracePeriodSeconds"] == 0 + 62 + 10


@every
def test_shared_memory_holds_the_counts_of_every_process(values: Path | None) -> None:
    documents = rendered(values)
    pod = only(documents, "Deployment")["spec"]["template"]["spec"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes["shm"]["emptyDir"]["medium"] == "Memory"
    mounts = {mount["mountPath"]: mount["name"] for mount in server(documents)["volumeMounts"]}
    assert (mounts["/dev/shm"], mounts["/tmp"]) == ("shm", "tmp")  # noqa: S108 (paths in a container)
    told = settings_of(documents)
    front_ends = int(told.get(f"{PREFIX}FRONTENDS", 1))
    devices = len(told.get(f"{PREFIX}DEVICES", "auto").split(","))
    processes = front_ends + max(8, devices) + OTHER_PROCESSES  # a CPU has eight workers at most by itself
    assert size(volumes["shm"]["emptyDir"]["sizeLimit"]) >= processes * PROCESS_SHM


@every
def test_secrets_are_only_named(values: Path | None) -> None:
    assert not of_kind(rendered(values), "Secret")


@every
def test_services_select_the_pods_and_their_ports(values: Path | None) -> None:
    documents = rendered(values)
    template = only(documents, "Deployment")["spec"]["template"]
    ports = {port["name"] for port in server(documents)["ports"]}
    for service in of_kind(documents, "Service"):
        selector = service["spec"]["selector"].items()
        assert selector <= template["metadata"]["labels"].items()
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
        for test in of_kind(documents, "Pod"):
            assert not selector <= test["metadata"]["labels"].items()


@every
def test_autoscaler_alone_says_how_many_pods_there_are(values: Path | None) -> None:
    documents = rendered(values)
    scaled = of_kind(documents, "HorizontalPodAutoscaler") + of_kind(documents, "ScaledObject")
    assert ("replicas" in only(documents, "Deployment")["spec"]) is not bool(scaled)


def test_pods_listen_on_all_addresses_and_read_what_is_mounted() -> None:
    told = settings_of(rendered(EVERYTHING))
    mounts = {mount["mountPath"]: mount["name"] for mount in server(rendered(EVERYTHING))["volumeMounts"]}
    assert told[f"{PREFIX}HOST"] == "0.0.0.0"  # noqa: S104 (of a pod)
    for name, mount in (
        ("API_KEYS_FILE", "keys"),
        ("TLS_CERT_FILE", "tls"),
        ("TLS_KEY_FILE", "tls"),
        ("TLS_CLIENT_CA_FILE", "client-ca"),
        ("MODEL", "models"),
    ):
        folder, _, _ = told[f"{PREFIX}{name}"].rpartition("/")
        assert mounts[folder] == mount


def test_fetched_model_is_verified_where_it_is_read() -> None:
    documents = rendered(EVERYTHING)
    pod = only(documents, "Deployment")["spec"]["template"]["spec"]
    (fetching,) = pod["initContainers"]
    assert fetching["command"] == ["clip4str", "fetch"]
    url, *flags = fetching["args"]
    assert url == "https://models.example.com/words.safetensors"
    assert flags[:2] == ["--sha256", "0123456789abcdef" * 4]
    assert flags[2:] == ["--output", settings_of(documents)[f"{PREFIX}MODEL"]]


def test_each_gpu_is_a_device() -> None:
    documents = rendered(CHART / "values" / "one-gpu.yaml", "gpu.count=2")
    assert settings_of(documents)[f"{PREFIX}DEVICES"] == "cuda:0,cuda:1"
    for kind in ("requests", "limits"):
        assert server(documents)["resources"][kind]["nvidia.com/gpu"] == 2
    pod = only(documents, "Deployment")["spec"]["template"]["spec"]
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in pod["tolerations"]


def test_pods_are_replaced_when_settings_change() -> None:
    def checksum(*settings: str) -> str:
        metadata = only(rendered(None, *settings), "Deployment")["spec"]["template"]["metadata"]
        found: str = metadata["annotations"]["checksum/settings"]
        return found

    assert checksum("settings.max_batch=32") != checksum("settings.max_batch=33")
    assert checksum("settings.max_batch=32") == checksum("settings.max_batch=32", "replicas=7")


def test_queues_of_pods_that_come_and_go_are_short() -> None:
    def queue(*settings: str) -> str | None:
        return settings_of(rendered(None, *settings)).get(f"{PREFIX}QUEUE_CROPS")

    assert queue() is None
    assert queue('autoscaling.mode="hpa"', "autoscaling.queueCrops=300") == "300"
    assert queue('autoscaling.mode="hpa"', "settings.queue_crops=2000") == "2000"


def test_lost_metrics_are_no_calm_unless_there_may_be_no_pods() -> None:
    def ignored(*settings: str) -> set[str]:
        scaled = only(rendered(CHART / "values" / "gpu-pool.yaml", *settings), "ScaledObject")["spec"]
        return {trigger["metadata"]["ignoreNullValues"] for trigger in scaled["triggers"]}

    assert ignored() == {"false"}
    assert ignored("autoscaling.minReplicas=0", 'autoscaling.keda.wakeUp.query="up"') == {"true"}
