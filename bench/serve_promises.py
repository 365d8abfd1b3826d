"""What serving promises, held against what was measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bench.serve_report import Beside, Report, Result

_SHARES = {"rest": 0.6, "grpc": 0.75, "rest-64": 0.9, "grpc-64": 0.9, "stream": 0.9}
_ADDED_MS = {"rest": 4.0, "grpc": 3.0}
_GOODPUT = 0.9
_REFUSAL_MS = 20.0
_RECOVERY_S = 2.0
_GROWTH = 0.02  # of memory under twice the load


@dataclass(frozen=True, slots=True)
class Promise:
    """One of them: what, the figure, its bound in words, and whether it was kept."""

    what: str
    figure: str
    bound: str
    kept: bool


def promises(report: Report) -> list[Promise]:
    """Those that the report's results can tell of."""
    results = report["results"]
    own = [promise for result in results if result["ours"] for promise in _own(result)]
    return own + [_ahead(other, result) for result in results for other in result["beside"]]


def _own(result: Result) -> Iterator[Promise]:
    name, title = result["name"], result["title"]
    share = result["peak"]["of_ceiling"]
    yield Promise(
        f"{title}: of the bare model", f"{share:.0%}", f"≥ {_SHARES[name]:.0%}", share >= _SHARES[name]
    )
    if name in _ADDED_MS and result["alone"] is not None:
        added, bound = result["alone"]["added_ms"], _ADDED_MS[name]
        yield Promise(f"{title}: added to one crop", f"{added:.1f} ms", f"≤ {bound:g} ms", added <= bound)
    yield Promise(f"{title}: crops read otherwise", str(result["wrong"]), "0", result["wrong"] == 0)
    worst = result["loads"][-1]
    good = worst["goodput"] / result["peak"]["crops_per_second"]
    yield Promise(f"{title}: in time at twice its best", f"{good:.0%}", f"≥ {_GOODPUT:.0%}", good >= _GOODPUT)
    answered, refused = worst["answered_p99_ms"], worst["refused_p99_ms"]
    if answered is not None:
        deadline = result["timeout_ms"]
        yield Promise(
            f"{title}: p99 of what it then reads",
            f"{answered:,.0f} ms",
            f"≤ {deadline:,} ms",
            answered <= deadline,
        )
    if refused is not None:
        yield Promise(
            f"{title}: p99 to a refusal", f"{refused:.1f} ms", f"< {_REFUSAL_MS:g} ms", refused < _REFUSAL_MS
        )
        told = worst["retry_after"] or 0.0
        yield Promise(f"{title}: refusals with Retry-After", f"{told:.0%}", "100%", told == 1)
    growth = worst["rss_after"] / max(1, worst["rss_before"]) - 1
    yield Promise(
        f"{title}: memory at twice its best", f"{growth:+.1%}", f"≤ {_GROWTH:+.0%}", growth <= _GROWTH
    )
    back = result["recovery_s"]
    yield Promise(
        f"{title}: itself again after",
        "not while it was watched" if back is None else f"{back:.1f} s",
        f"≤ {_RECOVERY_S:g} s",
        back is not None and back <= _RECOVERY_S,
    )


def _ahead(ours: Beside, rival: Result) -> Promise:
    """In throughput and in p99, at every number of clients."""
    behind: list[str] = []
    for point, other in zip(ours["points"], rival["points"], strict=True):
        if point["crops_per_second"] <= other["crops_per_second"]:
            behind.append(f"throughput at {point['clients']}")
        if (point["p99_ms"] or 0) >= (other["p99_ms"] or 0):
            behind.append(f"p99 at {point['clients']}")
    what = f"{ours['title']}: ahead of {rival['title']} at every number of clients"
    return Promise(what, ", ".join(f"not in {each}" for each in behind) or "yes", "yes", not behind)
