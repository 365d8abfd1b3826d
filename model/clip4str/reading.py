"""What is asked of a crop, and what is read in it: both branches' texts, a confidence for every character."""

from __future__ import annotations

from dataclasses import dataclass

from clip4str import charset

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
            charset.resolve(self.charset)
