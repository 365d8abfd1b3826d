"""Text as tensors; the golden ids are compared in `test_text_golden.py`."""

import pytest
import torch

from clip4str.charset import BOS, CHARACTERS, EOS, PAD, CharsetError, character_ids
from clip4str.tokens import allowed_classes, encode


def test_labels_of_different_lengths_are_padded() -> None:
    assert encode(["", "1a"]).tolist() == [[BOS, EOS, PAD, PAD], [BOS, 2, 11, EOS]]


@pytest.mark.parametrize(
    ("charset", "characters"),
    [("full", CHARACTERS), ("digits", "0123456789"), ("uppercase", CHARACTERS[36:62]), ("b!a", "ab!")],
)
def test_a_charset_allows_its_characters_and_the_end(charset: str, characters: str) -> None:
    mask = allowed_classes(charset)
    assert (mask.shape, mask.dtype) == ((95,), torch.bool)
    assert mask.nonzero()[:, 0].tolist() == [EOS, *character_ids(characters)]


def test_unknown_characters_are_refused() -> None:
    with pytest.raises(CharsetError, match="'é' in 'abé'"):
        allowed_classes("abé")
    with pytest.raises(CharsetError, match="' ' in 'a b'"):
        encode(["ab", "a b"])
