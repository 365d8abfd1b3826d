"""What a model is trained on: synthetic words and sets of files, mixed by weight.

Every batch is a function of the sources, the seed, its number and how many processes and workers share the work,
so that a run goes on after a stop with the batches it would have had.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Literal, Protocol

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from clip4str.datasets import LABELS_FILE, LMDB_FILE, MAX_LENGTH, DatasetError, WordSet, open_set
from clip4str.image import prepare
from clip4str.synth.fonts import FontError, FontLibrary
from clip4str.synth.stream import Curriculum, Stage, WordBatch, WordStream
from clip4str.training.augmentation import augment

Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]

_CHUNK = 64  # crops that a stream of words makes at once
_CHAPTER = 8192  # crops that share a set of drawn words
_SHORT_CHAPTER = 512
_PREFETCH = 4  # batches per worker
_REPLAY = 1 << 20  # places drawn at once when a run goes on

# What random numbers are for: streams of their own under one seed.
_SOURCES, _ORDER, _AUGMENTATION, _WORDS = range(4)


class SyntheticSource(BaseModel):
    """Words drawn while training runs, the longer and the more disturbed the more crops the run has shown."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: Literal["synthetic"]
    weight: Weight = 1.0  # share of all crops, relative to the other sources' weights
    fonts: Path | None = None  # folder, see `python -m clip4str.synth.fonts`; None: Pillow's one font
    start_length: Annotated[int, Field(ge=1, le=MAX_LENGTH)] = 8  # longest label at first
    start_difficulty: Annotated[float, Field(ge=0, le=1)] = 0.2  # of the synthesis at first
    full_difficulty_at: NonNegativeInt = 0  # crops shown, of all sources; 0: full from the start
    like_lengths: bool = True  # batches of words of like length, which the decoders read faster


class FilesSource(BaseModel):
    """Labelled word images on disk: a folder with labels.tsv, an LMDB folder, or a folder with such ones below it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: Literal["files"]
    path: Path
    weight: Weight = 1.0  # share of all crops, relative to the other sources' weights
    augment: bool = True  # as the published training does


Source = Annotated[SyntheticSource | FilesSource, Field(discriminator="source")]


class Mixture(IterableDataset[WordBatch]):
    """The batches of one process, without end, from batch number `start` on.

    size: height and width of the crops. seed: at least 0. batch_size: of this process, one of `world` that differ
    in `rank`. A step of the run has world * batch_size places; each draws its source by weight. Places of a files
    source are numbered through the run and read a fresh permutation of its words in each epoch, so that the number
    of processes changes nothing but who reads what. Synthetic words have a stream of their own in each process
    and DataLoader worker.

    Raises:
        DatasetError: a set of files is missing or broken, here; an image is, when its batch is made.
        FontError: a folder holds no fonts.
        ValueError: without sources, or where a number is out of its range.
    """

    def __init__(
        self,
        sources: Sequence[SyntheticSource | FilesSource],
        *,
        size: tuple[int, int],
        seed: int,
        batch_size: int,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if not sources:
            raise ValueError("a mixture needs at least one source")
        if seed < 0 or batch_size < 1 or start < 0 or not 0 <= rank < world:
            raise ValueError(
                "seed and start must be at least 0, batch_size at least 1 and rank in 0..world-1; "
                f"got {seed=}, {start=}, {batch_size=}, {rank=}, {world=}"
            )
        self._sources, self._size, self._seed = tuple(sources), size, seed
        self._batch_size, self._start, self._rank, self._world = batch_size, start, rank, world
        self._places = _Places([source.weight for source in sources], seed, world, batch_size)
        self._files = {
            index: _FileReader(source, size, seed, index)
            for index, source in enumerate(sources)
            if isinstance(source, FilesSource)
        }
        for source in sources:
            if isinstance(source, SyntheticSource):
                FontLibrary.open(source.fonts)  # raises now what each worker would raise later

    def __iter__(self) -> Iterator[WordBatch]:
        worker = get_worker_info()
        ahead, lanes = (worker.id, worker.num_workers) if worker else (0, 1)
        step = self._start + ahead
        lane = step % lanes
        readers = [self._reader(index, lane, lanes) for index in range(len(self._sources))]
        in_run, in_lane = self._places.before(step, self._rank, lane, lanes)
        while True:
            steps = self._places.sources(step, lanes)  # this one, then those of the other workers
            earlier, mine = steps[0, : self._rank].ravel(), steps[0, self._rank]
            images = torch.empty(self._batch_size, 3, *self._size, dtype=torch.uint8)
            labels = [""] * self._batch_size
            for index, reader in enumerate(readers):
                before = in_run[index] + np.count_nonzero(earlier == index)
                first = before if index in self._files else in_lane[index]
                slots = np.flatnonzero(mine == index).tolist()
                for slot, (image, label) in zip(slots, reader.read(int(first), len(slots)), strict=True):
                    images[slot], labels[slot] = image, label
            yield WordBatch(images, labels)
            in_run += np.bincount(steps.ravel(), minlength=len(readers))
            in_lane += np.bincount(mine, minlength=len(readers))
            step += lanes

    def _reader(self, index: int, lane: int, lanes: int) -> _Reader:
        source = self._sources[index]
        if isinstance(source, FilesSource):
            return self._files[index]
        share = source.weight / sum(other.weight for other in self._sources)
        key = (self._seed, _WORDS, index, self._rank, lane)
        return _SyntheticReader(source, self._size, key, share / (self._world * lanes))


def batches(mixture: Mixture, workers: int) -> Iterator[WordBatch]:
    """The batches of a mixture, in order, made by `workers` other processes; 0: by this one.

    On a machine with a GPU their images are in pinned memory. Raises DatasetError for a missing or broken image.
    """
    loader = DataLoader(
        _Sendable(mixture),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=_PREFETCH if workers else None,
        pin_memory=torch.cuda.is_available(),
    )
    items = iter(loader)
    while True:
        try:
            item = next(items)
        except RuntimeError as error:  # a worker was killed, most often for want of memory
            raise DatasetError(f"a data process died ({str(error).splitlines()[0]})") from None
        if isinstance(item, Exception):
            raise item
        images, labels = item
        yield WordBatch(images, labels)


class _Sendable(IterableDataset[tuple[Tensor, list[str]] | DatasetError | FontError]):
    """A mixture as values that a DataLoader pins, and hands on without a worker's traceback."""

    def __init__(self, mixture: Mixture) -> None:
        self._mixture = mixture

    def __iter__(self) -> Iterator[tuple[Tensor, list[str]] | DatasetError | FontError]:
        try:
            for batch in self._mixture:
                yield batch.images, batch.labels
        except (DatasetError, FontError) as error:
            yield error


class _Places:
    """Which source each place of the run has: one draw per place, in the order of their numbers."""

    def __init__(self, weights: Sequence[float], seed: int, world: int, batch_size: int) -> None:
        self._edges = np.array([*accumulate(weights)][:-1]) / sum(weights)  # of the sources' parts of 0..1
        self._seed, self._world, self._batch_size = seed, world, batch_size

    def sources(self, step: int, count: int) -> np.ndarray:
        """Source index of each place of `count` steps from `step` on: int64 [count, world, batch_size]."""
        return np.searchsorted(self._edges, self._draws(step, count), side="right")

    def before(self, step: int, rank: int, lane: int, lanes: int) -> tuple[np.ndarray, np.ndarray]:
        """How many places each source got before `step`, int64 [sources] each: in the run; in this rank's lane.

        Step s is in lane s % lanes.
        """
        if not len(self._edges):
            in_lane = len(range(lane, step, lanes)) * self._batch_size
            return np.array([step * self._world * self._batch_size]), np.array([in_lane])
        totals = np.zeros((2, len(self._edges) + 1), np.int64)
        at_once = max(1, _REPLAY // (self._world * self._batch_size))
        for first in range(0, step, at_once):
            draws = self._draws(first, min(at_once, step - first))
            totals += [self._counts(draws), self._counts(draws[(lane - first) % lanes :: lanes, rank])]
        return totals[0], totals[1]

    def _counts(self, draws: np.ndarray) -> np.ndarray:
        below = [np.count_nonzero(draws < edge) for edge in self._edges]
        return np.diff([0, *below, draws.size])

    def _draws(self, step: int, count: int) -> np.ndarray:
        places = self._world * self._batch_size
        generator = np.random.PCG64(_key(self._seed, _SOURCES))
        generator.advance(step * places)
        return np.random.Generator(generator).random((count, self._world, self._batch_size))


class _Reader(Protocol):
    def read(self, first: int, count: int) -> Iterator[tuple[Tensor, str]]:
        """The source's crops number `first` to `first + count - 1`: uint8 [3, H, W] and label each."""


class _FileReader:
    """Crops of a files source by their number in the run."""

    def __init__(self, source: FilesSource, size: tuple[int, int], seed: int, index: int) -> None:
        self._sets = _find_sets(source.path)
        self._ends = np.cumsum([len(words) for words in self._sets])
        self._augment, self._size, self._seed, self._index = source.augment, size, seed, index
        self._epoch, self._order = -1, np.empty(0, np.int32)

    def read(self, first: int, count: int) -> Iterator[tuple[Tensor, str]]:
        for number in range(first, first + count):
            word = self._word(number)
            index = int(np.searchsorted(self._ends, word, side="right"))
            words = self._sets[index]
            word -= int(self._ends[index]) - len(words)
            image = words.image(word)
            if self._augment:
                image = augment(
                    image, np.random.default_rng(_key(self._seed, _AUGMENTATION, self._index, number))
                )
            yield torch.from_numpy(prepare(image, self._size)), words.labels[word]

    def _word(self, number: int) -> int:
        epoch, place = divmod(number, int(self._ends[-1]))
        if epoch != self._epoch:
            words = np.arange(self._ends[-1], dtype=np.int32)  # half of the default's memory
            rng = np.random.default_rng(_key(self._seed, _ORDER, self._index, epoch))
            self._epoch, self._order = epoch, rng.permutation(words)
        return int(self._order[place])


class _SyntheticReader:
    """Crops of a stream by their number in it; reading on from where the last read ended costs nothing extra."""

    def __init__(
        self, source: SyntheticSource, size: tuple[int, int], key: tuple[int, ...], share: float
    ) -> None:
        """share: of the run's crops that come from this stream."""
        curriculum, chapter = None, _CHAPTER
        full = round(source.full_difficulty_at * share)
        if full > 0:
            start = Stage(0, source.start_length, source.start_difficulty)
            curriculum = Curriculum((start, Stage(full, MAX_LENGTH, 1.0)))
            # A stream looks its curriculum up once per chapter, so some chapters must lie before its end.
            chapter = min(chapter, max(1, full // 16 // _SHORT_CHAPTER) * _SHORT_CHAPTER)
        self._stream = WordStream(
            source.fonts,
            seed=key,
            size=size,
            curriculum=curriculum,
            chapter=chapter,
            chunk=_CHUNK,
            like_lengths=source.like_lengths,
        )
        self._next = 0
        self._crops = self._from(0)

    def read(self, first: int, count: int) -> Iterator[tuple[Tensor, str]]:
        if first != self._next:
            self._next, self._crops = first, self._from(first)
        for _ in range(count):
            self._next += 1
            yield next(self._crops)

    def _from(self, first: int) -> Iterator[tuple[Tensor, str]]:
        skipped = first % _CHUNK
        for batch in self._stream.crops(first - skipped):
            yield from zip(batch.images[skipped:], batch.labels[skipped:], strict=True)
            skipped = 0


def _key(seed: int, *path: int) -> np.random.SeedSequence:
    return np.random.SeedSequence(seed, spawn_key=path)


def _find_sets(path: Path) -> list[WordSet]:
    """The sets at a folder or anywhere below it, by path. Raises DatasetError without any, or for a broken one."""
    if not path.is_dir():
        raise DatasetError(f"{path}: no such folder")
    sets: list[WordSet] = []
    for folder, below, files in os.walk(path, onerror=_refuse, followlinks=True):
        below.sort()
        if LABELS_FILE in files or LMDB_FILE in files:
            sets.append(open_set(Path(folder)))
            below.clear()
    if not sets:
        raise DatasetError(f"{path}: holds neither {LABELS_FILE} nor {LMDB_FILE}, nor does a folder below it")
    return sets


def _refuse(error: OSError) -> None:
    raise DatasetError(f"{error.filename}: cannot be read ({error.strerror})") from error
