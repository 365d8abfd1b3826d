"""Two workers on one CPU: while one is replaced, the other reads, and nobody notices."""

import os
import signal

from clip4str_service.samples import Sample
from samples.demo import running_service
from tests.e2e.observed import PATIENT, WORKER, children, metrics, ready, until
from tests.e2e.traffic import by_rest


def test_one_of_two_workers_dies_and_the_service_stays_ready(samples: list[Sample]) -> None:
    contents = [sample.content for sample in samples]
    patience = str(round(1000 * PATIENT))
    with running_service(
        CLIP4STR_THREADS="2", CLIP4STR_CPU_PROCESSES="2", CLIP4STR_DEFAULT_TIMEOUT_MS=patience
    ) as service:
        until(lambda: len(children(service, WORKER)) == 2)
        until(lambda: metrics(service)["clip4str_workers",] == 2)
        killed, other = children(service, WORKER)
        os.kill(killed, signal.SIGKILL)
        assert by_rest(service, contents).outcomes == [sample.text for sample in samples]
        assert ready(service)
        until(lambda: metrics(service)["clip4str_workers",] == 2)
        assert other in children(service, WORKER)
        assert killed not in children(service, WORKER)
