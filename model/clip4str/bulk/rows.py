"""The form of the results: one row a crop, with its reading or its error."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from clip4str.bulk.crops import Crop
from clip4str.bulk.errors import CropError
from clip4str.bulk.inputs import EDGES
from clip4str.reading import Reading

_CHOICE = {"text": pa.string(), "confidence": pa.float32()}
_CHARACTER = pa.struct({**_CHOICE, "alternatives": pa.list_(pa.struct(_CHOICE))})
_BRANCH = pa.struct({**_CHOICE, "eos_confidence": pa.float32(), "characters": pa.list_(_CHARACTER)})

SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "source": pa.string(),
        "box_number": pa.int32(),
        "box": pa.struct(dict.fromkeys(EDGES, pa.float64())),
        "text": pa.string(),
        "confidence": pa.float32(),
        "agreement": pa.bool_(),
        "truncated": pa.bool_(),
        "visual": _BRANCH,
        "cross_modal": _BRANCH,
        "error": pa.struct({"code": pa.string(), "detail": pa.string()}),
    }
)
"""Of a crop either `error` is null, or all from `text` to `cross_modal` are."""


def batch(crops: Iterable[tuple[Crop, Reading | CropError]]) -> pa.RecordBatch:
    """Crops with what came of them, as rows."""
    rows = [{**_origin(crop), **_outcome(outcome)} for crop, outcome in crops]
    return pa.RecordBatch.from_pylist(rows, schema=SCHEMA)


def _origin(crop: Crop) -> dict[str, Any]:
    box = None if crop.box is None else dict(zip(EDGES, crop.box, strict=True))
    return {"id": crop.id, "source": crop.source, "box_number": crop.number, "box": box}


def _outcome(outcome: Reading | CropError) -> dict[str, Any]:
    if isinstance(outcome, CropError):
        return {"error": outcome._asdict()}
    return {
        "text": outcome.text,
        "confidence": outcome.confidence,
        "agreement": outcome.agreement,
        "truncated": outcome.truncated,
        "visual": asdict(outcome.visual),
        "cross_modal": asdict(outcome.cross_modal),
    }
