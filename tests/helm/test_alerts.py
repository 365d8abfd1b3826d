"""The alerts: what promtool says of them, that they fire when they should, and that each has a runbook."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from helm.tools import PROMTOOL
from tests.helm.charts import CHART, EVERYTHING, ROOT, only, rendered

CASES = Path(__file__).parent / "alerts.yaml"
POOL = CHART / "values" / "gpu-pool.yaml"


def promtool(*arguments: str | Path) -> str:
    done = subprocess.run(
        [PROMTOOL, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def alerts(values: Path, *settings: str) -> list[dict[str, Any]]:
    (group,) = only(rendered(values, *settings), "PrometheusRule")["spec"]["groups"]
    rules: list[dict[str, Any]] = group["rules"]
    return rules


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump(only(rendered(POOL), "PrometheusRule")["spec"]), encoding="utf-8")
    return path


def test_rules_are_sound(rules: Path) -> None:
    assert f"{len(alerts(POOL))} rules found" in promtool(
        "check", "rules", "--lint=all", "--lint-fatal", rules
    )


def test_alerts_fire_when_they_should(rules: Path) -> None:
    cases = rules.with_name("alerts.yaml")
    shutil.copy(CASES, cases)
    assert "SUCCESS" in promtool("test", "rules", cases)


def test_every_alert_is_seen_firing_and_silent() -> None:
    cases = [
        case
        for test in yaml.safe_load(CASES.read_text(encoding="utf-8"))["tests"]
        for case in test["alert_rule_test"]
    ]
    names = {rule["alert"] for rule in alerts(POOL)}
    assert {case["alertname"] for case in cases if case.get("exp_alerts")} == names
    assert {case["alertname"] for case in cases if not case.get("exp_alerts")} == names


def test_every_alert_has_a_runbook() -> None:
    operations = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    anchors = {heading.lower() for heading in re.findall(r"^#+ (\w+)$", operations, re.MULTILINE)}
    for rule in alerts(POOL):
        page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert page == "docs/operations.md"
        assert anchor in anchors


def test_runbooks_are_where_the_values_say() -> None:
    for rule in alerts(EVERYTHING):
        assert rule["annotations"]["runbook_url"].startswith("https://docs.example.com/operations#clip4str")


def test_having_no_pods_is_no_alarm_when_that_may_be() -> None:
    awake = {rule["alert"] for rule in alerts(POOL)}
    query = 'autoscaling.keda.wakeUp.query="sum(rate(requests_total[1m]))"'
    asleep = {rule["alert"] for rule in alerts(POOL, "autoscaling.minReplicas=0", query)}
    assert awake - asleep == {"Clip4strDown"}
