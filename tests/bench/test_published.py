"""The speed baseline computes what the published implementation computes, batch effects included."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from bench.published import Decoded, PublishedCLIP4STR, read
from clip4str import checkpoint
from clip4str.image import Pixels
from clip4str.reading import ReadOptions
from clip4str.recognizer import Recognizer
from tests.model.golden import (
    FEATURES,
    LOGITS,
    Arrays,
    assert_close,
    fixtures,
    golden_weights,
    read_fixture,
    text_of,
)

NAMES = ("tiny", "tiny_long", "tiny_charset94", "tinyx", "B32", "B16", "L14", "H14")  # one model in a row
SAMPLES = Path(__file__).parents[2] / "samples"
MODES: dict[str, dict[str, Any]] = {
    "refine0": {"refine_iters": 0},
    "refine2": {"refine_iters": 2},
    "maxlen7": {"max_length": 7},
    "maxlen30": {"max_length": 30},
}


def available(name: str) -> list[Path]:
    """The fixture's file, from the folder named last when several have it."""
    return fixtures(f"{name}.npz")[-1:]


def runs() -> list[tuple[Path, str]]:
    """Every fixture with each of its runs: of the whole batch, of each image alone."""
    found = []
    for path in (path for name in NAMES for path in available(name)):
        with np.load(path) as arrays:
            found += [(path, p) for p in ("batch", "single") if f"{p}_visual_ar_logits" in arrays.files]
    return found


@lru_cache(maxsize=1)
def build(variant: str) -> PublishedCLIP4STR:
    state = {key: torch.from_numpy(array) for key, array in golden_weights.weights(variant)}
    return PublishedCLIP4STR.from_state_dict(state)


def images(meta: dict[str, Any]) -> Tensor:
    return torch.from_numpy(golden_weights.images(meta["variant"], meta["image_seeds"]))


def assert_features(actual: Tensor, golden: Arrays, name: str, stride: int, tokens: Any = None) -> None:
    """Features against the full array, or against the slice of it that a fixture keeps."""
    if name not in golden:
        picked = actual if tokens is None else actual[:, torch.from_numpy(np.asarray(tokens).reshape(-1))]
        actual, name = picked[..., ::stride], f"{name}_slice"
    assert_close(actual, golden[name], FEATURES, name)


def assert_run(decoded: Decoded, golden: Arrays, strings: dict[str, Any]) -> None:
    """One run of one image or of a batch, against the fixture's arrays of the same rows."""
    assert decoded.visual_autoregressive.shape[1] == int(np.max(golden["T"]))
    assert_features(decoded.memory, golden, "memory", 4, golden.get("memory_tokens"))
    assert_close(decoded.visual_autoregressive, golden["visual_ar_logits"], LOGITS, "visual AR logits")
    assert_close(decoded.cross_autoregressive, golden["cross_ar_logits"], LOGITS, "cross AR logits")
    assert_close(decoded.visual_refined, golden["visual_refined_logits"], LOGITS, "refined visual logits")
    assert_close(decoded.cross_refined, golden["cross_refined_logits"], LOGITS, "refined cross logits")
    for captions, name in zip(decoded.captions, ("ar", "refined"), strict=True):
        assert captions.texts == strings[f"captions_{name}"]
        assert np.array_equal(captions.tokens, golden[f"caption_ids_{name}"])
        assert_features(captions.features, golden, f"text_features_{name}", 16)
    assert [text_of(row) for row in decoded.cross_refined] == strings["pred"]


@pytest.mark.parametrize(("path", "prefix"), runs(), ids=lambda v: v.stem if isinstance(v, Path) else v)
def test_golden(path: Path, prefix: str) -> None:
    arrays, meta = read_fixture(path)
    golden = {k.removeprefix(f"{prefix}_"): v for k, v in arrays.items() if k.startswith(f"{prefix}_")}
    strings = {
        k.removeprefix(f"{prefix}_"): v for k, v in meta["strings"].items() if k.startswith(f"{prefix}_")
    }
    model, pixels = build(meta["variant"]), images(meta)
    if prefix == "batch":
        assert_run(model.decode(pixels, charset=meta.get("charset_test")), golden, strings)
        return
    per_row = [name for name in golden if name != "memory_tokens"]
    for row in range(len(pixels)):
        of_row = {**golden, **{name: golden[name][row : row + 1] for name in per_row}}
        steps = int(of_row["T"][0])
        for name in ("visual_ar_logits", "cross_ar_logits"):
            of_row[name] = of_row[name][:, :steps]  # the rest is padding
        decoded = model.decode(pixels[row : row + 1], charset=meta.get("charset_test"))
        texts = {name: values[row : row + 1] for name, values in strings.items()}
        assert_run(decoded, of_row, texts)


@pytest.mark.parametrize("mode", MODES)
def test_modes(mode: str) -> None:
    golden, meta = read_fixture(available("tiny_modes")[0])
    options = MODES[mode]
    decoded = build(meta["variant"]).decode(images(meta), charset=meta["charset_test"], **options)

    assert decoded.visual_autoregressive.shape[1] == golden[f"{mode}_T"]
    assert_close(decoded.visual_autoregressive, golden[f"{mode}_visual_ar_logits"], LOGITS, "visual AR")
    assert_close(decoded.cross_autoregressive, golden[f"{mode}_cross_ar_logits"], LOGITS, "cross AR")
    assert_close(decoded.cross_refined, golden[f"{mode}_final_logits"], LOGITS, "final")
    last = options.get("refine_iters", 1) - 1
    if last >= 0:
        refined = golden[f"{mode}_visual_refined_logits_{last}"]
        assert_close(decoded.visual_refined, refined, LOGITS, "refined visual")
    assert [captions.texts for captions in decoded.captions] == meta["strings"][f"{mode}_captions"]


@pytest.fixture(scope="module")
def recognizer() -> Recognizer:
    return Recognizer.load("default", device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def crops(recognizer: Recognizer) -> list[Pixels]:
    """The samples as prepared crops."""
    return [recognizer.prepare(Image.open(path)) for path in sorted(SAMPLES.glob("*.jpg"))]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "autocast"])
def test_reads_the_samples_as_the_library_does(
    precision: str, recognizer: Recognizer, crops: list[Pixels]
) -> None:
    loaded = checkpoint.load("default")
    model = PublishedCLIP4STR.from_state_dict(loaded.state, loaded.config)
    model.to(torch.bfloat16 if precision == "bf16" else torch.float32)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (loaded.config.mean, loaded.config.std))
    readings = recognizer.read_prepared(crops, [ReadOptions()] * len(crops))
    assert readings

    for crop, reading in zip(crops, readings, strict=True):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
            logits = read(model, ((torch.from_numpy(crop) / 255 - mean) / std).unsqueeze(0))
        assert logits.dtype == torch.float32
        assert text_of(logits[0]) == reading.text
