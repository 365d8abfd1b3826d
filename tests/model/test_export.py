"""Exported graphs under onnxruntime read what the model reads."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime  # type: ignore[import-untyped]  # shipped without type information
import pytest
import torch
from torch import Tensor

from clip4str import checkpoint, export
from clip4str.charset import CHARACTERS, EOS, adapt, decode_caption
from clip4str.checkpoint import CheckpointError
from clip4str.decoding import Decoded, decode
from clip4str.model import CLIP4STR
from clip4str.towers import tokenize
from tests.model.golden import FEATURES, LOGITS, assert_close, build, text_of

Sessions = tuple[onnxruntime.InferenceSession, onnxruntime.InferenceSession]


@pytest.fixture(scope="module")
def model() -> CLIP4STR:
    """Random weights whose readings are of all lengths, and captions in BPE, as published models have them."""
    return build("tiny")


@pytest.fixture(scope="module")
def sessions(model: CLIP4STR, tmp_path_factory: pytest.TempPathFactory) -> Sessions:
    folder = tmp_path_factory.mktemp("export")
    checkpoint.save(folder / "tiny.safetensors", model, torch.float32)
    export.export(str(folder / "tiny.safetensors"), folder / "graphs")
    assert sorted(path.name for path in folder.iterdir()) == ["graphs", "tiny.safetensors"]
    visual, cross_modal = (
        onnxruntime.InferenceSession(folder / "graphs" / name, providers=["CPUExecutionProvider"])
        for name in (export.VISUAL, export.CROSS_MODAL)
    )
    return visual, cross_modal


def read(sessions: Sessions, model: CLIP4STR, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The visual branch's reading and both branches' refined logits."""
    visual, cross_modal = sessions
    features, reading, logits = visual.run(None, {"pixels": pixels.numpy()})
    charset = model.config.caption_charset
    captions = [[adapt(decode_caption(row), charset) for row in ids] for ids in (reading, logits.argmax(-1))]
    tokens = np.stack([tokenize(texts, model.config).numpy() for texts in captions])
    inputs = {"image_features": features, "visual_reading": reading, "caption_tokens": tokens}
    (answer,) = cross_modal.run(None, inputs)
    return torch.from_numpy(reading), torch.from_numpy(logits), torch.from_numpy(answer)


def images(model: CLIP4STR, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 256, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)
    height, width = model.config.vision.image_size
    return coarse.repeat_interleave(height // 8, 2).repeat_interleave(width // 8, 3)


def expected(model: CLIP4STR, pixels: Tensor) -> Decoded:
    return decode(model, model.normalize(pixels))


@pytest.mark.parametrize("count", [1, 24])
def test_reads_as_the_model_does(sessions: Sessions, model: CLIP4STR, count: int) -> None:
    pixels = images(model, count)
    reading, visual, cross_modal = read(sessions, model, pixels)
    decoded = expected(model, pixels)

    for row, steps in enumerate(decoded.steps.tolist()):
        ids = decoded.visual.autoregressive[row, :steps].argmax(-1)
        assert reading[row, :steps].tolist() == ids.tolist()
        assert (reading[row, steps:] == EOS).all()
    assert_close(visual, decoded.visual.refined, LOGITS, "refined visual logits")
    assert_close(cross_modal, decoded.cross_modal.refined, LOGITS, "refined cross-modal logits")
    assert [text_of(row) for row in cross_modal] == [text_of(row) for row in decoded.cross_modal.refined]
    if count > 1:
        assert len(set(decoded.steps.tolist())) > 3  # so that rows end while others go on


def test_features_are_those_of_the_model(sessions: Sessions, model: CLIP4STR) -> None:
    pixels = images(model, 3)
    features = sessions[0].run(["image_features"], {"pixels": pixels.numpy()})[0]
    assert_close(features, expected(model, pixels).image_features, FEATURES, "image features")


def test_metadata_says_how_to_use_the_graphs(sessions: Sessions, model: CLIP4STR) -> None:
    for session in sessions:
        notes = json.loads(session.get_modelmeta().custom_metadata_map[export.METADATA_KEY])
        assert notes["name"] == "tiny"
        assert notes["revision"].startswith("sha256:")
        assert notes["image_size"] == list(model.config.vision.image_size)
        assert notes["characters"] == CHARACTERS
        assert notes["caption_charset"] == model.config.caption_charset
        assert notes["caption_tokenizer"] == "bpe"


def test_a_folder_that_exists_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="exists"):
        export.export("default", tmp_path)
    with pytest.raises(CheckpointError, match="there is no folder"):
        export.export("default", tmp_path / "missing" / "graphs")
    assert list(tmp_path.iterdir()) == []
