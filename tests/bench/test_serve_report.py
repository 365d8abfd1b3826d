"""What is told of results: the page, the promises, bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest

from bench import serve
from bench.serve_promises import promises
from bench.serve_report import Beside, Load, Point, Report, Result
from bench.serve_tables import tables


def a_point(clients: int, speed: float, p99: float) -> Point:
    return {
        "clients": clients,
        "crops_per_second": speed,
        "p50_ms": p99 / 4,
        "p95_ms": p99 / 2,
        "p99_ms": p99,
        "not_read": 0,
        "server_cpu": 7.5,
        "client_cpu": 0.25,
    }


def a_load(load: float, goodput: float, **more: Any) -> Load:
    fields: Load = {
        "load": load,
        "offered": 200 * load,
        "goodput": goodput,
        "answered_p50_ms": 300.0,
        "answered_p99_ms": 900.0,
        "refused": 0.5,
        "refused_p50_ms": 1.5,
        "refused_p99_ms": 9.5,
        "retry_after": 1.0,
        "held_back": 0.0,
        "late": 0.0,
        "failed": 0.0,
        "lag_p99_ms": 1.0,
        "rss_before": 1_000_000_000,
        "rss_after": 1_005_000_000,
    }
    return cast(Load, fields | more)


def a_result(name: str, *points: Point, **more: Any) -> Result:
    fields: Result = {
        "name": name,
        "title": name.title(),
        "ours": True,
        "crops": 1,
        "timeout_ms": 1000,
        "settings": {},
        "candidates": [],
        "wrong": 0,
        "points": list(points) or [a_point(1, 40, 30), a_point(2, 200, 50)],
        "beside": [],
        "peak": {
            "clients": 2,
            "crops_per_second": 200.0,
            "of_ceiling": 0.8,
            "rounds": [[250, 200, 250]],
            "server_cpu": 7.25,
            "client_cpu": 0.5,
        },
        "alone": {"p50_ms": 25.0, "bare_ms": 22.0, "added_ms": 3.5},
        "loads": [a_load(0.5, 100), a_load(2.0, 190)],
        "recovery_s": 0.5,
        "peak_rss": 1_500_000_000,
    }
    return cast(Result, fields | more)


REST: list[Beside] = [{"title": "Rest", "points": [a_point(1, 40, 30), a_point(2, 200, 50)]}]


def a_report(*results: Result) -> Report:
    return {
        "machine": {"device": "A processor", "threads": 2, "system": "Linux", "python": "3", "torch": "2"},
        "model": {"name": "default", "revision": "sha256:1f", "dtype": "float32", "device": "cpu"},
        "crops": 4096,
        "crop_bytes": 2709.4,
        "best_batch": 64,
        "seconds": 10.0,
        "overload_seconds": 120.0,
        "results": list(results),
    }


def rows(text: str, title: str) -> list[list[str]]:
    """The cells behind a row's title, in each table that has it."""
    return [
        line.strip("| \n").split(" | ")[1:] for line in text.splitlines() if line.startswith(f"| {title} |")
    ]


def test_the_tables_say_what_was_measured() -> None:
    batches = a_result(
        "rest-64", a_point(1, 150, 400), a_point(2, 210, 800), crops=64, timeout_ms=2000, alone=None
    )
    rival = a_result(
        "ray",
        a_point(1, 20, 60),
        a_point(2, 120, 90),
        ours=False,
        beside=[{"title": "Rest", "points": [a_point(1, 41, 31), a_point(2, 201, 51)]}],
        candidates=[
            {"RIVAL_BATCH": "32", "crops_per_second": 90.0},
            {"RIVAL_BATCH": "64", "crops_per_second": 120.0},
        ],
        recovery_s=None,
    )
    text = tables(a_report(a_result("rest"), batches, rival))
    assert rows(text, "Rest")[0] == ["2", "200.0", "80%", "12.5", "25.0", "50.0", "7.25", "0.50", "1,500"]
    assert rows(text, "Rest")[1] == ["25.0", "22.0", "3.5"]
    assert rows(text, "2") == [
        ["201.0 (51.0)", "120.0 (90.0)"],
        ["200.0 (50.0)"],
        ["210.0 (800.0)"],
    ]
    overloaded = (
        "2 × | 190.0 | 95% | 300.0 | 900.0 | 50.0% | 1.5 | 9.5 | 100% | 0.0% | 0.0% | 0.0% | 1,000 | 1,005"
    )
    assert rows(text, "Rest")[3] == overloaded.split(" | ")
    assert "Rest 0.5" in text
    assert "Ray not while it was watched" in text
    assert "- Ray: batch 64: 120.0 crops/s; batch 32: 90.0 crops/s" in text
    assert "deadlines of 1,000 ms (Rest, Ray) and of 2,000 ms (Rest-64)" in text
    assert rows(text, "Rest: of the bare model") == [["80%", "≥ 60%", "yes"]]
    assert rows(text, "Rest-64: of the bare model") == [["80%", "≥ 90%", "**no**"]]


def broken(report: Report) -> list[str]:
    return [promise.what for promise in promises(report) if not promise.kept]


def test_promises_that_are_kept() -> None:
    slower = a_result("ray", a_point(1, 39, 31), a_point(2, 199, 51), ours=False, beside=REST)
    kept = promises(a_report(a_result("rest"), slower))
    assert all(promise.kept for promise in kept)
    assert len(kept) == 10


@pytest.mark.parametrize(
    ("name", "more", "what"),
    [
        ("stream", {}, "Stream: of the bare model"),
        ("grpc", {}, "Grpc: added to one crop"),
        ("rest", {"wrong": 1}, "Rest: crops read otherwise"),
        ("rest", {"loads": [a_load(2.0, 170)]}, "Rest: in time at twice its best"),
        ("rest", {"loads": [a_load(2.0, 190, answered_p99_ms=1001.0)]}, "Rest: p99 of what it then reads"),
        ("rest", {"loads": [a_load(2.0, 190, refused_p99_ms=20.0)]}, "Rest: p99 to a refusal"),
        ("rest", {"loads": [a_load(2.0, 190, retry_after=0.99)]}, "Rest: refusals with Retry-After"),
        ("rest", {"loads": [a_load(2.0, 190, rss_after=1_021_000_000)]}, "Rest: memory at twice its best"),
        ("rest", {"recovery_s": 2.1}, "Rest: itself again after"),
        ("rest", {"recovery_s": None}, "Rest: itself again after"),
    ],
)
def test_promises_that_are_not(name: str, more: dict[str, Any], what: str) -> None:
    assert broken(a_report(a_result(name, **more))) == [what]


@pytest.mark.parametrize(
    ("point", "where"), [(a_point(2, 201, 51), "throughput at 2"), (a_point(2, 199, 50), "p99 at 2")]
)
def test_who_is_ahead_is_so_everywhere(point: Point, where: str) -> None:
    rival = a_result("ray", a_point(1, 39, 31), point, ours=False, beside=REST)
    (promise,) = (each for each in promises(a_report(a_result("rest"), rival)) if not each.kept)
    assert promise.figure == f"not in {where}"


def test_the_page_is_fresh() -> None:
    assert serve.main(["--check"]) == 0


def test_a_stale_page_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(serve, "PAGE", tmp_path / "performance.md")
    monkeypatch.setattr(serve, "RESULTS", tmp_path)
    serve.PAGE.write_text(f"before\n{serve.BEGIN}{serve.END}after\n")
    assert serve.main(["--check"]) == 1
    assert "run python bench/serve.py" in capsys.readouterr().err

    (tmp_path / "a-machine.json").write_text(json.dumps(a_report(a_result("rest"))))
    serve.PAGE.write_text(serve.page(serve.read_results(tmp_path)))
    assert serve.main(["--check"]) == 0
    text = serve.PAGE.read_text()
    assert text.startswith(f"before\n{serve.BEGIN}")
    assert "A processor" in text
    assert text.endswith(f"{serve.END}after\n")

    serve.PAGE.write_text("no place\n")
    assert serve.main(["--check"]) == 2


@pytest.mark.parametrize(("text", "message"), [("{", "not JSON"), ("[]", "no results of this program")])
def test_other_files_are_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(serve.ServeError, match=message):
        serve.read_results(tmp_path)


def test_bad_input_is_answered_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(serve, "RIVALS_PYTHON", tmp_path / "python")
    for arguments, message in (
        (["--only", "ray"], "make bench-rivals"),
        (["--only", "rest", "--seconds", "0"], "seconds must be above 0"),
        (["--only", "rest", "--output", str(tmp_path)], "is a folder"),
    ):
        assert serve.main(arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
