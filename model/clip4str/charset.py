"""Text and token ids: the 94 characters, the special tokens, charset adaptation, the named charsets.

Ids: 0 is the end of sequence (EOS), 1..94 the characters in order, 95 the beginning (BOS), 96 padding (PAD).
The heads predict ids 0..94 only. `tokens` makes tensors of them.
"""

from __future__ import annotations

from collections.abc import Sequence

DIGITS = "0123456789"
LOWERCASE = "abcdefghijklmnopqrstuvwxyz"
UPPERCASE = LOWERCASE.upper()
ALPHANUMERIC_LOWER = DIGITS + LOWERCASE
CHARACTERS = ALPHANUMERIC_LOWER + UPPERCASE + "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"

EOS = 0
BOS = len(CHARACTERS) + 1
PAD = len(CHARACTERS) + 2
CLASSES = len(CHARACTERS) + 1  # what a head predicts: EOS and the characters
TOKENS = len(CHARACTERS) + 3  # what a decoder embeds: those, BOS and PAD

_ID = {character: index for index, character in enumerate(CHARACTERS, start=1)}
_NAMED_CHARSETS = {
    "full": CHARACTERS,
    "alphanumeric": ALPHANUMERIC_LOWER + UPPERCASE,
    "digits": DIGITS,
    "lowercase": LOWERCASE,
    "uppercase": UPPERCASE,
}
# The published code joins token *names* before it cuts a caption, so the three characters "[E]" end it as well.
_EOS_NAME = "[E]"


class CharsetError(ValueError):
    """A label or a requested charset holds characters that the model does not know."""


def character_ids(text: str) -> list[int]:
    """Ids of the characters of `text`. Raises CharsetError naming the first unknown one."""
    try:
        return [_ID[character] for character in text]
    except KeyError as error:
        raise CharsetError(
            f"{error.args[0]!r} in {text!r} is not one of the {len(CHARACTERS)} known characters"
        ) from None


def decode(ids: Sequence[int]) -> str:
    """Class ids 0..94 -> the text before the first EOS."""
    characters = []
    for index in ids:
        if index == EOS:
            break
        characters.append(CHARACTERS[index - 1])
    return "".join(characters)


def decode_caption(ids: Sequence[int]) -> str:
    """As `decode`, but also cut at the literal text "[E]", as the published code does for captions alone."""
    return decode(ids).split(_EOS_NAME, 1)[0]


def adapt(text: str, charset: str) -> str:
    """Map `text` into `charset`: fold the case if the charset has one case only, then drop what it lacks."""
    if charset == charset.lower():
        text = text.lower()
    elif charset == charset.upper():
        text = text.upper()
    return "".join(character for character in text if character in charset)


def resolve(charset: str) -> str:
    """The allowed characters, in canonical order, that a charset's name or a literal string stands for.

    Raises CharsetError for an empty string or one with unknown characters.
    """
    characters = _NAMED_CHARSETS.get(charset, charset)
    if not characters:
        raise CharsetError(
            f"charset is empty: name one of {', '.join(_NAMED_CHARSETS)} or list the allowed characters"
        )
    wanted = set(character_ids(characters))
    return "".join(character for character in CHARACTERS if _ID[character] in wanted)
