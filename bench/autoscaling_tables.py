"""What bench/autoscaling.py found, as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from bench import autoscaling_cases as cases
from bench.autoscaling_cluster import Policy
from bench.autoscaling_hpa import Rules
from bench.autoscaling_reasons import reasons
from bench.autoscaling_report import Level, Measured, Open, Run, Simulated

NOTHING = "Nothing has been measured yet.\n"
_PODS = (
    "offered, crops/s | in time | simulated | p50, ms | simulated | p99, ms | simulated | refused | simulated"
)
_LEVELS = (
    "load, of a pod's best | crops in the pod | load ratio of {queue} | of 1,024 | p95 of queue waits, ms "
    "| CPU | p99, ms | refused"
)
_RUNS = (
    "scaled on | refused | late | p50, ms | p99, ms | worst 5 s | over 1 % lost, s | pod hours | at most "
    "| changes (turns)"
)


def section(measured: Measured, simulated: Simulated) -> str:
    """The part of docs/operations.md between the marks."""
    parts = [
        _defaults(),
        reasons(measured, simulated),
        _measured(measured),
        _pod(measured, simulated["pod"]),
        _levels(simulated["levels"]),
    ]
    for name, case in cases.CASES.items():
        runs = [run for run in simulated["grid"] if run["case"] == name]
        parts.append(
            f"**{case.title}.**\n\n![{case.title}](autoscaling/{name}.png)\n\n{_runs(runs, cases.POLICIES)}"
        )
    ours = [run for run in simulated["grid"] if (run["case"], run["policy"]) == ("spike", "ours")]
    variants: Mapping[str, Policy] = {**cases.VARIANTS, "ours": cases.OURS}
    parts.append(
        "**What else the spike was tried with.** Unless it says otherwise, as above.\n\n"
        + _runs([*simulated["spike"], *ours], variants)
    )
    parts.append(
        f"**A larger model.** The same spike where a batch takes {cases.SLOW_TIMES:g} times as long, with a "
        f"{cases.SLOW_TIMES:g}th of the crops and deadlines of {cases.SLOW_TIMEOUT:g} s.\n\n"
        + _runs(simulated["slow"], cases.SLOW)
    )
    return "\n".join(parts)


def _defaults() -> str:
    rows = [
        ["`CLIP4STR_QUEUE_CROPS`", str(cases.QUEUE_CROPS)],
        ["`load_ratio`, average of the pods", f"{cases.LOAD_RATIO:g}"],
        ["p95 of `queue_wait_seconds` over 1 minute, average of the pods", f"{cases.QUEUE_WAIT:g} s"],
        ["`behavior.scaleUp`", _rules(cases.BEHAVIOR.up)],
        ["`behavior.scaleDown`", _rules(cases.BEHAVIOR.down)],
    ]
    return f"What to begin with:\n\n{_table('setting | value', rows)}"


def _rules(rules: Rules) -> str:
    steps = [
        f"{policy.value} {'%' if policy.kind == 'Percent' else 'pods'} in {policy.seconds:g} s"
        for policy in rules.policies
    ]
    return f"window {rules.window:g} s; at most {' or '.join(steps)}, the larger"


def _measured(measured: Measured) -> str:
    machine, speed = measured["machine"], measured["speed"]
    return (
        f"Measured on {machine['device']}, {machine['threads']} CPU threads, torch {machine['torch']}, with the "
        f"`{measured['model']['name']}` model in {measured['model']['dtype']}: {measured['capacity']:,.0f} crops/s "
        f"at best (REST, one crop a request), with {measured['workers']} workers. A worker's batch of n crops takes "
        f"{1000 * speed['per_item_s']:.1f} ms · n + {1000 * speed['per_batch_s']:.1f} ms, spread as measured; each "
        f"refusal a second makes it {speed['slower_per_refusal_s']:.3%} longer. Ready "
        f"{_span(measured['ready_s'])} s after the start of the process, with all workers after "
        f"{_span(measured['complete_s'])} s ({len(measured['ready_s'])} starts). Other programs used "
        f"{measured['others']:.0%} of the processors in the worst of the loops.\n"
    )


def _span(values: Sequence[float]) -> str:
    return f"{min(values):.1f} to {max(values):.1f}"


def _pod(measured: Measured, simulated: Sequence[Open]) -> str:
    rows = [
        [
            f"{real['offered']:,.0f}",
            f"{real['in_time']:,.0f}",
            f"{played['in_time']:,.0f}",
            _ms(real["p50_ms"]),
            _ms(played["p50_ms"]),
            _ms(real["p99_ms"]),
            _ms(played["p99_ms"]),
            f"{real['refused']:.1%}",
            f"{played['refused']:.1%}",
        ]
        for real, played in zip(measured["open"], simulated, strict=True)
    ]
    return (
        f"The same loads (Poisson, deadlines of {1000 * measured['timeout_s']:,.0f} ms) on the real service and on "
        f"a simulated pod:\n\n{_table(_PODS, rows)}"
    )


def _levels(levels: Sequence[Level]) -> str:
    rows = [
        [
            f"{level['utilisation']:.0%}",
            f"{level['items']:.0f}",
            f"{level['items'] / cases.QUEUE_CROPS:.3f}",
            f"{level['items'] / 1024:.3f}",
            _ms(level["wait_p95_ms"]),
            f"{level['cpu']:.0%}",
            _ms(level["p99_ms"]),
            f"{level['refused']:.1%}",
        ]
        for level in levels
    ]
    titles = _LEVELS.format(queue=cases.QUEUE_CROPS)
    return f"What one pod shows, by the load:\n\n{_table(titles, rows)}"


def _runs(runs: Sequence[Run], policies: Mapping[str, Policy]) -> str:
    rows = [
        [
            policies[run["policy"]].title,
            f"{run['refused']:.2%}",
            f"{run['late']:.2%}",
            _ms(run["p50_ms"]),
            _ms(run["p99_ms"]),
            _ms(run["worst_p99_ms"]),
            "–" if run["over_after_s"] is None else f"{run['over_after_s']:.0f}",
            f"{run['pod_hours']:.2f}",
            str(run["most"]),
            f"{run['changes']} ({run['reversals']})",
        ]
        for run in runs
    ]
    return _table(_RUNS, rows)


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def _table(titles: str, rows: Iterable[Sequence[str]]) -> str:
    columns = titles.count("|") + 1
    lines = [titles, " | ".join(["---"] * columns), *(" | ".join(row) for row in rows)]
    return "".join(f"| {line} |\n" for line in lines)
