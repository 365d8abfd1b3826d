"""`clip4str bench` with the shipped model and the published algorithm as its baseline."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clip4str.benchmark import measure as measuring
from clip4str.benchmark.measure import STAGES
from clip4str.benchmark.report import Plan, line, run

BASELINE = Path(__file__).parents[2] / "bench" / "published.py"


@pytest.fixture(autouse=True)
def short_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "_SECONDS", 0.0)
    monkeypatch.setattr(measuring, "_ROUNDS", 2)


def test_a_run_reports_what_it_ran() -> None:
    *results, report = run(Plan(["default"], [1, 3], "cpu", ["fp32", "bf16"], BASELINE))
    assert isinstance(report, dict)
    assert [(result["dtype"], result["batch"]) for result in report["results"]] == [
        ("float32", 1),
        ("float32", 3),
        ("bfloat16", 1),
        ("bfloat16", 3),
    ]
    assert [limit["dtype"] for limit in report["ceilings"]] == ["float32", "bfloat16"]
    for result in report["results"]:
        assert result["weights"] == "trained"
        assert set(result["stages_ms"]) == set(STAGES)
        assert all(result["stages_ms"][stage] > 0 for stage in STAGES[:-1])
        assert 0 < result["decode_share"] < 1
        assert 0 < result["utilisation"] < 1
        assert result["baseline"]["dtype"] == "float32"
        ratio = result["baseline"]["latency_ms"] / result["latency_ms"]
        assert result["baseline"]["speedup"] == pytest.approx(ratio)
    assert report["cold_start"]["load_s"] > 0
    assert json.loads(json.dumps(report)) == report
    assert len(line(results[0]).split()) == len(line().split()) - 4  # type: ignore[arg-type]  # of two words
