"""The rows of results, and that every value finds its column."""

from __future__ import annotations

import numpy as np
import pytest

from clip4str.bulk import rows
from clip4str.bulk.crops import Crop
from clip4str.bulk.errors import CropError
from clip4str.reading import Alternative, BranchReading, Character, Reading

PIXELS = np.zeros((3, 8, 16), np.uint8)


def branch(text: str) -> BranchReading:
    others = (Alternative("x", 0.25),)
    return BranchReading(text, 0.5, 0.75, tuple(Character(each, 0.875, others) for each in text))


def test_a_reading_and_an_error() -> None:
    problem = CropError("invalid_box", "no")
    read = Crop("a", "s3://b/a.png", 3, (1.0, 2.0, 3.5, 4.0), PIXELS)
    failed = Crop("b", "s3://b/b.png", None, None, problem)
    made = rows.batch([(read, Reading(branch("OFF"), branch("OF"), truncated=True)), (failed, problem)])
    assert made.schema == rows.SCHEMA
    first, second = made.to_pylist()
    character = {"confidence": 0.875, "alternatives": [{"text": "x", "confidence": 0.25}]}
    assert first == {
        "id": "a",
        "source": "s3://b/a.png",
        "box_number": 3,
        "box": {"left": 1.0, "top": 2.0, "right": 3.5, "bottom": 4.0},
        "text": "OF",
        "confidence": 0.5,
        "agreement": False,
        "truncated": True,
        **{
            name: {
                "text": text,
                "confidence": 0.5,
                "eos_confidence": 0.75,
                "characters": [{"text": each, **character} for each in text],
            }
            for name, text in (("visual", "OFF"), ("cross_modal", "OF"))
        },
        "error": None,
    }
    assert {name: value for name, value in second.items() if value is not None} == {
        "id": "b",
        "source": "s3://b/b.png",
        "error": {"code": "invalid_box", "detail": "no"},
    }


@pytest.mark.parametrize("text", ["", "ÄÖ", "a" * 26])
def test_any_text(text: str) -> None:
    crop = Crop("", "", None, None, PIXELS)
    made = rows.batch([(crop, Reading(branch(text), branch(text), truncated=False))])
    assert made.column("text").to_pylist() == [text]
    assert made.column("agreement").to_pylist() == [True]
