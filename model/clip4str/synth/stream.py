"""An endless stream of synthetic word images that can be entered anywhere."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, pairwise
from pathlib import Path

import numpy as np
from torch import Tensor

from clip4str.synth.chapter import Chapter
from clip4str.synth.compose import Composer
from clip4str.synth.fonts import FontLibrary


@dataclass(frozen=True, slots=True)
class WordBatch:
    """images: uint8 [N, 3, H, W]; labels: N strings of 1..25 characters."""

    images: Tensor
    labels: list[str]


@dataclass(frozen=True, slots=True)
class Stage:
    """From `samples` crops on, labels have up to `max_length` characters and crops `difficulty` (0..1)."""

    samples: int
    max_length: int
    difficulty: float


@dataclass(frozen=True, slots=True)
class Curriculum:
    """How hard the crops are, as a function of their number in one stream.

    Between stages both values are interpolated; before the first and after the last they stay.
    Raises ValueError without stages, or where their numbers do not increase.
    """

    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        counts = [stage.samples for stage in self.stages]
        if not counts or any(b <= a for a, b in pairwise(counts)):
            raise ValueError("a curriculum needs stages with increasing sample counts")

    def at(self, samples: int) -> tuple[int, float]:
        """(max_length, difficulty) after `samples` crops."""
        counts = [stage.samples for stage in self.stages]
        length = np.interp(samples, counts, [stage.max_length for stage in self.stages])
        difficulty = np.interp(samples, counts, [stage.difficulty for stage in self.stages])
        return int(length), float(difficulty)


_FULL = Curriculum((Stage(0, 25, 1.0),))


class WordStream:
    """Word images without end; crop k is a function of (fonts, seed, options, k), whatever was read before.

    fonts: a folder of fonts, or None for the one font that Pillow ships. seed: integers of at least 0.
    The stream is made in chapters of `chapter` crops: chapter / reuse words are drawn, and each is composed
    `reuse` times, so that drawing costs 1 / reuse per crop. With `like_lengths` a chunk holds words of like
    length; over every eight chunks all lengths occur as often as in the whole. The curriculum (default: full
    length and difficulty) is looked up where a chapter begins.

    Raises ValueError where chapter is no multiple of chunk and of reuse, FontError for a folder without fonts.
    """

    def __init__(
        self,
        fonts: Path | None,
        *,
        seed: int | Sequence[int],
        size: tuple[int, int] = (32, 128),
        curriculum: Curriculum | None = None,
        chapter: int = 8192,
        reuse: int = 4,
        chunk: int = 64,
        like_lengths: bool = True,
    ) -> None:
        if min(chapter, reuse, chunk) < 1 or chapter % chunk or chapter % reuse:
            raise ValueError(
                f"chapter must be a multiple of chunk and of reuse, all at least 1; got {chapter}, {chunk}, {reuse}"
            )
        self._seed = (seed,) if isinstance(seed, int) else tuple(seed)
        if not self._seed or min(self._seed) < 0:
            raise ValueError(f"seed must be integers of at least 0, got {seed}")
        self._size = size
        self._curriculum = curriculum or _FULL
        self._chapter, self._reuse, self._chunk = chapter, reuse, chunk
        self._like_lengths = like_lengths
        self._fonts = FontLibrary.open(fonts)

    def crops(self, start: int = 0) -> Iterator[WordBatch]:
        """Batches of `chunk` crops from crop number `start` on.

        Raises ValueError where start is negative or no multiple of chunk.
        """
        if start < 0 or start % self._chunk:
            raise ValueError(f"start must be a multiple of the chunk of {self._chunk} crops, got {start}")
        return self._batches(*divmod(start, self._chapter))

    def _batches(self, number: int, offset: int) -> Iterator[WordBatch]:
        composer = Composer(self._size, seed=_state(self._key()))
        first = offset // self._chunk
        for chapter_number in count(number):
            max_length, difficulty = self._curriculum.at(chapter_number * self._chapter)
            key = self._key(chapter_number)
            chapter = Chapter(
                key, self._fonts, self._chapter, self._reuse, self._chunk, max_length, self._like_lengths
            )
            for chunk in range(first, len(chapter)):
                words = chapter.words(chunk)
                composer.seed(_state(self._key(chapter_number, chunk)))
                images = composer.compose(words.masks, words.aspects, words.kinds, difficulty)
                yield WordBatch(images, words.labels)
            first = 0

    def _key(self, *path: int) -> np.random.SeedSequence:
        # Lengths tell apart what the numbers alone do not: zeros at the end of either do not count.
        return np.random.SeedSequence((len(self._seed), *self._seed), spawn_key=(len(path), *path))


def _state(key: np.random.SeedSequence) -> int:
    return int(key.generate_state(1, np.uint64)[0] >> np.uint64(1))
