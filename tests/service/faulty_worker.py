"""The real worker, whose model fails on crops of one value: `python -m tests.service.faulty_worker`."""

from collections.abc import Sequence
from dataclasses import replace
from math import nan
from typing import Any

import torch

from clip4str import Recognizer
from clip4str_service.arena import Pixels
from clip4str_service.readings import Reading
from clip4str_service.worker import main

FAULT = 251
"""With a crop of this value in it a batch raises an error."""

NOT_FINITE = 252
"""The reading of such a crop is no number."""

LOST = 253
"""After such a crop the device is lost."""

_read_prepared = Recognizer.read_prepared


def _faulty(self: Recognizer, crops: Sequence[Pixels], *arguments: Any, **options: Any) -> list[Reading]:
    values = [int(crop[0, 0, 0]) for crop in crops]
    if FAULT in values:
        raise RuntimeError("the model fails")
    if LOST in values:
        raise torch.AcceleratorError("the device is lost")
    readings = _read_prepared(self, crops, *arguments, **options)
    return [
        replace(reading, visual=replace(reading.visual, confidence=nan)) if value == NOT_FINITE else reading
        for reading, value in zip(readings, values, strict=True)
    ]


if __name__ == "__main__":
    Recognizer.read_prepared = _faulty  # type: ignore[method-assign]
    main()
