"""The chart lints, and renders valid objects for every values file on the oldest and the newest Kubernetes."""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
from cloudcoil.models.cert_manager import v1 as cert_manager
from cloudcoil.models.keda import v1alpha1 as keda
from cloudcoil.models.prometheus_operator import v1 as prometheus_operator

from tests.helm.charts import CHART, NEWEST, OLDEST, VALUES, Document, helm, named, rendered, template
from tests.helm.gateway_api import ROUTES

MODELS: Mapping[str, Any] = {
    "Certificate": cert_manager.Certificate,
    "PodMonitor": prometheus_operator.PodMonitor,
    "PrometheusRule": prometheus_operator.PrometheusRule,
    "ScaledObject": keda.ScaledObject,
    "ServiceMonitor": prometheus_operator.ServiceMonitor,
}

BUILT_IN = {
    "ConfigMap",
    "Deployment",
    "HorizontalPodAutoscaler",
    "Ingress",
    "NetworkPolicy",
    "Pod",
    "PodDisruptionBudget",
    "Service",
    "ServiceAccount",
}


@pytest.mark.parametrize("values", VALUES, ids=named)
def test_lint_finds_nothing(values: Path | None) -> None:
    files = [] if values is None else ["--values", str(values)]
    done = helm("lint", "--strict", "--kube-version", NEWEST, str(CHART), *files)
    assert done.returncode == 0, done.stdout
    assert "[WARNING]" not in done.stdout


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize("values", VALUES, ids=named)
def test_every_object_is_valid(values: Path | None, version: str) -> None:
    for document in rendered(values, version=version):
        check(document, version)


def test_every_template_is_rendered_by_some_values() -> None:
    kinds = {document["kind"] for values in VALUES for document in rendered(values)}
    assert kinds == BUILT_IN | set(MODELS) | set(ROUTES)


def test_older_kubernetes_is_refused() -> None:
    done = template(None, version="1.29")
    assert done.returncode != 0
    assert "incompatible with Kubernetes v1.29" in done.stderr


@pytest.mark.parametrize(
    ("kind", "spoil"),
    [
        ("Deployment", lambda each: each["spec"]["template"]["spec"].update(terminationGracePeriod=1)),
        ("Service", lambda each: each["spec"].update(sessionaffinity="None")),
        ("ScaledObject", lambda each: each["spec"].update(maxReplicas=3)),
        ("ScaledObject", lambda each: each["spec"]["triggers"][0].update(metric="x")),
        ("ServiceMonitor", lambda each: each["spec"]["endpoints"][0].update(intervall="1s")),
        ("PrometheusRule", lambda each: each["spec"]["groups"][0]["rules"][0].update(four="1m")),
        ("Certificate", lambda each: each["spec"].update(dnsName="x")),
        ("HTTPRoute", lambda each: each["spec"]["rules"][0].update(backends=[])),
        ("GRPCRoute", lambda each: each["spec"].update(hostnames=["Not A Host"])),
    ],
)
def test_checks_find_what_is_wrong(kind: str, spoil: Callable[[Document], None]) -> None:
    pool = rendered(CHART / "values" / "gpu-pool.yaml")
    spoiled = copy.deepcopy(next(each for each in pool if each["kind"] == kind))
    spoil(spoiled)
    with pytest.raises((AssertionError, jsonschema.ValidationError)):
        check(spoiled, NEWEST)


def check(document: Document, version: str) -> None:
    """Raises AssertionError or jsonschema's ValidationError unless the object is valid, unknown fields included."""
    kind = document["kind"]
    if kind in MODELS:
        # A model drops what it does not know; what it gives back shows it.
        given_back = (
            MODELS[kind].model_validate(document).model_dump(mode="json", by_alias=True, exclude_unset=True)
        )
        assert given_back == document
    elif kind in ROUTES:
        jsonschema.validate(document, ROUTES[kind])
    else:
        kubernetes_validate.validate(document, version, strict=True)
