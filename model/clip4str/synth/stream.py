"""An endless stream of synthetic word images: masks kept in a ring and reused, composed in batches."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from clip4str.synth.compose import Composer
from clip4str.synth.fonts import FontLibrary
from clip4str.synth.lexicon import Lexicon
from clip4str.synth.render import MASK_SIZE, WordMask, render_word

# Batches drawn together and cut by label length; more of them give batches of more even lengths.
_WINDOW = 8


@dataclass(frozen=True, slots=True)
class SyntheticBatch:
    """images: uint8 [N, 3, H, W]; labels: N strings of 1..25 characters."""

    images: Tensor
    labels: list[str]


@dataclass(frozen=True, slots=True)
class Stage:
    """From `samples` samples on, labels have up to `max_length` characters and crops `difficulty` (0..1)."""

    samples: int
    max_length: int
    difficulty: float


@dataclass(frozen=True, slots=True)
class Curriculum:
    """How hard the samples are, as a function of how many one stream (one worker) has made.

    Between stages both values are interpolated; before the first and after the last they stay.
    Raises ValueError without stages, or where their sample counts do not increase.
    """

    stages: tuple[Stage, ...]

    def __post_init__(self) -> None:
        counts = [stage.samples for stage in self.stages]
        if not counts or any(b <= a for a, b in pairwise(counts)):
            raise ValueError("a curriculum needs stages with increasing sample counts")

    def at(self, samples: int) -> tuple[int, float]:
        """(max_length, difficulty) after `samples` samples."""
        counts = [stage.samples for stage in self.stages]
        length = np.interp(samples, counts, [stage.max_length for stage in self.stages])
        difficulty = np.interp(samples, counts, [stage.difficulty for stage in self.stages])
        return int(length), float(difficulty)


class _Ring:
    """Rendered masks in a ring: new ones replace the oldest; reading starts before it is full."""

    def __init__(self, capacity: int) -> None:
        self.masks = torch.zeros(capacity, *MASK_SIZE, dtype=torch.uint8)
        self.aspects = torch.ones(capacity)
        self.labels: list[str] = []
        self._next = 0

    def add(self, label: str, mask: WordMask) -> None:
        place = self._next
        if len(self.labels) < self.masks.shape[0]:
            self.labels.append(label)
        else:
            self.labels[place] = label
        self.masks[place] = torch.from_numpy(mask.coverage.copy())
        self.aspects[place] = mask.aspect
        self._next = (place + 1) % self.masks.shape[0]


class WordStream(IterableDataset[SyntheticBatch]):
    """Endless batches of word images; each iteration is reproducible from (seed, DataLoader worker).

    fonts: a folder of fonts, or None for the one font that Pillow ships.
    pool_size masks of 6.4 kB are kept; each is composed afresh about `reuse` times, so that drawing costs
    1/reuse per sample. With length_buckets the labels of a batch have similar lengths; over every 8 batches
    all lengths occur as often as without. A `curriculum` takes the place of max_length and difficulty.
    Pass the stream to a DataLoader with batch_size=None to make batches in other processes.
    """

    def __init__(
        self,
        fonts: Path | None,
        *,
        seed: int,
        batch_size: int,
        size: tuple[int, int] = (32, 128),
        max_length: int = 25,
        difficulty: float = 1.0,
        pool_size: int = 65536,
        reuse: int = 4,
        length_buckets: bool = True,
        device: str = "cpu",
        curriculum: Curriculum | None = None,
    ) -> None:
        if batch_size < 1 or reuse < 1 or pool_size < 1:
            raise ValueError("batch_size, reuse and pool_size must be at least 1")
        self._fonts, self._seed, self._batch_size, self._size = fonts, seed, batch_size, size
        self._pool_size, self._reuse, self._length_buckets = pool_size, reuse, length_buckets
        self._device = device
        self._curriculum = curriculum or Curriculum((Stage(0, max_length, difficulty),))

    def __iter__(self) -> Iterator[SyntheticBatch]:
        worker = get_worker_info()
        source = np.random.SeedSequence([self._seed, worker.id if worker else 0])
        rng = np.random.default_rng(source)
        lexicon = Lexicon(rng)
        fonts = FontLibrary.open(self._fonts)
        composer = Composer(self._size, seed=int(source.generate_state(1)[0]), device=self._device)
        ring = _Ring(self._pool_size)
        window = self._batch_size * (_WINDOW if self._length_buckets else 1)
        made = 0
        while True:
            max_length, difficulty = self._curriculum.at(made)
            for _ in range(max(1, window // self._reuse)):
                self._refill(ring, lexicon, fonts, rng, max_length)
            for chosen in self._choose(ring, window, max_length, rng):
                index = torch.from_numpy(chosen)
                images = composer.compose(ring.masks[index], ring.aspects[index], difficulty)
                yield SyntheticBatch(images, [ring.labels[i] for i in chosen])
            made += window

    @staticmethod
    def _refill(
        ring: _Ring, lexicon: Lexicon, fonts: FontLibrary, rng: np.random.Generator, max_length: int
    ) -> None:
        mask = None
        while mask is None:
            label = lexicon.draw(max_length)
            mask = render_word(label, fonts, rng)
        ring.add(label, mask)

    def _choose(
        self, ring: _Ring, window: int, max_length: int, rng: np.random.Generator
    ) -> list[np.ndarray]:
        """Ring positions for the next batches, cut by label length and shuffled."""
        lengths = np.array([len(label) for label in ring.labels])
        fit = np.flatnonzero(lengths <= max_length)
        chosen = rng.choice(fit, window, replace=len(fit) < window)
        if self._length_buckets:
            chosen = chosen[np.argsort(lengths[chosen] + rng.random(window), kind="stable")]
        batches = np.split(chosen, window // self._batch_size)
        return [batches[i] for i in rng.permutation(len(batches))]
