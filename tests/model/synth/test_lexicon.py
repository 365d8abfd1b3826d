"""Labels: valid, reproducible, varied, within the length asked for, as their kind has them."""

import numpy as np
import pytest

from clip4str.charset import CHARACTERS
from clip4str.synth.kinds import Kind
from clip4str.synth.lexicon import Lexicon


def _draw(kind: Kind, seed: int, count: int, max_length: int = 25) -> list[str]:
    lexicon = Lexicon(np.random.default_rng(seed))
    return [lexicon.draw(kind, max_length) for _ in range(count)]


@pytest.mark.parametrize("kind", list(Kind))
@pytest.mark.parametrize("max_length", [1, 4, 25])
def test_labels_hold_known_characters_within_the_length(kind: Kind, max_length: int) -> None:
    labels = _draw(kind, 3, 1500, max_length)
    assert all(1 <= len(label) <= max_length for label in labels)
    assert set("".join(labels)) <= set(CHARACTERS)


def test_the_same_seed_gives_the_same_labels() -> None:
    assert _draw(Kind.FORM, 7, 300) == _draw(Kind.FORM, 7, 300)
    assert _draw(Kind.FORM, 7, 300) != _draw(Kind.FORM, 8, 300)


@pytest.mark.parametrize("kind", list(Kind))
def test_every_character_and_length_occurs(kind: Kind) -> None:
    labels = _draw(kind, 1, 20_000)
    assert set("".join(labels)) == set(CHARACTERS)
    assert {len(label) for label in labels} == set(range(1, 26))


@pytest.mark.parametrize("kind", list(Kind))
def test_most_labels_are_short_as_real_words_are(kind: Kind) -> None:
    lengths = np.array([len(label) for label in _draw(kind, 4, 5000)])
    assert 4.5 < lengths.mean() < 6.3
    assert np.mean(lengths <= 2) > 0.1
    assert 0.01 < np.mean(lengths >= 12) < 0.07


@pytest.mark.parametrize(
    ("kind", "upper", "digits"), [(Kind.FORM, 0.4, 0.2), (Kind.RECEIPT, 0.6, 0.55), (Kind.SIGN, 0.55, 0.15)]
)
def test_kinds_differ_in_case_and_digits(kind: Kind, upper: float, digits: float) -> None:
    labels = _draw(kind, 2, 5000)
    words = [label for label in labels if label.isalpha() and len(label) > 1]
    assert np.mean([word.isupper() for word in words]) == pytest.approx(upper, abs=0.08)
    assert np.mean([any(c.isdigit() for c in label) for label in labels]) == pytest.approx(digits, abs=0.08)
    assert np.mean([word.islower() for word in words]) > 0.1


@pytest.mark.parametrize("max_length", [0, 26])
def test_an_impossible_length_is_refused(max_length: int) -> None:
    with pytest.raises(ValueError, match=r"max_length must be within 1\.\.25"):
        _draw(Kind.SIGN, 0, 1, max_length)
