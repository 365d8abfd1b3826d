"""Crops in shared memory: slots of one size that front ends fill and workers read, handed out by the supervisor.

The memory is a file without a name: nothing is left behind by a process that is killed, and no mount's size
bounds it.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Pixels: TypeAlias = NDArray[np.uint8]


class Slots:
    """The supervisor's side: the memory itself, and which slots are free."""

    def __init__(self, count: int, image_size: tuple[int, int]) -> None:
        """Memory for `count` crops of `image_size` (height, width). Raises OSError when there is none."""
        self.count = count
        self.descriptor = os.memfd_create("clip4str-crops", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.descriptor, count * _slot_bytes(image_size))
        # Of a size that never changes: no process can be made to read beyond its end.
        fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        self._free = list(range(count))

    def take(self, count: int) -> list[int]:
        """Free slots, the last used first: their memory is the likeliest to be in a cache."""
        if count > len(self._free):
            raise RuntimeError(
                f"{count} slots wanted, {len(self._free)} free: more admitted than there is room"
            )
        taken = self._free[len(self._free) - count :]
        del self._free[len(self._free) - count :]
        return taken

    def give_back(self, slots: Sequence[int]) -> None:
        """Frees slots that no process uses any more."""
        self._free.extend(slots)

    @property
    def free(self) -> int:
        """How many slots are free."""
        return len(self._free)

    def close(self) -> None:
        """Gives the memory up, once every process has."""
        os.close(self.descriptor)


class Crops:
    """A front end's or worker's side: the same memory as an array, uint8 [slots, 3, height, width]."""

    def __init__(self, descriptor: int, count: int, image_size: tuple[int, int]) -> None:
        """Maps the memory behind a descriptor, and closes that."""
        self._memory = mmap.mmap(descriptor, count * _slot_bytes(image_size))
        os.close(descriptor)
        self.pixels: Pixels = np.frombuffer(self._memory, np.uint8).reshape(count, 3, *image_size)


def _slot_bytes(image_size: tuple[int, int]) -> int:
    height, width = image_size
    return 3 * height * width
