"""What a front end remembers of refusals."""

import pytest

from clip4str_service.errors import OverloadedError
from clip4str_service.refusals import MEMORY_SECONDS, Asked, RefusalMemory

ASKED = Asked("key", True, 4, 1.0)
REFUSAL = OverloadedError("full", retry_after=3.0)


@pytest.fixture
def memory() -> RefusalMemory:
    memory = RefusalMemory()
    memory.keep(ASKED, REFUSAL, 10.0)
    return memory


@pytest.mark.parametrize("asked", [ASKED, ASKED._replace(crops=5), ASKED._replace(patience=0.5)])
def test_what_asks_for_as_much_is_refused_for_a_moment(memory: RefusalMemory, asked: Asked) -> None:
    with pytest.raises(OverloadedError, match="full") as caught:
        memory.check(asked, 10.0 + MEMORY_SECONDS / 2)
    assert caught.value.retry_after_ms == 3000
    memory.check(asked, 10.0 + MEMORY_SECONDS)


@pytest.mark.parametrize(
    "asked",
    [
        ASKED._replace(tenant="other"),
        ASKED._replace(urgent=False),
        ASKED._replace(crops=3),
        ASKED._replace(patience=1.5),
    ],
)
def test_what_might_be_admitted_is_asked(memory: RefusalMemory, asked: Asked) -> None:
    memory.check(asked, 10.0)


def test_memory_is_no_longer_than_the_refusal() -> None:
    memory = RefusalMemory()
    memory.keep(ASKED, OverloadedError("full", retry_after=0.001), 10.0)
    memory.check(ASKED, 10.005)


def test_memory_is_bounded() -> None:
    memory = RefusalMemory()
    for number in range(5000):
        memory.keep(ASKED._replace(tenant=str(number)), REFUSAL, 10.0)
    kept = 0
    for number in range(5000):
        try:
            memory.check(ASKED._replace(tenant=str(number)), 10.0)
        except OverloadedError:
            kept += 1
    assert 0 < kept <= 1024
