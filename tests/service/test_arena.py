"""Crops in shared memory: no slot is given twice, all see the same pixels, nothing stays behind."""

import gc
import mmap
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip4str_service.arena import Crops, Slots
from tests.service.processes import descriptors, mapped

SIZE = (8, 16)


def crops(slots: Slots) -> Crops:
    return Crops(os.dup(slots.descriptor), slots.count, SIZE)


@settings(deadline=None)
@given(st.lists(st.integers(0, 5)))
def test_no_slot_is_given_twice(counts: list[int]) -> None:
    slots = Slots(8, SIZE)
    held: list[list[int]] = []
    for count in counts:
        taken = sum(map(len, held))
        if taken + count > slots.count:
            with pytest.raises(RuntimeError, match=f"{count} slots wanted, {slots.count - taken} free"):
                slots.take(count)
            slots.give_back(held.pop(count % len(held)))
        else:
            held.append(slots.take(count))
        every = [slot for each in held for slot in each]
        assert len(set(every)) == len(every)
        assert set(every) <= set(range(slots.count))
        assert slots.free == slots.count - len(every)
    slots.close()


def test_every_process_sees_the_same_pixels() -> None:
    slots = Slots(3, SIZE)
    one, other = crops(slots), crops(slots)
    assert one.pixels.shape == (3, 3, *SIZE)
    assert one.pixels.dtype == np.uint8
    one.pixels[1] = 7
    child = os.fork()
    if child == 0:
        one.pixels[2] = 9
        os._exit(0)
    os.waitpid(child, 0)
    assert [int(crop.mean()) for crop in other.pixels] == [0, 7, 9]
    slots.close()
    assert int(other.pixels[1].mean()) == 7  # whoever has it mapped may go on


def test_memory_keeps_its_size() -> None:
    slots = Slots(3, SIZE)
    for size in (0, 1 << 20):
        with pytest.raises(PermissionError):
            os.ftruncate(slots.descriptor, size)
    slots.close()


def test_more_than_there_is_cannot_be_mapped() -> None:
    slots = Slots(3, SIZE)
    descriptor = os.dup(slots.descriptor)
    with pytest.raises(ValueError, match="greater than file size"):
        Crops(descriptor, 3 + mmap.PAGESIZE, SIZE)
    os.close(descriptor)
    slots.close()


def test_nothing_stays_of_arenas_that_are_gone() -> None:
    gc.collect()  # what other tests left
    before, mappings = descriptors(), mapped(os.getpid(), "clip4str-crops")
    for _ in range(200):
        slots = Slots(64, SIZE)
        seen = crops(slots)
        seen.pixels[:] = 1
        slots.close()
        del seen
    assert descriptors() == before
    assert mapped(os.getpid(), "clip4str-crops") == mappings
