"""Labels: valid, reproducible, varied, within the length asked for."""

import numpy as np
import pytest

from clip4str.charset import CHARACTERS
from clip4str.synth.lexicon import Lexicon


def _draw(seed: int, count: int, max_length: int = 25) -> list[str]:
    lexicon = Lexicon(np.random.default_rng(seed))
    return [lexicon.draw(max_length) for _ in range(count)]


def test_labels_hold_known_characters_within_the_length() -> None:
    for max_length in (1, 4, 25):
        labels = _draw(3, 2000, max_length)
        assert all(1 <= len(label) <= max_length for label in labels)
        assert set("".join(labels)) <= set(CHARACTERS)


def test_the_same_seed_gives_the_same_labels() -> None:
    assert _draw(7, 300) == _draw(7, 300)
    assert _draw(7, 300) != _draw(8, 300)


def test_every_character_and_length_occurs() -> None:
    labels = _draw(1, 20_000)
    assert set("".join(labels)) == set(CHARACTERS)
    assert {len(label) for label in labels} == set(range(1, 26))


def test_cases_and_digits_all_have_a_fair_share() -> None:
    labels = _draw(2, 5000)
    words = [label for label in labels if label.isalpha() and len(label) > 1]
    assert 0.2 < sum(word.isupper() for word in words) / len(words) < 0.6
    assert 0.15 < sum(word.islower() for word in words) / len(words) < 0.5
    assert 0.1 < sum(any(c.isdigit() for c in label) for label in labels) / len(labels) < 0.4


@pytest.mark.parametrize("max_length", [0, 26])
def test_an_impossible_length_is_refused(max_length: int) -> None:
    with pytest.raises(ValueError, match=r"max_length must be within 1\.\.25"):
        _draw(0, 1, max_length)
