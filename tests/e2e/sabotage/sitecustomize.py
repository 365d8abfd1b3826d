"""What harms a service on purpose: Python imports this in each process that has the directory in PYTHONPATH.

SABOTAGE_CLOCK names a file that holds a double: the seconds that the wall clock is ahead, from then on that it is
written. SABOTAGE_POISON names a file: a worker that is shown a crop all of COLOUR adds to it how many crops it was
shown together, and kills itself.
"""

import importlib.abc
import importlib.machinery
import mmap
import os
import signal
import struct
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

COLOUR = (255, 0, 255)


class AfterImport(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Does something to a module as soon as it is imported."""

    def __init__(self, name: str, change: Callable[[Any], None]) -> None:
        self._name = name
        self._change = change
        self._loader: importlib.abc.Loader | None = None

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """As the import system calls it: as usual, but for who loads the module."""
        if name != self._name:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None:
            self._loader, spec.loader = spec.loader, self
        return spec

    def exec_module(self, module: ModuleType) -> None:
        """As the import system calls it."""
        if self._loader is not None:
            self._loader.exec_module(module)
        self._change(module)


def shift_clock(path: Path) -> None:
    """From now on the wall clock is ahead by what the file says."""
    with path.open("rb") as file:
        ahead = mmap.mmap(file.fileno(), 8, access=mmap.ACCESS_READ)
    seconds, nanoseconds = time.time, time.time_ns

    def shift() -> float:
        shifted: tuple[float] = struct.unpack_from("d", ahead)
        return shifted[0]

    time.time = lambda: seconds() + shift()
    time.time_ns = lambda: nanoseconds() + int(shift() * 1e9)


def poison(path: Path, recognizer: Any) -> None:
    """Changes the module `recognizer`."""
    read = recognizer.Recognizer.read_prepared

    def read_or_die(self: Any, crops: Sequence[Any], *arguments: Any, **options: Any) -> Any:
        for crop in crops:
            if all((plane == value).all() for plane, value in zip(crop, COLOUR, strict=True)):
                with path.open("a") as file:
                    file.write(f"{len(crops)}\n")
                os.kill(os.getpid(), signal.SIGKILL)
        return read(self, crops, *arguments, **options)

    recognizer.Recognizer.read_prepared = read_or_die


if "SABOTAGE_CLOCK" in os.environ:
    shift_clock(Path(os.environ["SABOTAGE_CLOCK"]))
if "SABOTAGE_POISON" in os.environ:
    import sys
    from functools import partial

    victims = Path(os.environ["SABOTAGE_POISON"])
    sys.meta_path.insert(0, AfterImport("clip4str.recognizer", partial(poison, victims)))
