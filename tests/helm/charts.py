"""The chart, rendered by helm as users render it, and its objects by kind."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from helm.schema import OLDEST_KUBERNETES
from helm.tools import HELM

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "clip4str"

OLDEST, NEWEST = OLDEST_KUBERNETES, "1.37"
RELEASE, NAMESPACE = "words", "reading"

EVERYTHING = Path(__file__).parent / "cpu-hpa.yaml"
"""Values that, with the shipped files, use every template and each of its branches."""

VALUES = (None, *sorted((CHART / "values").glob("*.yaml")), EVERYTHING)
"""None: the defaults alone."""

Document: TypeAlias = dict[str, Any]
Pod: TypeAlias = dict[str, Any]


def named(values: Path | None) -> str:
    """For the name of a test."""
    return "defaults" if values is None else values.stem


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs helm; the caller looks whether it succeeded."""
    return subprocess.run([HELM, *arguments], capture_output=True, text=True, check=False, timeout=60)


def template(values: Path | None, *settings: str, version: str = NEWEST) -> subprocess.CompletedProcess[str]:
    """`helm template`, with `key=value` settings on top of a file."""
    files = [] if values is None else ["--values", str(values)]
    sets = [part for setting in settings for part in ("--set-json", setting)]
    where = ["--namespace", NAMESPACE, "--kube-version", version]
    return helm("template", RELEASE, str(CHART), *where, *files, *sets)


@functools.cache
def rendered(values: Path | None, *settings: str, version: str = NEWEST) -> Sequence[Document]:
    """The objects. Settings are `key=JSON`."""
    done = template(values, *settings, version=version)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def of_kind(documents: Sequence[Document], kind: str) -> list[Document]:
    """Those of one kind."""
    return [document for document in documents if document["kind"] == kind]


def only(documents: Sequence[Document], kind: str) -> Document:
    """The one of its kind."""
    (found,) = of_kind(documents, kind)
    return found


def pods(documents: Sequence[Document]) -> list[Pod]:
    """The specifications of all pods: the Deployment's, and those of helm's tests."""
    templates = [each["spec"]["template"]["spec"] for each in of_kind(documents, "Deployment")]
    return [*templates, *(each["spec"] for each in of_kind(documents, "Pod"))]


def server(documents: Sequence[Document]) -> dict[str, Any]:
    """The container that serves."""
    containers = only(documents, "Deployment")["spec"]["template"]["spec"]["containers"]
    found: dict[str, Any] = next(each for each in containers if each["name"] == "server")
    return found


def settings_of(documents: Sequence[Document]) -> dict[str, str]:
    """What the service is told by the ConfigMap of settings."""
    name = server(documents)["envFrom"][0]["configMapRef"]["name"]
    (found,) = (each for each in of_kind(documents, "ConfigMap") if each["metadata"]["name"] == name)
    data: dict[str, str] = found["data"]
    return data
