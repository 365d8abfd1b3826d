"""The library's public names are a promise: a change here is a change for every user."""

import json
import subprocess
import sys

import pytest

import clip4str

NAMES = [
    "Alternative",
    "BranchReading",
    "Character",
    "CharsetError",
    "CheckpointError",
    "ModelInfo",
    "ReadOptions",
    "Reading",
    "Recognizer",
]

VALUE_TYPES = """
import json, sys, time
before, started = set(sys.modules), time.perf_counter()
from clip4str import Alternative, BranchReading, Character, CharsetError, ModelInfo, ReadOptions, Reading
ReadOptions(top_k=1, charset="digits")
seconds = time.perf_counter() - started
print(json.dumps([seconds, sorted({name.partition(".")[0] for name in set(sys.modules) - before})]))
"""
PIXELS = """
import sys
from PIL import Image
from clip4str.image import prepare
assert prepare(Image.new("RGB", (9, 9)), (32, 128)).shape == (3, 32, 128)
assert "torch" not in sys.modules
"""


def run(code: str) -> str:
    """The output of a new interpreter."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_public_names() -> None:
    assert sorted(clip4str.__all__) == NAMES
    assert all(hasattr(clip4str, name) for name in NAMES)
    assert set(NAMES) <= set(dir(clip4str))


def test_unknown_names() -> None:
    with pytest.raises(AttributeError, match="module 'clip4str' has no attribute 'Recogniser'"):
        getattr(clip4str, "Recogniser")  # noqa: B009 (mypy knows better)


def test_value_types_need_neither_the_model_nor_time() -> None:
    """Every process of a service imports them, and most hold no model."""
    runs = [json.loads(run(VALUE_TYPES)) for _ in range(3)]
    for _, modules in runs:
        assert not {"torch", "open_clip", "numpy", "PIL", "safetensors"} & set(modules)
    assert min(seconds for seconds, _ in runs) < 0.3


def test_pixels_are_prepared_without_torch() -> None:
    assert run(PIXELS) == ""
