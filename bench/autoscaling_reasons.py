"""Why the chart's defaults are what they are, in the figures of bench/autoscaling.py."""

from __future__ import annotations

from bench import autoscaling_cases as cases
from bench.autoscaling_deployment import ENDPOINT_SECONDS, PROBE_SECONDS, SCHEDULING_SECONDS
from bench.autoscaling_hpa import SYNC_SECONDS
from bench.autoscaling_monitoring import SCRAPE_SECONDS
from bench.autoscaling_report import Measured, Run, Simulated


def reasons(measured: Measured, simulated: Simulated) -> str:
    """A Markdown list."""
    half, most, full = (
        next(level for level in simulated["levels"] if level["utilisation"] == share)
        for share in (0.5, 0.8, 1.0)
    )
    spike = {run["policy"]: run for run in simulated["spike"]}
    (ours,) = (run for run in simulated["grid"] if (run["case"], run["policy"]) == ("spike", "ours"))
    late = spike["late"]
    deadline = 1000 * cases.TIMEOUT
    kept = "within" if (ours["p99_ms"] or 0.0) <= deadline else "**above**"
    seen = SCRAPE_SECONDS + SYNC_SECONDS
    reads = SCHEDULING_SECONDS + max(measured["ready_s"]) + PROBE_SECONDS + ENDPOINT_SECONDS
    crops = cases.LOAD_RATIO * cases.QUEUE_CROPS
    return (
        f"- **The target.** At 80 % of its best a pod holds {most['items']:.0f} crops, at its best "
        f"{full['items']:.0f}: where deadlines are {cases.TIMEOUT:g} s, crops that would be late are refused long "
        f"before a long queue is full. With a target of 0.7 of 1,024 crops the spike has {late['most']} pods at "
        f"most, and {_lost(late)} of its requests are refused or late. So the target is {cases.LOAD_RATIO:g} of "
        f"{cases.QUEUE_CROPS}: {crops:.0f} crops.\n"
        f"- **Not CPU.** Small batches cost more for each crop: half of its best takes {half['cpu']:.0%} of a pod's "
        f"processors, all of it {full['cpu']:.0%}. A target for CPU keeps pods that are not needed, and sees that "
        "there is a spike, not how high it is.\n"
        "- **Not the queue alone.** It is all but empty until it is late to start pods; what is in flight moves "
        "sooner.\n"
        f"- **Up at once, but not again before it shows.** New pods read {reads:.0f} s after the decision, and are "
        f"seen up to {SCRAPE_SECONDS} s later: until then the old ones ask for more and more. With Kubernetes' "
        f"default, every 15 s, the spike has {spike['default']['most']} pods at most, with a step a minute "
        f"{ours['most']}.\n"
        f"- **Down slowly.** At half of its best a pod holds {half['items']:.0f} crops: by their ratio to the target "
        "most pods could go, and too many would. A pod or a tenth in a minute shows what each step costs.\n"
        f"- **The spike.** It is seen within {seen:g} s, and another pod reads up to {reads:.0f} s later. No "
        "threshold shortens that; meanwhile admission control holds the deadline for what is accepted: its p99 is "
        f"{ours['p99_ms'] or 0.0:,.0f} ms, {kept} {deadline:,.0f} ms "
        f"({ours['worst_p99_ms'] or 0.0:,.0f} ms in the worst 5 s). {_told(ours)}. What shortens it are pods that "
        f"are there already: with 4 at least, {_told(spike['four'])}; with 6, {_told(spike['six'])}.\n"
    )


def _lost(run: Run) -> str:
    return f"{run['refused'] + run['late']:.2%}"


def _told(run: Run) -> str:
    seconds = run["over_after_s"]
    lasting = "never more than 1 % in 5 s" if seconds is None else f"within {seconds:.0f} s"
    return f"{_lost(run)} of all requests are refused or late, {lasting}"
