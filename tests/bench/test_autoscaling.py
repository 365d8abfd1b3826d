"""bench/autoscaling.py: what is checked, and what is said of results that are not there or not right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import autoscaling, autoscaling_cases
from bench.autoscaling_report import Level, Measured, Open, Run, Simulated
from bench.autoscaling_tables import NOTHING, section
from tests.bench.autoscaling import measured

OPEN: Open = {"offered": 150.0, "in_time": 149.0, "p50_ms": 21.0, "p99_ms": None, "refused": 0.1, "late": 0.0}


def a_level(utilisation: float) -> Level:
    return {
        "utilisation": utilisation,
        "items": 32.0,
        "wait_p95_ms": 12.0,
        "cpu": 0.6,
        "p99_ms": 90.0,
        "refused": 0.0,
    }


def a_run(case: str, policy: str) -> Run:
    return {
        "case": case,
        "policy": policy,
        "requests": 1000,
        "refused": 0.0125,
        "late": 0.0,
        "p50_ms": 20.0,
        "p99_ms": 700.0,
        "worst_p99_ms": 900.0,
        "pod_hours": 1.5,
        "most": 6,
        "changes": 3,
        "reversals": 1,
        "over_after_s": 40.0,
        "timeline": {
            "time_s": [5.0, 10.0],
            "offered": [300.0, 310.0],
            "replicas": [2, 3],
            "ready": [2, 2],
            "load_ratio": [0.1, 0.2],
            "p99_ms": [None, 20.0],
            "refused": [0.0, 0.1],
        },
    }


def simulated(digest: str) -> Simulated:
    cases = autoscaling_cases
    return {
        "digest": digest,
        "grid": [a_run(case, policy) for case in cases.CASES for policy in cases.POLICIES],
        "spike": [a_run("spike", policy) for policy in cases.VARIANTS],
        "slow": [a_run("slow", policy) for policy in cases.SLOW],
        "levels": [a_level(each) for each in cases.LEVELS],
        "pod": [OPEN],
    }


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A page, and results of it that are not there yet."""
    monkeypatch.setattr(autoscaling, "PAGE", tmp_path / "page.md")
    monkeypatch.setattr(autoscaling, "MEASURED", tmp_path / "measured.json")
    monkeypatch.setattr(autoscaling, "SIMULATED", tmp_path / "simulated.json")
    monkeypatch.setattr(autoscaling, "PICTURES", tmp_path / "pictures")
    (tmp_path / "page.md").write_text(f"before\n{autoscaling.BEGIN}what was there\n{autoscaling.END}after\n")
    return tmp_path


def store(folder: Path, found: Measured, digest: str | None = None) -> Simulated:
    played = simulated(digest or autoscaling.digest(found))
    autoscaling.write(folder / "measured.json", found)
    autoscaling.write(folder / "simulated.json", played)
    return played


def test_a_page_is_fresh_when_it_says_what_the_results_say(folder: Path) -> None:
    played = store(folder, measured())
    assert autoscaling.main(["--check"]) == 1
    (folder / "page.md").write_text(autoscaling.page())
    assert autoscaling.main(["--check"]) == 0
    text = (folder / "page.md").read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "what was there" not in text
    assert section(measured(), played) in text


def test_a_page_says_that_nothing_was_measured(folder: Path) -> None:
    assert autoscaling.main(["--check"]) == 1
    (folder / "page.md").write_text(autoscaling.page())
    assert autoscaling.main(["--check"]) == 0
    assert NOTHING in (folder / "page.md").read_text()


def test_results_come_back_as_they_were_written(folder: Path) -> None:
    played = store(folder, measured())
    assert json.loads((folder / "measured.json").read_text()) == measured()
    assert json.loads((folder / "simulated.json").read_text()) == played


def test_pictures_are_drawn_of_every_case(folder: Path) -> None:
    autoscaling.pictures(measured(), simulated(""))
    drawn = {picture.stem: picture.stat().st_size for picture in (folder / "pictures").glob("*.png")}
    assert set(drawn) == set(autoscaling_cases.CASES)
    assert max(drawn.values()) < 150_000


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda folder: (folder / "measured.json").unlink(), "measured.json"),
        (lambda folder: (folder / "measured.json").write_text("{"), "not JSON"),
        (lambda folder: (folder / "simulated.json").write_text("{}"), "no results of this program"),
        (lambda folder: store(folder, measured(), "another"), "not of what was measured"),
        (lambda folder: (folder / "page.md").write_text("nothing"), "expected the lines"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], spoil: object, complaint: str
) -> None:
    store(folder, measured())
    assert callable(spoil)
    spoil(folder)
    assert autoscaling.main(["--check"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("autoscaling: ")
    assert said.count("\n") == 1
    assert complaint in said
