"""The benchmark measures what it says it measures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from clip4str.benchmark.flops import flops_per_crop
from clip4str.benchmark.machine import ceiling, this_machine
from clip4str.benchmark.measure import load_baseline
from clip4str.benchmark.report import Plan, run
from clip4str.benchmark.workload import WORD_LENGTH, Workload, made_up, workload
from clip4str.checkpoint import Checkpoint, CheckpointError
from clip4str.config import VARIANTS
from clip4str.decoding import decode
from clip4str.model import CLIP4STR


def test_made_up_weights_read_words_of_one_length() -> None:
    config = VARIANTS["base32"]
    model = CLIP4STR(config)
    model.load_state_dict(made_up(config))
    crops = torch.randint(256, (4, 3, 7, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pixels = torch.nn.functional.interpolate(crops, config.vision.image_size)
    decoded = decode(model.eval(), pixels)
    assert decoded.steps.tolist() == [WORD_LENGTH + 1] * 4
    visual, cross_modal = (
        branch.refined.argmax(-1).tolist() for branch in (decoded.visual, decoded.cross_modal)
    )
    assert len({tuple(row) for row in visual}) == 4
    assert visual == cross_modal


def test_flops_are_those_of_the_layers() -> None:
    """Against the sum one does by hand: 2 operations a weight and token, and those of attention."""
    config = VARIANTS["base16"]
    width, tokens, layers, dim = 768, 197, 12, 512
    blocks = layers * (2 * 12 * width**2 * tokens + 4 * tokens**2 * width)
    patches, projection = 2 * 196 * width * 3 * 16**2, 2 * tokens * width * dim
    memories = 2 * 2 * tokens * dim * 2 * dim
    encoder = blocks + patches + projection + memories
    nothing_else = flops_per_crop(config, steps=0, captions=0)
    refinement = nothing_else - encoder
    assert 0 < refinement < 0.02 * encoder
    caption = flops_per_crop(config, steps=0, captions=1) - nothing_else
    assert caption == pytest.approx(16 * 2 * (12 * 12 * 512**2 + 512**2 + 2 * 512**2) + 12 * 4 * 16**2 * 512)


def test_ceiling_is_of_this_machine() -> None:
    limits = ceiling(torch.device("cpu"), torch.float32)
    assert 1e9 < limits.flops < 1e15
    assert 1e8 < limits.bandwidth < 1e13
    assert this_machine(torch.device("cpu")).device


def test_models_that_are_not_there() -> None:
    with pytest.raises(CheckpointError, match="no model file 'base99'"):
        workload("base99")
    with pytest.raises(CheckpointError, match="no model file 'base99'"):
        list(run(Plan(["base99"], [1], "cpu", ["fp32"], None)))


@pytest.mark.parametrize(("content", "problem"), [("", "defines PublishedCLIP4STR"), (None, "no such file")])
def test_baselines_that_are_none(tmp_path: Path, content: str | None, problem: str) -> None:
    file = tmp_path / "baseline.py"
    if content is not None:
        file.write_text(content)
    config = VARIANTS["base32"]
    work = Workload(Checkpoint("none", "", config, {}), "made up")
    with pytest.raises(CheckpointError, match=problem):
        load_baseline(file, work, torch.device("cpu"), torch.float32)
