"""Glyph masks: inked, tight, legible in size, reproducible."""

import numpy as np
import pytest

from clip4str.synth.fonts import FontLibrary
from clip4str.synth.kinds import Kind
from clip4str.synth.render import MASK_SIZE, WordMask, render_word


def _render(label: str, seed: int) -> WordMask:
    library = FontLibrary.open(None)
    return render_word(label, Kind.SIGN, library, library.families[0][0], np.random.default_rng(seed))


@pytest.mark.parametrize("label", ["a", ".", "-", "word", "TOTAL:", "jumped", "X" * 25, "|", "_"])
def test_a_mask_is_inked_and_fills_its_canvas(label: str) -> None:
    for seed in range(12):
        mask = _render(label, seed)
        assert mask.coverage.shape == MASK_SIZE
        assert mask.coverage.dtype == np.uint8
        assert mask.coverage.max() > 150
        assert mask.coverage.mean() < 250
        assert 0.2 < mask.aspect < 40


def test_words_reach_all_four_borders_of_the_mask() -> None:
    reached = np.zeros(4, dtype=bool)
    for seed in range(20):
        ink = _render("Hydrant", seed).coverage > 60
        reached |= [ink[:3].any(), ink[-3:].any(), ink[:, :6].any(), ink[:, -6:].any()]
    assert reached.all()


def test_longer_words_are_wider() -> None:
    short = np.mean([_render("ab", seed).aspect for seed in range(20)])
    long = np.mean([_render("abababababab", seed).aspect for seed in range(20)])
    assert long > 3 * short


def test_the_same_seed_draws_the_same_mask() -> None:
    first, second, other = _render("Reproducible", 5), _render("Reproducible", 5), _render("Reproducible", 6)
    assert np.array_equal(first.coverage, second.coverage)
    assert first.aspect == second.aspect
    assert not np.array_equal(first.coverage, other.coverage)
