"""Parity of the other ways to decode: no refinement, two refinements, a fixed number of positions.

The fixture holds the published code's runs on a whole batch; ours answers every row as if it were alone. What
cannot depend on the batch is compared for all rows: the autoregressive logits within a row's own steps, the
captions, the refined visual logits. The cross-modal branch's last logits are compared for the rows whose
cross-modal reading ended within the row's own steps: the others depend on their neighbours in the published
code. With a fixed number of positions no row does, and everything is compared.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from clip4str.charset import EOS
from clip4str.decoding import Decoded, DecodingOptions
from tests.model.golden import (
    LOGITS,
    assert_close,
    branch_reading,
    fixtures,
    in_folder,
    read_fixture,
    run,
    text_of,
)

each_fixture = pytest.mark.parametrize("path", fixtures("tiny_modes.npz"), ids=in_folder)
each_refinement = pytest.mark.parametrize("refine_iters", [0, 2])
each_length = pytest.mark.parametrize(("max_length", "positions"), [(7, 8), (30, 26)])


@cache
def decoded(path: Path, options: DecodingOptions) -> Decoded:
    return run(read_fixture(path)[1], options)


def independent_rows(result: Decoded) -> list[int]:
    """Rows whose cross-modal branch emitted EOS within the row's own steps."""
    rows = [
        row
        for row, steps in enumerate(result.steps.tolist())
        if (result.cross_modal.autoregressive[row, :steps].argmax(-1) == EOS).any()
    ]
    assert 0 < len(rows) < len(result.steps)  # the fixture has both kinds
    return rows


@each_fixture
@each_refinement
def test_autoregressive_logits(path: Path, refine_iters: int) -> None:
    arrays, _ = read_fixture(path)
    result, name = decoded(path, DecodingOptions(refine_iters)), f"refine{refine_iters}"
    assert max(result.steps) == arrays[f"{name}_T"]
    for row, steps in enumerate(result.steps.tolist()):
        visual, cross = (branch.autoregressive[row, :steps] for branch in (result.visual, result.cross_modal))
        assert_close(visual, arrays[f"{name}_visual_ar_logits"][row, :steps], LOGITS, f"visual, row {row}")
        assert_close(cross, arrays[f"{name}_cross_ar_logits"][row, :steps], LOGITS, f"cross, row {row}")


@each_fixture
@each_refinement
def test_captions(path: Path, refine_iters: int) -> None:
    _, meta = read_fixture(path)
    captions = [seen.texts for seen in decoded(path, DecodingOptions(refine_iters)).captions]
    assert captions == meta["strings"][f"refine{refine_iters}_captions"]


@each_fixture
@pytest.mark.parametrize("refinement", [0, 1])
def test_refined_logits_of_each_refinement(path: Path, refinement: int) -> None:
    arrays, _ = read_fixture(path)
    result = decoded(path, DecodingOptions(refinement + 1))
    visual = arrays[f"refine2_visual_refined_logits_{refinement}"]
    assert_close(result.visual.refined, visual, LOGITS, "visual")
    cross = arrays[f"refine2_cross_refined_logits_{refinement}"]
    for row in independent_rows(result):
        assert_close(result.cross_modal.refined[row], cross[row], LOGITS, f"cross, row {row}")


@each_fixture
@each_refinement
def test_answer(path: Path, refine_iters: int) -> None:
    arrays, meta = read_fixture(path)
    result, name = decoded(path, DecodingOptions(refine_iters)), f"refine{refine_iters}"
    for row in independent_rows(result):
        logits, expected = result.cross_modal.refined[row], arrays[f"{name}_final_logits"][row]
        if refine_iters == 0:  # the autoregressive logits, which have a meaning up to the row's last step
            steps = int(result.steps[row])
            logits, expected = logits[:steps], expected[:steps]
        assert_close(logits, expected, LOGITS, f"row {row}")
        reading, _ = branch_reading(logits)
        assert reading.text == meta["strings"][f"{name}_pred"][row]
        assert reading.confidence == pytest.approx(float(arrays[f"{name}_confidence"][row]), rel=1e-4)


@each_fixture
@each_length
def test_fixed_number_of_positions(path: Path, max_length: int, positions: int) -> None:
    arrays, meta = read_fixture(path)
    result, name = decoded(path, DecodingOptions(max_length=max_length)), f"maxlen{max_length}"
    assert arrays[f"{name}_T"] == positions
    assert result.steps.tolist() == [positions] * len(result.steps)
    for ours, theirs in (
        (result.visual.autoregressive, "visual_ar_logits"),
        (result.cross_modal.autoregressive, "cross_ar_logits"),
        (result.visual.refined, "visual_refined_logits_0"),
        (result.cross_modal.refined, "cross_refined_logits_0"),
        (result.cross_modal.refined, "final_logits"),
    ):
        assert_close(ours, arrays[f"{name}_{theirs}"], LOGITS, theirs)
    assert [seen.texts for seen in result.captions] == meta["strings"][f"{name}_captions"]
    assert [text_of(row) for row in result.cross_modal.refined] == meta["strings"][f"{name}_pred"]
    confidences = [branch_reading(row)[0].confidence for row in result.cross_modal.refined]
    assert confidences == pytest.approx(arrays[f"{name}_confidence"].tolist(), rel=1e-4)
