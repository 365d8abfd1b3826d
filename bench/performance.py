"""Write the tables of docs/performance.md from the JSON files in bench/results, or check that they are fresh.

`python bench/performance.py [--check]`; `make bench` measures this machine first.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- tables: begin -->\n", "<!-- tables: end -->\n"
STAGES = ("preprocess", "encode", "visual", "caption", "cross_modal", "refine", "postprocess")


def tables(report: dict[str, Any]) -> str:
    """One machine's report as Markdown."""
    machine, cold = report["machine"], report["cold_start"]
    where = f"{machine['device']}, {machine['threads']} CPU threads, torch {machine['torch']}"
    limits = "; ".join(
        f"{limit['dtype']} {limit['flops'] / 1e9:,.0f} GFLOP/s, {limit['bandwidth'] / 1e9:,.0f} GB/s"
        for limit in report["ceilings"]
    )
    results = report["results"]
    speed = _table(
        "model | weights | computes in | batch | characters | agreement | crops/s | from images | latency, ms "
        "| of ceiling | baseline, ms | faster",
        [_speed(result) for result in results],
    )
    stages = _table(
        "model | computes in | batch | "
        + " | ".join(name.replace("_", "-") for name in STAGES)
        + " | decoding",
        [_stages(result) for result in results],
    )
    start = cold["import_torch_s"] + cold["import_rest_s"] + cold["load_s"] + cold["first_read_s"]
    return (
        f"### {where}\n\nCeiling: {limits}.\n\n{speed}\nMilliseconds of a batch, by part:\n\n{stages}\n"
        f"A new process reads its first crop with the default model on the CPU after {start:.1f} s: "
        f"{cold['import_torch_s']:.1f} s importing torch, {cold['import_rest_s']:.1f} s importing the rest "
        f"(open_clip and with it torchvision), {cold['load_s']:.2f} s loading, {cold['first_read_s']:.2f} s reading. "
        f"Reading batches of 32, it holds {cold['peak_rss_bytes'] / 1e6:,.0f} MB at most.\n"
    )


def _speed(result: dict[str, Any]) -> list[str]:
    baseline = result["baseline"]
    return [
        result["model"],
        result["weights"],
        result["dtype"],
        str(result["batch"]),
        f"{result['mean_characters']:.1f}",
        f"{result['agreement']:.0%}",
        f"{result['crops_per_second']:,.1f}",
        f"{result['end_to_end_crops_per_second']:,.1f}",
        f"{result['latency_ms']:,.1f}",
        f"{result['utilisation']:.0%}",
        "" if baseline is None else f"{baseline['latency_ms']:,.1f} ({baseline['dtype']})",
        "" if baseline is None else f"{baseline['speedup']:.2f} ×",
    ]


def _stages(result: dict[str, Any]) -> list[str]:
    times = [f"{result['stages_ms'][stage]:.1f}" for stage in STAGES]
    return [result["model"], result["dtype"], str(result["batch"]), *times, f"{result['decode_share']:.1%}"]


def _table(titles: str, rows: list[list[str]]) -> str:
    columns = titles.count("|") + 1
    lines = [titles, " | ".join(["---"] * columns), *(" | ".join(row) for row in rows)]
    return "".join(f"| {line} |\n" for line in lines)


def page() -> str:
    """The whole page, its tables made anew."""
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END)
    reports = [json.loads(file.read_text()) for file in sorted((ROOT / "bench" / "results").glob("*.json"))]
    return before + BEGIN + "\n" + "\n".join(tables(report) for report in reports) + "\n" + END + after


def _stale() -> int:
    sys.stderr.write("docs/performance.md is not what bench/results says: run python bench/performance.py\n")
    return 1


def main() -> int:
    """Write the page; with --check, return 1 when it is not what would be written."""
    fresh = page()
    if sys.argv[1:] == ["--check"]:
        if fresh != PAGE.read_text(encoding="utf-8"):
            return _stale()
        return 0
    PAGE.write_text(fresh, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
