"""Logits to readings: texts, confidences, alternatives, truncation."""

import math

import pytest
import torch

from clip4str.charset import CHARACTERS, EOS, character_ids
from tests.model.golden import branch_reading


def logits_of(text: str, *, end: bool = True, sharpness: float = 6.0) -> torch.Tensor:
    """Logits [26, 95] that say `text`; the next best character at each place is the one after it."""
    ids = character_ids(text) + ([EOS] if end else [])
    logits = torch.zeros(26, len(CHARACTERS) + 1)
    for position, index in enumerate(ids):
        logits[position, index] = sharpness
        logits[position, (index % len(CHARACTERS)) + 1] = sharpness / 2
    return logits


def test_reading_is_the_text_before_eos_with_eos_in_its_confidence() -> None:
    logits = logits_of("Ab9")
    probabilities = logits.softmax(-1)
    reading, truncated = branch_reading(logits)
    assert reading.text == "Ab9"
    assert not truncated
    expected = [float(probabilities[i, j]) for i, j in enumerate([*character_ids("Ab9"), EOS])]
    assert [character.confidence for character in reading.characters] == pytest.approx(expected[:3])
    assert reading.eos_confidence == pytest.approx(expected[3])
    assert reading.confidence == pytest.approx(math.prod(expected), rel=1e-5)  # four roundings
    assert all(character.alternatives == () for character in reading.characters)


def test_empty_reading_has_the_confidence_of_eos() -> None:
    reading, truncated = branch_reading(logits_of(""))
    assert (reading.text, reading.characters, truncated) == ("", (), False)
    assert reading.confidence == reading.eos_confidence > 0.5


def test_endless_reading_is_truncated() -> None:
    reading, truncated = branch_reading(logits_of("x" * 26, end=False))
    assert truncated
    assert reading.text == "x" * 26
    assert reading.eos_confidence < 0.01
    assert reading.confidence == pytest.approx(reading.characters[0].confidence ** 26, rel=1e-5)


def test_alternatives_are_other_characters_most_probable_first() -> None:
    reading, _ = branch_reading(logits_of("ab"), top_k=3)
    alternatives = reading.characters[0].alternatives
    assert alternatives[0].text == "b"
    assert [len(character.alternatives) for character in reading.characters] == [3, 3]
    confidences = [alternative.confidence for alternative in alternatives]
    assert confidences == sorted(confidences, reverse=True)
    assert all(a.text not in ("a", "") for a in alternatives)


def test_alternatives_leave_out_the_impossible() -> None:
    logits = logits_of("1")
    logits[:, [i for i in range(95) if i not in (EOS, *character_ids("12"))]] = float("-inf")
    reading, _ = branch_reading(logits, top_k=5)
    assert [alternative.text for alternative in reading.characters[0].alternatives] == ["2"]
