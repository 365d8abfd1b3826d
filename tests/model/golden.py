"""Golden fixtures: arrays that the published implementation made, and our model with their weights.

Fixtures lie in `tests/golden/` and, when set, in the folder named by CLIP4STR_GOLDEN_DIR. The weights of a
fixture are a pure function of their names (`golden_weights.py`), so no weight file is shipped.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from clip4str.charset import decode
from clip4str.checkpoint import infer_config
from clip4str.decoding import Decoded, DecodingOptions
from clip4str.decoding import decode as run_decoding
from clip4str.inference import optimize
from clip4str.model import CLIP4STR
from clip4str.reading import BranchReading
from clip4str.readout import branch_readings

HERE = Path(__file__).parents[1] / "golden"
FOLDERS = [HERE, *([Path(os.environ["CLIP4STR_GOLDEN_DIR"])] if "CLIP4STR_GOLDEN_DIR" in os.environ else [])]
FEATURES, LOGITS, PROBABILITIES = 5e-5, 5e-4, 1e-4
DEVICES = [torch.device("cpu"), *([torch.device("cuda:0")] if torch.cuda.is_available() else [])]
Arrays = dict[str, NDArray[Any]]


def _load_module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


golden_weights = _load_module(HERE / "golden_weights.py")


def fixtures(name: str) -> list[Path]:
    """A fixture of this name in each folder that has one."""
    return [folder / name for folder in FOLDERS if (folder / name).is_file()]


@lru_cache(maxsize=1)
def read_fixture(path: Path) -> tuple[Arrays, dict[str, Any]]:
    """A fixture's arrays, and its `meta`; empty where it has none."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    return arrays, json.loads(str(arrays.pop("meta", "{}")))


@lru_cache(maxsize=2)
def read_json(path: Path) -> dict[str, Any]:
    """A JSON fixture."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def build(variant: str) -> CLIP4STR:
    """A new model of golden weights, its sizes inferred from the weights as for any published checkpoint."""
    state = {key: torch.from_numpy(array) for key, array in golden_weights.weights(variant)}
    model = CLIP4STR(infer_config(state))
    model.load_state_dict(state, strict=True)
    return model.eval()


@lru_cache(maxsize=1)
def _shared(variant: str, device: torch.device) -> CLIP4STR:
    return optimize(build(variant), device, torch.float32)


def run(
    meta: dict[str, Any], options: DecodingOptions | None = None, device: torch.device = DEVICES[0]
) -> Decoded:
    """Decode a fixture's images with its model, in the form that reads for users, and its caption charset."""
    model = _shared(meta["variant"], device)
    charset = meta.get("charset_test", model.config.caption_charset)
    model.config = dataclasses.replace(model.config, caption_charset=charset)
    images = torch.from_numpy(golden_weights.images(meta["variant"], meta["image_seeds"])).to(device)
    decoded: Decoded = _on_cpu(run_decoding(model, images, options=options or DecodingOptions()))
    return decoded


def _on_cpu(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.cpu()
    if isinstance(value, tuple):
        return tuple(_on_cpu(item) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: _on_cpu(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **fields)
    return value


def assert_close(actual: Any, expected: Any, tolerance: float, what: str) -> None:
    """Same shape, and no element further off than `tolerance`."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, not {expected.shape}"
    error = np.abs(actual - expected).max() if expected.size else 0.0
    assert error <= tolerance, f"{what}: off by {error:.2e}, more than {tolerance:.0e}"


def text_of(logits: torch.Tensor) -> str:
    """What logits [T, 95] say."""
    return decode(logits.argmax(-1).tolist())


def in_folder(path: Path) -> str:
    """A test's id: a fixture and the folder it lies in."""
    return f"{path.parent.name}/{path.stem}"


def branch_reading(logits: torch.Tensor, top_k: int = 0) -> tuple[BranchReading, bool]:
    """The reading of one row's logits [T, 95], and whether it never ended."""
    return branch_readings(logits[None].numpy(), [top_k])[0]
