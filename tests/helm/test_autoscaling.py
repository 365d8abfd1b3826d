"""The chart's defaults for scaling are those that the simulation justifies (docs/operations.md)."""

from typing import Any

import yaml

from bench.autoscaling_cases import BEHAVIOR, LOAD_RATIO, QUEUE_CROPS, QUEUE_WAIT
from bench.autoscaling_hpa import Rules
from tests.helm.charts import CHART


def test_defaults_are_the_simulated_ones() -> None:
    defaults = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))["autoscaling"]
    assert defaults["queueCrops"] == QUEUE_CROPS
    assert defaults["loadRatio"] == LOAD_RATIO
    assert defaults["queueWaitSeconds"] == QUEUE_WAIT
    assert defaults["behavior"] == {"scaleUp": rules(BEHAVIOR.up), "scaleDown": rules(BEHAVIOR.down)}


def rules(simulated: Rules) -> dict[str, Any]:
    """As Kubernetes writes them."""
    return {
        "stabilizationWindowSeconds": simulated.window,
        "selectPolicy": simulated.select,
        "policies": [
            {"type": policy.kind, "value": policy.value, "periodSeconds": policy.seconds}
            for policy in simulated.policies
        ],
    }
