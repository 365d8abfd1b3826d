"""What is read in a crop: both branches' texts with a confidence for every character."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from clip4str.charset import CHARACTERS, EOS, allowed_classes

MAX_TOP_K = 5


@dataclass(frozen=True, slots=True)
class Alternative:
    """Another character that could stand at a position, and its probability in [0, 1]."""

    text: str
    confidence: float


@dataclass(frozen=True, slots=True)
class Character:
    """One read character; `confidence` is its probability in [0, 1], `alternatives` the next best characters."""

    text: str
    confidence: float
    alternatives: tuple[Alternative, ...] = ()


@dataclass(frozen=True, slots=True)
class BranchReading:
    """What one branch read, from its refined logits.

    `confidence`: product of the characters' and the end-of-sequence token's probabilities, uncalibrated.
    `eos_confidence`: probability of the end-of-sequence token where the text ended; of a text that never
    ended, its probability at the last position (it then has no part in `confidence`).
    """

    text: str
    confidence: float
    eos_confidence: float
    characters: tuple[Character, ...]


@dataclass(frozen=True, slots=True)
class Reading:
    """One crop's answer: both branches, and whether the text was cut because the model never ended it."""

    visual: BranchReading
    cross_modal: BranchReading
    truncated: bool

    @property
    def text(self) -> str:
        """The final answer: the refined cross-modal branch's text."""
        return self.cross_modal.text

    @property
    def confidence(self) -> float:
        """The final answer's confidence in [0, 1]."""
        return self.cross_modal.confidence

    @property
    def agreement(self) -> bool:
        """Whether both branches read the same text."""
        return self.visual.text == self.cross_modal.text


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How to read one crop.

    `top_k`: alternatives listed for each character, 0 to 5. `charset`: only these characters may be read, by
    name (full, alphanumeric, digits, lowercase, uppercase) or as a literal string; None allows all 94.
    Raises ValueError, or its subclass CharsetError.
    """

    top_k: int = 0
    charset: str | None = None

    def __post_init__(self) -> None:
        if type(self.top_k) is not int or not 0 <= self.top_k <= MAX_TOP_K:
            raise ValueError(f"top_k is {self.top_k!r}: it must be a whole number between 0 and {MAX_TOP_K}")
        if self.charset is not None:
            allowed_classes(self.charset)


def branch_readings(logits: Tensor, top_k: Sequence[int]) -> list[tuple[BranchReading, bool]]:
    """One branch's refined logits, float32 [N, T, 95] -> each row's reading, and whether it never ended.

    `top_k`: alternatives wanted in each row.
    """
    probabilities = logits.softmax(-1)  # [N, T, 95]
    best, ids = probabilities.max(-1)
    rows = zip(
        probabilities, best.tolist(), ids.tolist(), probabilities[..., EOS].tolist(), top_k, strict=True
    )
    return [_branch_reading(*row) for row in rows]


def _branch_reading(
    probabilities: Tensor, best: list[float], ids: list[int], ends: list[float], top_k: int
) -> tuple[BranchReading, bool]:
    """One row: its probabilities [T, 95], of which `best` are the highest, `ids` theirs, `ends` those of EOS."""
    ended = EOS in ids
    length = ids.index(EOS) if ended else len(ids)
    others = _alternatives(probabilities[:length], ids[:length], top_k) if top_k else [()] * length
    characters = tuple(
        Character(CHARACTERS[index - 1], confidence, alternatives)
        for index, confidence, alternatives in zip(ids[:length], best[:length], others, strict=True)
    )
    confidence = 1.0
    for factor in best[: length + 1]:  # EOS counts where it was read
        confidence *= factor
    text = "".join(character.text for character in characters)
    return BranchReading(text, confidence, ends[min(length, len(ids) - 1)], characters), not ended


def _alternatives(probabilities: Tensor, chosen: list[int], top_k: int) -> list[tuple[Alternative, ...]]:
    """At each position the `top_k` most probable characters but the chosen, those with no probability left out."""
    others = probabilities.clone()
    others[:, EOS] = 0.0
    others[range(len(chosen)), chosen] = 0.0
    confidences, ids = others.topk(top_k)
    return [
        tuple(
            Alternative(CHARACTERS[i - 1], confidence)
            for i, confidence in zip(*row, strict=True)
            if confidence > 0.0
        )
        for row in zip(ids.tolist(), confidences.tolist(), strict=True)
    ]
