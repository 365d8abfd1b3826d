"""The simulated cluster: pods that come and go, what is seen of them and when, and whole runs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from random import Random

import pytest

from bench.autoscaling_cluster import Policy, Traffic, Trigger, arrivals, play
from bench.autoscaling_deployment import ENDPOINT_SECONDS, PROBE_SECONDS, SCHEDULING_SECONDS, Deployment
from bench.autoscaling_hpa import Seen
from bench.autoscaling_ledger import Ledger
from bench.autoscaling_monitoring import Monitoring
from bench.autoscaling_pod import Pod, Service, defaults
from bench.autoscaling_report import Timeline
from bench.virtual_time import run
from tests.bench.autoscaling import BUCKETS, measured, speed

STARTED = SCHEDULING_SECONDS + 10.0
"""When a worker is warm."""


def stage(scenario: Callable[[Deployment, Monitoring], Awaitable[None]]) -> Ledger:
    """A scenario with a Deployment that is watched."""
    ledger = Ledger(1.0)

    async def main() -> None:
        chance = Random(1)
        service = Service(speed())
        deployment = Deployment(
            lambda: Pod(service, defaults(256), BUCKETS, ledger, chance), measured(), "round robin", chance
        )
        monitoring = Monitoring(deployment, 2, BUCKETS)
        watching = asyncio.create_task(monitoring.watch())
        await scenario(deployment, monitoring)
        watching.cancel()
        await deployment.close()

    run(main())
    return ledger


def test_a_replica_takes_its_time_to_start() -> None:
    async def scenario(deployment: Deployment, monitoring: Monitoring) -> None:
        deployment.begin(1)
        deployment.scale(2)
        await asyncio.sleep(SCHEDULING_SECONDS - 0.1)
        assert monitoring.load_ratio()[1] == Seen(None, unready=True)  # pending
        await asyncio.sleep(0.2)
        assert not monitoring.load_ratio()[1].unready  # it runs, though it reads nothing yet
        await asyncio.sleep(10.0 + ENDPOINT_SECONDS - 0.2)
        assert len(deployment.ready) == 1
        await asyncio.sleep(PROBE_SECONDS + 0.2)
        assert len(deployment.ready) == 2

    stage(scenario)


def test_those_that_are_not_ready_go_first_then_the_youngest() -> None:
    async def scenario(deployment: Deployment, monitoring: Monitoring) -> None:  # noqa: ARG001
        deployment.begin(2)
        deployment.scale(3)
        await asyncio.sleep(30.0)
        deployment.scale(4)
        await asyncio.sleep(SCHEDULING_SECONDS + 1)
        deployment.scale(3)
        assert [replica.number for replica in deployment.replicas] == [0, 1, 2]
        deployment.scale(2)
        assert [replica.number for replica in deployment.replicas] == [0, 1]
        assert len(deployment.ready) == 2
        await asyncio.sleep(60.0)
        assert len(deployment.ready) == 2  # what was given up does not come back
        assert deployment.leaving == 0

    stage(scenario)


def test_a_deleted_pod_answers_what_it_accepted() -> None:
    async def scenario(deployment: Deployment, monitoring: Monitoring) -> None:  # noqa: ARG001
        deployment.begin(2)
        for _ in range(200):
            deployment.next().ask(asyncio.get_running_loop().time(), 10.0)
        deployment.scale(1)
        assert deployment.leaving == 1
        await asyncio.sleep(5.0)
        assert deployment.leaving == 0

    ledger = stage(scenario)
    ledger.look(5.0, replicas=1, ready=1, pods=1, load_ratio=0.0)
    (p99,) = ledger.timeline["p99_ms"]
    assert p99 is not None
    assert 100 < p99 < 1000


def test_requests_go_round_or_to_the_least_loaded() -> None:
    async def scenario(deployment: Deployment, monitoring: Monitoring) -> None:  # noqa: ARG001
        deployment.begin(3)
        for _ in range(30):
            deployment.next().ask(0.0, 10.0)
        assert [pod.items for pod in deployment.ready] == [10, 10, 10]
        least = Deployment(lambda: deployment.ready[0], measured(), "least load", Random(1))
        least.ready = deployment.ready
        least.ready[1].ask(0.0, 10.0)
        assert least.next() is not least.ready[1]

    stage(scenario)


def test_metrics_are_as_old_as_the_last_scrape() -> None:
    async def scenario(deployment: Deployment, monitoring: Monitoring) -> None:
        deployment.begin(1)
        await asyncio.sleep(0.5)  # the first scrape is at 0 s, the next at 15
        for _ in range(128):
            deployment.next().ask(asyncio.get_running_loop().time(), 100.0)
        assert monitoring.load_ratio() == [Seen(0.0)]
        assert monitoring.queued() == [Seen(0.0)]
        await asyncio.sleep(14.4)
        for _ in range(128):
            deployment.next().ask(asyncio.get_running_loop().time(), 100.0)
        await asyncio.sleep(0.2)
        assert monitoring.load_ratio() == [Seen(0.5)]

    stage(scenario)


def test_queue_wait_forgets_and_is_nothing_without_traffic() -> None:
    async def scenario(deployment: Deployment, monitoring: Monitoring) -> None:
        deployment.begin(1)
        await asyncio.sleep(1.0)
        assert monitoring.queue_wait() == [Seen(0.0)]
        for _ in range(200):
            deployment.next().ask(1.0, 100.0)
        await asyncio.sleep(30.0)
        (seen,) = monitoring.queue_wait()
        assert seen.value is not None
        assert seen.value > 0.1
        await asyncio.sleep(60.0)
        assert monitoring.queue_wait() == [Seen(0.0)]

    stage(scenario)


def test_cpu_counts_only_after_a_whole_window_of_readiness() -> None:
    async def scenario(deployment: Deployment, monitoring: Monitoring) -> None:
        deployment.scale(1)
        await asyncio.sleep(STARTED + PROBE_SECONDS + ENDPOINT_SECONDS + 0.1)
        assert len(deployment.ready) == 1
        assert monitoring.cpu() == [Seen(None)]  # it was looked at once
        await asyncio.sleep(15.0)
        (seen,) = monitoring.cpu()
        assert seen.unready
        assert seen.value == 0.0
        await asyncio.sleep(15.0)
        assert monitoring.cpu() == [Seen(0.0)]

    stage(scenario)


def test_arrivals_are_poisson_and_the_same_each_time() -> None:
    traffic = Traffic(lambda time: 100.0 if time < 50 else 300.0, 100, 1.0)
    times = list(arrivals(traffic, 1))
    assert times == sorted(times)
    assert times == list(arrivals(traffic, 1))
    assert times != list(arrivals(traffic, 2))
    early = sum(time < 50 for time in times)
    assert early == pytest.approx(5000, abs=3 * 5000**0.5)
    assert len(times) - early == pytest.approx(15_000, abs=3 * 15_000**0.5)


SLOW = measured(speed(0.02, 0.02))
SLOW["speed"]["cpu_per_crop_s"] = 0.02
SCALED = Policy("", (Trigger("load_ratio", 0.1), Trigger("queue_wait", 0.25)), queue_crops=256)
SPIKE = Traffic(lambda time: 150.0 if time >= 30 else 20.0, 120, 1.0)
"""Half as much again as a pod of two workers can do."""


def ready_at(line: Timeline, pods: int) -> float:
    return next(time for time, ready in zip(line["time_s"], line["ready"], strict=True) if ready >= pods)


@pytest.mark.parametrize(
    "trigger",
    [
        Trigger("load_ratio", 0.1),
        Trigger("queue_wait", 0.25),
        Trigger("load_ratio", 0.1, external=True),
        Trigger("queue_wait", 0.25, external=True),
        Trigger("queued", 20.0, external=True),
        Trigger("cpu", 0.5),
    ],
)
def test_each_metric_sees_a_spike(trigger: Trigger) -> None:
    policy = replace(SCALED, triggers=(trigger,), least=1)
    run_ = play(SLOW, policy, SPIKE, 1, 1).run("spike", "one")
    assert run_["most"] >= 2
    assert run_["refused"] > 0.02  # until they are ready
    line = run_["timeline"]
    assert 30 + STARTED <= ready_at(line, 2) <= 30 + 2 * 15 + STARTED + 10
    assert line["refused"][-1] < 0.01


def test_a_run_is_the_same_each_time_and_adds_up() -> None:
    short = replace(SPIKE, seconds=60)
    first, second = (play(SLOW, SCALED, short, 2, 1).run("spike", "two") for _ in range(2))
    assert first == second
    line = first["timeline"]
    assert len(line["time_s"]) == 12
    assert sum(line["offered"]) * 5 == first["requests"]
    assert first["pod_hours"] == pytest.approx(2 * 60 / 3600, abs=1e-3)


def test_what_is_not_scaled_stays() -> None:
    run_ = play(SLOW, replace(SCALED, triggers=()), replace(SPIKE, seconds=60), 1, 1).run("", "")
    assert (run_["most"], run_["changes"]) == (1, 0)
    assert run_["over_after_s"] is not None
    assert run_["over_after_s"] >= 20
