"""What a report of bench/serve.py says, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bench.serve_promises import promises
from bench.serve_report import Alone, Load, Point, Report, Result

NOTHING = "Nothing has been measured yet.\n"
_BEST = (
    "server | clients | crops/s | of the bare model | p50, ms | p95, ms | p99, ms | CPU s / 1,000 crops "
    "| the client's | peak RSS, MB"
)
_ALONE = "server | p50, ms | bare model, ms | added, ms"
_LOAD = (
    "server | offered, of its best | in time, crops/s | of its best | answered p50, ms | p99, ms | refused "
    "| to a refusal p50, ms | p99, ms | with Retry-After | held back | late | failed | RSS before, MB | after"
)
_PROMISES = "promise | measured | bound | kept"
_SPEED = "crops_per_second"


def tables(report: Report) -> str:
    """One machine's report."""
    machine, model, results = report["machine"], report["model"], report["results"]
    title = f"{machine['device']}, {machine['threads']} CPU threads, torch {machine['torch']}"
    text = (
        f"### Serving: {title}\n\n"
        f"`{model['name']}` in {model['dtype']} on `{model['device']}`; {report['crops']:,} crops, "
        f"{report['crop_bytes']:,.0f} bytes each on average; closed loops of {report['seconds']:g} s.\n\n"
        f"At its best, in turns with the bare model in batches of {report['best_batch']}:\n\n"
        f"{_table(_BEST, map(_best, results))}\n"
        "One client, in turns with the bare model on one crop:\n\n"
        f"{_table(_ALONE, (_alone(each, each['alone']) for each in results if each['alone'] is not None))}"
    )
    for result in results:
        for other in result["beside"]:
            text += (
                f"\n{other['title']} and {result['title']} in turns, crops/s, and p99 in ms, by clients:\n\n"
            )
            text += _by_clients([(each["title"], each["points"]) for each in (other, result)])
    for crops in sorted({each["crops"] for each in results}):
        many = f", {crops} crops a request" if crops > 1 else ""
        text += f"\nCrops/s, and p99 in ms, by clients{many}:\n\n"
        text += _by_clients(
            [(each["title"], each["points"]) for each in results if each["ours"] and each["crops"] == crops]
        )
    deadlines = sorted({each["timeout_ms"] for each in results})
    text += (
        "\nClients that do not wait (Poisson), deadlines of "
        + " and of ".join(f"{deadline:,} ms ({_listed(results, deadline)})" for deadline in deadlines)
        + f"; twice its best for {report['overload_seconds']:g} s:\n\n"
        + _table(_LOAD, (_load(result, load) for result in results for load in result["loads"]))
        + "\nHeld back: what the stream's client dropped because the stream took no more.\n"
        + "\nSeconds after twice its best until it was itself again: "
        + ", ".join(f"{each['title']} {_seconds(each['recovery_s'])}" for each in results)
        + ".\n"
    )
    if chosen := [each for each in results if each["candidates"]]:
        text += "\nSettings tried, the best first and taken:\n\n"
        text += "".join(f"- {each['title']}: {_candidates(each)}\n" for each in chosen)
    kept = (
        [each.what, each.figure, each.bound, "yes" if each.kept else "**no**"] for each in promises(report)
    )
    return f"{text}\nWhat is promised, and was it kept:\n\n{_table(_PROMISES, kept)}"


def _alone(result: Result, alone: Alone) -> list[str]:
    return [result["title"], _ms(alone["p50_ms"]), _ms(alone["bare_ms"]), _ms(alone["added_ms"])]


def _best(result: Result) -> list[str]:
    peak = result["peak"]
    (point,) = (each for each in result["points"] if each["clients"] == peak["clients"])
    return [
        result["title"],
        str(peak["clients"]),
        f"{peak['crops_per_second']:,.1f}",
        f"{peak['of_ceiling']:.0%}",
        _ms(point["p50_ms"]),
        _ms(point["p95_ms"]),
        _ms(point["p99_ms"]),
        f"{peak['server_cpu']:.2f}",
        f"{peak['client_cpu']:.2f}",
        f"{result['peak_rss'] / 1e6:,.0f}",
    ]


def _by_clients(results: Sequence[tuple[str, Sequence[Point]]]) -> str:
    clients = sorted({point["clients"] for _, points in results for point in points})
    speeds = [
        {point["clients"]: f"{point['crops_per_second']:,.1f} ({_ms(point['p99_ms'])})" for point in points}
        for _, points in results
    ]
    rows = ([str(count), *(speed.get(count, "–") for speed in speeds)] for count in clients)
    return _table(" | ".join(["clients", *(title for title, _ in results)]), rows)


def _load(result: Result, load: Load) -> list[str]:
    return [
        result["title"],
        f"{load['load']:g} ×",
        f"{load['goodput']:,.1f}",
        f"{load['goodput'] / result['peak']['crops_per_second']:.0%}",
        _ms(load["answered_p50_ms"]),
        _ms(load["answered_p99_ms"]),
        f"{load['refused']:.1%}",
        _ms(load["refused_p50_ms"]),
        _ms(load["refused_p99_ms"]),
        "–" if load["retry_after"] is None else f"{load['retry_after']:.0%}",
        f"{load['held_back']:.1%}",
        f"{load['late']:.1%}",
        f"{load['failed']:.1%}",
        f"{load['rss_before'] / 1e6:,.0f}",
        f"{load['rss_after'] / 1e6:,.0f}",
    ]


def _candidates(result: Result) -> str:
    tried = sorted(result["candidates"], key=lambda each: -float(each["crops_per_second"]))
    return "; ".join(
        ", ".join(
            f"{key.removeprefix('RIVAL_').lower()} {value}" for key, value in each.items() if key != _SPEED
        )
        + f": {float(each[_SPEED]):,.1f} crops/s"
        for each in tried
    )


def _listed(results: Sequence[Result], timeout_ms: int) -> str:
    return ", ".join(each["title"] for each in results if each["timeout_ms"] == timeout_ms)


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value:,.1f}"


def _seconds(value: float | None) -> str:
    return "not while it was watched" if value is None else f"{value:.1f}"


def _table(titles: str, rows: Iterable[Sequence[str]]) -> str:
    columns = titles.count("|") + 1
    lines = [titles, " | ".join(["---"] * columns), *(" | ".join(row) for row in rows)]
    return "".join(f"| {line} |\n" for line in lines)
