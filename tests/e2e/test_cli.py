"""The `clip4str` command with the shipped model, as a user runs it."""

import json
import subprocess
import sys
from pathlib import Path

from clip4str_service.samples import Sample
from samples.demo import SAMPLES


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).parent / "clip4str", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


def test_read_prints_the_words_in_order(samples: list[Sample]) -> None:
    ended = run("read", *(SAMPLES / sample.name for sample in samples))
    assert (ended.returncode, ended.stderr) == (0, "")
    assert [line.split()[0] for line in ended.stdout.splitlines()[1:]] == [sample.text for sample in samples]


def test_read_json_has_both_branches_and_alternatives(samples: list[Sample]) -> None:
    ended = run("read", SAMPLES / samples[0].name, "--json", "--top-k", "2")
    reading = json.loads(ended.stdout)
    assert (reading["file"], reading["text"]) == (str(SAMPLES / samples[0].name), samples[0].text)
    assert set(reading["branches"]) == {"visual", "cross_modal"}
    assert len(reading["branches"]["visual"]["characters"][0]["alternatives"]) == 2


def test_read_stops_at_a_bad_image_with_one_line(samples: list[Sample], tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(samples[0].content[:100])
    ended = run("read", SAMPLES / samples[0].name, broken)
    assert ended.returncode == 2
    assert str(broken) in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_eval_measures_the_samples_as_all_right(samples: list[Sample], tmp_path: Path) -> None:
    report_path = tmp_path / "report.json"
    ended = run("eval", "--data", SAMPLES, "--json", report_path)
    assert (ended.returncode, ended.stderr) == (0, "")
    report = json.loads(report_path.read_text())
    assert report["model"]["name"] == "default"
    measured = report["sets"]["samples"]
    assert measured["n"] == len(samples)
    assert measured["accuracy_94"]["final"] == measured["accuracy_36"]["final"] == 100.0
    assert 0.0 < measured["mean_confidence"] <= 1.0
    assert "samples" in ended.stdout
