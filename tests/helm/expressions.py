"""Every PromQL expression that the chart ships, and what is in it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import promql_parser
import yaml

from tests.helm.charts import CHART, NAMESPACE, only, rendered

POOL = CHART / "values" / "gpu-pool.yaml"

_COMPARISONS = {"<", "<=", "==", "!=", ">=", ">"}


class Expression(NamedTuple):
    """Where it is used, and the text; of a condition, such as an alert's, what is compared."""

    place: str
    text: str


def alerts() -> Iterator[Expression]:
    """What the alerts compare: while all is well the comparison itself has no result."""
    for group in only(rendered(POOL), "PrometheusRule")["spec"]["groups"]:
        for rule in group["rules"]:
            yield Expression(rule["alert"], compared(rule["expr"]))


def dashboard() -> Iterator[Expression]:
    """The dashboard's, with its variables as they are when all is chosen."""
    panels = json.loads((CHART / "dashboards" / "clip4str.json").read_text(encoding="utf-8"))["panels"]
    for panel in panels:
        for target in panel.get("targets", ()):
            text = target["expr"]
            for variable, value in (("$namespace", ".*"), ("$job", ".*"), ("$__rate_interval", "1m")):
                text = text.replace(variable, value)
            yield Expression(f"{panel['title']} {target['refId']}", text)


def scaler() -> Iterator[Expression]:
    """KEDA's."""
    for trigger in only(rendered(POOL), "ScaledObject")["spec"]["triggers"]:
        yield Expression(trigger["name"], trigger["metadata"]["query"])


def adapter() -> Iterator[Expression]:
    """prometheus-adapter's, as it fills them in for the pods of a namespace; and what it finds series by."""
    for rule in _adapter_rules():
        text = rule["metricsQuery"]
        for part, value in (
            ("<<.Series>>", rule["seriesQuery"].partition("{")[0]),
            ("<<.LabelMatchers>>", f'namespace="{NAMESPACE}",pod=~"words-0"'),
            ("<<.GroupBy>>", "pod"),
        ):
            text = text.replace(part, value)
        yield Expression(rule["name"]["as"], text)
        yield Expression(f"series of {rule['name']['as']}", rule["seriesQuery"])


def adapter_metrics() -> set[str]:
    """Names of the metrics that prometheus-adapter makes."""
    return {rule["name"]["as"] for rule in _adapter_rules()}


def _adapter_rules() -> list[dict[str, Any]]:
    text = (CHART / "adapter" / "prometheus-adapter.yaml").read_text(encoding="utf-8")
    rules: list[dict[str, Any]] = yaml.safe_load(text)["rules"]["custom"]
    return rules


def compared(text: str) -> str:
    """The left side of a condition. Fails the test when the text is none."""
    parsed = promql_parser.parse(text)
    assert isinstance(parsed, promql_parser.BinaryExpr), text
    assert str(parsed.op) in _COMPARISONS, text
    assert isinstance(parsed.rhs, promql_parser.NumberLiteral), text
    return str(parsed.lhs.prettify())


def selectors(text: str) -> list[str]:
    """The series that an expression is made of, each as an expression of its own."""
    found: list[str] = []

    def visit(node: Any) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            found.append(str(node.prettify()))

    promql_parser.walk(promql_parser.parse(text), visit)
    return found
