"""Parity with the published implementation on golden vectors made by running it (CPU, float32).

`single_*` arrays hold each image decoded alone, which is our semantics for every batch. `batch_*` arrays hold
the published code on the whole batch: there, rows whose cross-modal branch had not ended within the row's own
visual length depend on their neighbours, so these rows' final logits are compared in `single_*` only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.model.golden import (
    DEVICES,
    FEATURES,
    FOLDERS,
    LOGITS,
    PROBABILITIES,
    Arrays,
    assert_close,
    branch_reading,
    read_fixture,
    run,
    text_of,
)


def decoding_fixtures() -> list[Path]:
    """Every decoding fixture, once by name; a file of a later folder replaces its namesake."""
    found: dict[str, Path] = {}
    for folder in FOLDERS:
        for path in folder.glob("*.npz"):
            with np.load(path) as arrays:
                if any(name.endswith("visual_ar_logits") for name in arrays.files):
                    found[path.name] = path
    return [found[name] for name in sorted(found)]


def prefixes(path: Path) -> list[str]:
    arrays, _ = read_fixture(path)
    return [p for p in ("single", "batch") if f"{p}_visual_ar_logits" in arrays]


def assert_features(actual: torch.Tensor, golden: Arrays, name: str, stride: int, tokens: Any = None) -> None:
    """Features against the full array, or against its slice and per-token statistics."""
    if name in golden:
        assert_close(actual, golden[name], FEATURES, name)
        return
    picked = actual if tokens is None else actual[:, torch.from_numpy(np.asarray(tokens).reshape(-1))]
    assert_close(picked[..., ::stride], golden[f"{name}_slice"], FEATURES, f"{name}_slice")
    statistics = torch.stack([actual.mean(-1), actual.std(-1, correction=0), actual.norm(dim=-1)], dim=-1)
    scale = np.array([1.0, 1.0, np.sqrt(actual.shape[-1])])  # the norm sums D errors
    assert_close(statistics.numpy() / scale, golden[f"{name}_stats"] / scale, FEATURES, f"{name}_stats")


RUNS = [(path, prefix) for path in decoding_fixtures() for prefix in prefixes(path)]


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize(("path", "prefix"), RUNS, ids=lambda v: v.stem if isinstance(v, Path) else v)
def test_decoding(path: Path, prefix: str, device: torch.device) -> None:
    golden, meta = read_fixture(path)
    decoded = run(meta, device=device)
    steps = decoded.steps.tolist()
    strings = meta["strings"]

    def array(name: str) -> NDArray[Any]:
        return golden[f"{prefix}_{name}"]

    prefixed = {k.removeprefix(f"{prefix}_"): v for k, v in golden.items()}
    assert_features(decoded.image_features, prefixed, "memory", 4, prefixed.get("memory_tokens"))

    expected_t = array("T")
    assert max(steps) == expected_t if prefix == "batch" else steps == expected_t.tolist()
    for row, length in enumerate(steps):
        visual = decoded.visual.autoregressive[row, :length]
        cross = decoded.cross_modal.autoregressive[row, :length]
        assert_close(visual, array("visual_ar_logits")[row, :length], LOGITS, f"visual AR logits, row {row}")
        assert_close(cross, array("cross_ar_logits")[row, :length], LOGITS, f"cross AR logits, row {row}")

    for captions, name in zip(decoded.captions, ("ar", "refined"), strict=True):
        assert captions.texts == strings[f"{prefix}_captions_{name}"]
        assert np.array_equal(captions.tokens[captions.rows], array(f"caption_ids_{name}"))
        assert_features(captions.features[captions.rows], prefixed, f"text_features_{name}", 16)

    assert_close(decoded.visual.refined, array("visual_refined_logits"), LOGITS, "refined visual logits")
    assert [text_of(row) for row in decoded.visual.refined] == strings[f"{prefix}_visual_refined_pred"]

    own = [prefix == "single" or 0 <= eos < t for eos, t in zip(array("cross_eos_index"), steps, strict=True)]
    assert any(own)
    for row in (row for row, independent in enumerate(own) if independent):
        logits = decoded.cross_modal.refined[row]
        assert_close(logits, array("cross_refined_logits")[row], LOGITS, f"refined cross logits, row {row}")
        reading, _ = branch_reading(logits)
        assert reading.text == strings[f"{prefix}_pred"][row]
        assert reading.confidence == pytest.approx(float(array("confidence")[row]), rel=1e-4, abs=1e-7)
        count = int(array("char_probs_len")[row])
        probabilities = [character.confidence for character in reading.characters]
        if count > len(probabilities):
            probabilities.append(reading.eos_confidence)
        assert_close(
            probabilities, array("char_probs")[row, :count], PROBABILITIES, f"probabilities, row {row}"
        )
