"""Parity with the published implementation on golden vectors made by running it (CPU, float32).

Runs every fixture of `tests/golden/` and, when set, of the folder named by CLIP4STR_GOLDEN_DIR. The weights
of a fixture are a pure function of their names (`golden_weights.py`), so no weight file is shipped.

`single_*` arrays hold each image decoded alone, which is our semantics for every batch. `batch_*` arrays hold
the published code on the whole batch: there, rows whose cross-modal branch had not ended within the row's own
visual length depend on their neighbours, so these rows' final logits are compared in `single_*` only.
"""

from __future__ import annotations

import importlib.util
import json
import os
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from clip4str.charset import CHARACTERS, decode
from clip4str.checkpoint import infer_config
from clip4str.decoding import Decoded, DecodingOptions
from clip4str.decoding import decode as run_decoding
from clip4str.model import CLIP4STR
from clip4str.recognizer import branch_reading
from numpy.typing import NDArray

HERE = Path(__file__).parent.parent / "golden"
FOLDERS = [HERE, *([Path(os.environ["CLIP4STR_GOLDEN_DIR"])] if "CLIP4STR_GOLDEN_DIR" in os.environ else [])]
FEATURES, LOGITS, PROBABILITIES = 5e-5, 5e-4, 1e-4
Arrays = dict[str, NDArray[Any]]


def load_module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("golden_weights", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


golden_weights = load_module(HERE / "golden_weights.py")


def fixtures() -> list[Path]:
    """Every decoding fixture, once by name; a file of a later folder replaces its namesake."""
    found: dict[str, Path] = {}
    for folder in FOLDERS:
        for path in folder.glob("*.npz"):
            with np.load(path) as arrays:
                if any(name.endswith("visual_ar_logits") for name in arrays.files):
                    found[path.name] = path
    return [found[name] for name in sorted(found)]


@lru_cache(maxsize=1)
def build(variant: str) -> CLIP4STR:
    """The fixture's model, its sizes inferred from the weights as for any published checkpoint."""
    state = {key: torch.from_numpy(array) for key, array in golden_weights.weights(variant)}
    model = CLIP4STR(infer_config(state))
    model.load_state_dict(state, strict=True)
    return model.eval()


@lru_cache(maxsize=1)
def read_fixture(path: Path) -> tuple[Arrays, dict[str, Any]]:
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    return arrays, json.loads(str(arrays.pop("meta")))


def run(meta: dict[str, Any], options: DecodingOptions = DecodingOptions(), rows: slice = slice(None)) -> Decoded:
    model = build(meta["variant"])
    charset = meta.get("charset_test", model.config.caption_charset)
    model.config = _with_charset(model, charset)
    images = golden_weights.images(meta["variant"], meta["image_seeds"])[rows]
    return run_decoding(model, torch.from_numpy(images), options=options)


def _with_charset(model: CLIP4STR, charset: str) -> Any:
    import dataclasses

    return dataclasses.replace(model.config, caption_charset=charset)


def assert_close(actual: Any, expected: NDArray[Any], tolerance: float, what: str) -> None:
    error = np.abs(np.asarray(actual) - expected).max() if expected.size else 0.0
    assert error <= tolerance, f"{what}: off by {error:.2e}, more than {tolerance:.0e}"


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


def text_of(logits: torch.Tensor) -> str:
    return decode(logits.argmax(-1).tolist())


def prefixes(path: Path) -> list[str]:
    arrays, _ = read_fixture(path)
    return [p for p in ("single", "batch") if f"{p}_visual_ar_logits" in arrays]


BIG = [(path, prefix) for path in fixtures() for prefix in prefixes(path)]


@pytest.mark.parametrize(("path", "prefix"), BIG, ids=lambda v: v.stem if isinstance(v, Path) else v)
def test_decoding(path: Path, prefix: str) -> None:
    golden, meta = read_fixture(path)
    decoded = run(meta)
    steps = decoded.steps.tolist()
    strings = meta["strings"]

    def array(name: str) -> NDArray[Any]:
        return golden[f"{prefix}_{name}"]

    prefixed = {k.removeprefix(f"{prefix}_"): v for k, v in golden.items()}
    assert_features(decoded.image_features, prefixed, "memory", 4, prefixed.get("memory_tokens"))

    expected_t = array("T")
    assert max(steps) == expected_t if prefix == "batch" else steps == expected_t.tolist()
    for row, length in enumerate(steps):
        visual, cross = decoded.visual.autoregressive[row, :length], decoded.cross_modal.autoregressive[row, :length]
        assert_close(visual, array("visual_ar_logits")[row, :length], LOGITS, f"visual AR logits, row {row}")
        assert_close(cross, array("cross_ar_logits")[row, :length], LOGITS, f"cross AR logits, row {row}")

    for captions, name in zip(decoded.captions, ("ar", "refined"), strict=True):
        assert captions.texts == strings[f"{prefix}_captions_{name}"]
        assert np.array_equal(captions.tokens, array(f"caption_ids_{name}"))
        assert_features(captions.features, prefixed, f"text_features_{name}", 16)

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
        assert_close(probabilities, array("char_probs")[row, :count], PROBABILITIES, f"probabilities, row {row}")
