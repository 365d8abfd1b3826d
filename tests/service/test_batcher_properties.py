"""No item is ever lost, whatever callers do."""

import asyncio
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from clip4str_service.batcher import (
    Admission,
    Batcher,
    BatcherFullError,
    ItemExpiredError,
    ItemWithdrawnError,
    Place,
    State,
)
from tests.service.batching import BOUNDS, BreakdownError, with_batcher


@dataclass(frozen=True)
class Caller:
    """One caller of a random scenario; times in seconds."""

    arrives: float
    items: int
    nbytes: int
    urgent: bool
    preparation: float
    unpreparable: bool  # its last item
    patience: float
    cancels: float | None
    breaks: bool  # its first item breaks the runner


TIMES = st.integers(0, 60).map(lambda milliseconds: milliseconds / 1000)
CALLERS = st.lists(
    st.builds(
        Caller,
        arrives=TIMES,
        items=st.integers(1, 6),
        nbytes=st.integers(0, 200),
        urgent=st.booleans(),
        preparation=TIMES,
        unpreparable=st.booleans(),
        patience=TIMES,
        cancels=st.none() | TIMES,
        breaks=st.sampled_from([False, False, False, True]),
    ),
    max_size=25,
)


@given(CALLERS)
def test_nothing_is_lost_whoever_arrives_cancels_or_expires(callers: list[Caller]) -> None:
    """Each item runs once, in order, in bounds and in time; or else there is a reason why it never ran."""
    admitted: list[tuple[Caller, Admission[int, int]]] = []
    in_line: dict[bool, list[int]] = {True: [], False: []}
    unpreparable: set[Place[int, int]] = set()

    def number(caller: int, item: int) -> int:
        value = 1 + 10 * caller + item
        return -value if callers[caller].breaks and item == 0 else value

    async def scenario(batcher: Batcher[int, int]) -> None:
        async def call(index: int, caller: Caller) -> None:
            await asyncio.sleep(caller.arrives)
            deadline = asyncio.get_running_loop().time() + caller.patience
            sizes = [caller.nbytes] * caller.items
            held = [
                place.nbytes
                for _, each in admitted
                for place in each.places
                if place.state is not State.SETTLED
            ]
            assert len(held) == batcher.queued + batcher.running <= BOUNDS.max_items
            assert sum(held) <= BOUNDS.max_bytes
            try:
                admission = batcher.admit(sizes, urgent=caller.urgent, deadline=deadline)
            except BatcherFullError:
                assert len(held) + len(sizes) > BOUNDS.max_items or sum(held) + sum(sizes) > BOUNDS.max_bytes
                return
            admitted.append((caller, admission))
            try:
                async with asyncio.timeout(caller.cancels):
                    await asyncio.sleep(caller.preparation)
                    for item in range(caller.items):
                        if caller.unpreparable and item == caller.items - 1:
                            admission.withdraw(item)
                            unpreparable.add(admission.places[item])
                        else:
                            admission.submit(item, number(index, item))
                            in_line[caller.urgent].append(number(index, item))
                    await admission.settled()
            except TimeoutError:
                admission.withdraw_all("cancelled")

        await asyncio.gather(*(call(index, caller) for index, caller in enumerate(callers)))
        batcher.close()
        await batcher.drained()
        assert (batcher.queued, batcher.running) == (0, 0)

    runner = with_batcher(scenario)
    ran = [item for batch in runner.batches for item in batch]
    assert len(ran) == len(set(ran))
    assert all(1 <= len(batch) <= BOUNDS.max_batch for batch in runner.batches)
    for urgent, line in in_line.items():
        assert [item for item in ran if callers[(abs(item) - 1) // 10].urgent is urgent] == [
            item for item in line if item in set(ran)
        ]
    broken = {item for batch in runner.batches if min(batch) < 0 for item in batch}
    outcomes_of_run, drops = 0, 0
    for caller, admission in admitted:
        assert admission.open == 0
        for place in admission.places:
            match place.outcome:
                case int(doubled):
                    assert doubled // 2 in set(ran) - broken
                    assert place.sealed_at < admission.deadline
                    outcomes_of_run += 1
                case BreakdownError():
                    assert broken
                    outcomes_of_run += 1
                case ItemExpiredError():
                    assert not place.sealed_at
                    drops += 1
                case _:
                    assert isinstance(place.outcome, ItemWithdrawnError)
                    assert place in unpreparable or caller.cancels is not None
                    drops += place not in unpreparable
    assert outcomes_of_run == len(ran)
    assert drops == len(runner.drops)
