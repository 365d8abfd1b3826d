"""The chart lints, and renders valid objects for every values file on the oldest and the newest Kubernetes."""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
from cloudcoil.models.cert_manager import v1 as cert_manager
from cloudcoil.models.keda import v1alpha1 as keda
from cloudcoil.models.prometheus_operator import v1 as prometheus_operator

from tests.helm.charts import CHART, NEWEST, OLDEST, VALUES, Document, helm, named, rendered, template
from tests.helm.gateway_api import ROUTES, complaints

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
        if document["kind"] not in ROUTES:
            check(document, version)


def test_every_route_is_valid() -> None:
    routes = [each for values in VALUES for each in rendered(values) if each["kind"] in ROUTES]
    assert {each["kind"] for each in routes} == ROUTES
    assert complaints(routes) == []


def test_every_template_is_rendered_by_some_values() -> None:
    kinds = {document["kind"] for values in VALUES for document in rendered(values)}
    assert kinds == BUILT_IN | set(MODELS) | ROUTES


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
    ],
)
def test_checks_find_what_is_wrong(kind: str, spoil: Callable[[Document], None]) -> None:
    pool = rendered(CHART / "values" / "gpu-pool.yaml")
    spoiled = copy.deepcopy(next(each for each in pool if each["kind"] == kind))
    spoil(spoiled)
    with pytest.raises((AssertionError, kubernetes_validate.ValidationError)):
        check(spoiled, NEWEST)


def test_what_is_wrong_with_routes_is_found() -> None:
    pool = rendered(CHART / "values" / "gpu-pool.yaml")
    http, grpc = (
        next(each for each in pool if each["kind"] == kind) for kind in sorted(ROUTES, reverse=True)
    )
    spoiled = [copy.deepcopy(each) for each in (http, http, grpc, grpc)]
    spoiled[0]["spec"]["rules"][0]["backends"] = []
    spoiled[1]["spec"]["rules"][0]["timeouts"]["request"] = "soon"
    spoiled[2]["spec"]["rules"][0]["matches"][0]["method"]["svc"] = "x"
    spoiled[3]["spec"]["hostnames"] = ["Not A Host"]
    found = complaints(spoiled)
    assert len(found) >= len(spoiled)
    for part in ('"backends"', "timeouts/request", '"svc"', "hostnames/0"):
        assert any(part in complaint for complaint in found), found


def check(document: Document, version: str) -> None:
    """Raises AssertionError or kubernetes_validate.ValidationError unless it is valid, unknown fields included."""
    kind = document["kind"]
    if kind in MODELS:
        # A model drops what it does not know; what it gives back shows it.
        given_back = (
            MODELS[kind].model_validate(document).model_dump(mode="json", by_alias=True, exclude_unset=True)
        )
        assert given_back == document
    else:
        kubernetes_validate.validate(document, version, strict=True)
