"""What the C library does with freed memory, for programs that serve or train. glibc only; without PyTorch."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8

# Take large blocks from the heap (the most it takes), keep its top, and let there be one heap, since that of a thread
# cannot hold much. In bytes, but for the count of heaps.
_KEEP = {_M_TRIM_THRESHOLD: 2**31 - 1, _M_TOP_PAD: 2**26, _M_MMAP_THRESHOLD: 2**25, _M_ARENA_MAX: 1}
_RETURN = {_M_MMAP_THRESHOLD: 2**16}


def keep_freed_memory() -> None:
    """Let the C library keep freed memory for the process' next use. To be called before threads are started.

    Each training step frees and takes the same gigabyte, each batch that is read the same megabytes. Given back to
    the system, every page is faulted in again, which on a virtual machine can take many times longer than the step
    itself.
    """
    _tell(_KEEP)


def return_freed_memory() -> None:
    """Give large blocks pages of their own, which go back to the system when they are freed. As early as above.

    Else small blocks that live on hold up what was freed beside them: hundreds of megabytes, once many large messages
    have come at a time.
    """
    _tell(_RETURN)


def _tell(options: Mapping[int, int]) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        for option, value in options.items():
            mallopt(option, value)
