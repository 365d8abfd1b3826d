"""Mixtures: every batch follows from its number, however the work is shared; shares, epochs, errors."""

from __future__ import annotations

import itertools
import pickle
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import lmdb
import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from clip4str.datasets import DatasetError
from clip4str.image import prepare
from clip4str.synth.fonts import FontError
from clip4str.synth.stream import WordBatch
from clip4str.training import sources as module
from clip4str.training.sources import FilesSource, Mixture, Source, SyntheticSource, batches

SIZE = (32, 128)
WORDS = SyntheticSource(source="synthetic")


def pixels(number: int) -> Image.Image:
    """Noise of a size of its own."""
    rng = np.random.default_rng(number)
    return Image.fromarray(rng.integers(0, 256, (10 + number % 5, 20 + number, 3), np.uint8))


def write_folder(path: Path, labels: Sequence[str]) -> Path:
    path.mkdir(parents=True)
    for number, _ in enumerate(labels):
        pixels(number).save(path / f"{number}.png")
    lines = (f"{number}.png\t{label}\n" for number, label in enumerate(labels))
    (path / "labels.tsv").write_text("".join(lines), encoding="utf-8")
    return path


def write_lmdb(path: Path, folder: Path) -> Path:
    """The folder's words as an LMDB."""
    path.mkdir(parents=True)
    rows = [line.split("\t") for line in (folder / "labels.tsv").read_text(encoding="utf-8").splitlines()]
    environment = lmdb.open(str(path), map_size=1 << 20)
    with environment.begin(write=True) as transaction:
        transaction.put(b"num-samples", str(len(rows)).encode())
        for number, (name, label) in enumerate(rows, start=1):
            transaction.put(b"label-%09d" % number, label.encode())
            transaction.put(b"image-%09d" % number, (folder / name).read_bytes())
    environment.close()
    return path


def numbered(prefix: str, count: int) -> list[str]:
    return [f"{prefix}{number}" for number in range(count)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sets at a/one (13 words) and a/deep/two (8 words, LMDB), and one at b (7 words)."""
    root = tmp_path_factory.mktemp("data")
    write_folder(root / "a" / "one", numbered("one", 13))
    write_lmdb(root / "a" / "deep" / "two", write_folder(root / "copy", numbered("two", 8)))
    write_folder(root / "b", numbered("b", 7))
    return root


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As in a worker: on crops this small, threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def files(path: Path, weight: float = 1.0, augment: bool = True) -> FilesSource:
    return FilesSource(source="files", path=path, weight=weight, augment=augment)


def read(
    sources: Sequence[SyntheticSource | FilesSource],
    count: int,
    *,
    workers: int = 0,
    batch_size: int = 6,
    start: int = 0,
    rank: int = 0,
    world: int = 1,
    seed: int = 5,
) -> list[WordBatch]:
    mixture = Mixture(
        sources, size=SIZE, seed=seed, batch_size=batch_size, start=start, rank=rank, world=world
    )
    return list(itertools.islice(batches(mixture, workers), count))


def same(first: Sequence[WordBatch], second: Sequence[WordBatch]) -> bool:
    return [batch.labels for batch in first] == [batch.labels for batch in second] and all(
        torch.equal(a.images, b.images) for a, b in zip(first, second, strict=True)
    )


def labels(read: Sequence[WordBatch]) -> list[str]:
    return [label for batch in read for label in batch.labels]


def test_a_batch_holds_prepared_crops_and_their_labels(data: Path) -> None:
    for batch in read([files(data / "b", augment=False)], 2):
        assert (batch.images.shape, batch.images.dtype) == ((6, 3, *SIZE), torch.uint8)
        for image, label in zip(batch.images, batch.labels, strict=True):
            assert torch.equal(image, torch.from_numpy(prepare(pixels(int(label.removeprefix("b"))), SIZE)))


@pytest.mark.parametrize("workers", [0, 2])
def test_two_processes_see_what_one_sees_with_doubled_batches(data: Path, workers: int) -> None:
    sources = [files(data / "a", 2.5), files(data / "b")]
    whole = read(sources, 6, batch_size=8)
    halves = [read(sources, 6, workers=workers, batch_size=4, rank=rank, world=2) for rank in (0, 1)]
    joined = [
        WordBatch(torch.cat([a.images, b.images]), a.labels + b.labels) for a, b in zip(*halves, strict=True)
    ]
    assert same(joined, whole)


@pytest.mark.filterwarnings(
    "ignore:This DataLoader will create"
)  # more workers than a small machine has cores
@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("kind", ["files", "synthetic", "both"])
def test_a_run_goes_on_anywhere_as_if_it_had_never_stopped(
    data: Path, kind: str, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_REPLAY", 36)  # three steps at once
    words = SyntheticSource(source="synthetic", full_difficulty_at=2000, weight=2)
    mixtures: dict[str, list[SyntheticSource | FilesSource]] = {
        "files": [files(data / "a")],
        "synthetic": [words],
        "both": [files(data / "a"), words],
    }
    sources = mixtures[kind]
    unbroken = read(sources, 9, workers=workers, batch_size=12)
    for start in (1, 6):
        assert same(
            read(sources, 3, workers=workers, batch_size=12, start=start), unbroken[start : start + 3]
        )


def test_sources_are_drawn_by_weight(data: Path) -> None:
    sources = [files(data / "a" / "one", 1.5), files(data / "a" / "deep", 0.5), files(data / "b", 3)]
    seen = Counter(label.rstrip("0123456789") for label in labels(read(sources, 40, batch_size=50)))
    assert [seen[name] / 2000 for name in ("one", "two", "b")] == pytest.approx([0.3, 0.1, 0.6], abs=0.03)


def test_an_epoch_has_every_word_once_in_an_order_of_its_own(data: Path) -> None:
    seen = labels(read([files(data / "a")], 9, batch_size=7))  # 63 = 3 epochs of 21 words
    epochs = [tuple(seen[start : start + 21]) for start in (0, 21, 42)]
    everything = sorted(numbered("one", 13) + numbered("two", 8))
    assert [sorted(epoch) for epoch in epochs] == [everything] * 3
    assert len(set(epochs)) == 3


def test_epochs_hold_in_a_mixture_too(data: Path) -> None:
    seen = labels(read([files(data / "b"), files(data / "a")], 20))
    of_b = [label for label in seen if label.startswith("b")]
    assert len(of_b) > 35
    assert all(len(set(of_b[start : start + 7])) == 7 for start in range(0, 35, 7))


def test_a_word_is_augmented_afresh_each_time(data: Path) -> None:
    seen: dict[str, set[bytes]] = {}
    for batch in read([files(data / "b")], 10, batch_size=7):
        for image, label in zip(batch.images, batch.labels, strict=True):
            seen.setdefault(label, set()).add(image.numpy().tobytes())
    assert len(seen) == 7
    assert all(len(images) > 5 for images in seen.values())  # one in eight stays as it is


def test_seed_and_place_among_the_sources_decide_the_order(data: Path) -> None:
    twice = labels(read([files(data / "b"), files(data / "b")], 20))
    assert set(Counter(twice)) == set(numbered("b", 7))
    alone = [labels(read([files(data / "b")], 4, seed=seed)) for seed in (1, 1, 2)]
    assert alone[0] == alone[1] != alone[2]


def test_synthetic_words_differ_by_process_worker_and_seed() -> None:
    options: list[dict[str, int]] = [{}, {"rank": 1, "world": 2}, {"seed": 6}]
    first = [labels(read([WORDS], 1, batch_size=12, **option)) for option in options]
    first += [batch.labels for batch in read([WORDS], 2, workers=2, batch_size=12)[1:]]
    assert len({tuple(batch) for batch in first}) == 4


@pytest.mark.parametrize(("world", "weight", "full"), [(1, 0.0, 8192), (2, 0.0, 16384), (1, 1.0, 16384)])
def test_difficulty_grows_with_the_crops_of_the_whole_run(
    data: Path, world: int, weight: float, full: int
) -> None:
    """A stream of 8192 crops up to full difficulty, in 16 chapters of which each adds 1.5 characters."""
    words = SyntheticSource(source="synthetic", start_length=1, full_difficulty_at=full)
    others = [files(data / "b", weight)] if weight else []

    def longest(crops: int) -> int:
        """Of the words around crop number `crops` of this process's stream."""
        steps = round(crops * (1 + weight) / 64)
        read_here = labels(read([words, *others], 5, batch_size=64, start=steps, world=world))
        return max(len(label) for label in read_here if not (weight and label[0] == "b"))

    assert longest(0) == 1
    assert longest(1100) == 4
    assert longest(8300) > 10


def test_full_difficulty_from_the_start_is_the_default() -> None:
    assert max(len(label) for label in labels(read([WORDS], 8, batch_size=64))) > 13


def test_sets_are_found_below_a_folder_and_behind_links(data: Path, tmp_path: Path) -> None:
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / "linked").symlink_to(data / "a")
    write_folder(tmp_path / "all" / "more" / "c", ["c0"])
    seen = set(labels(read([files(tmp_path / "all")], 1, batch_size=22)))
    assert seen == {*numbered("one", 13), *numbered("two", 8), "c0"}


def test_a_mixture_can_be_sent_to_another_process(data: Path) -> None:
    mixture = Mixture([files(data / "a"), WORDS], size=SIZE, seed=1, batch_size=4)
    copy = pickle.loads(pickle.dumps(mixture))  # noqa: S301 - our own object
    assert same(list(itertools.islice(copy, 3)), list(itertools.islice(mixture, 3)))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("broken", [True, False])
def test_a_bad_image_stops_the_run_with_one_line(tmp_path: Path, workers: int, broken: bool) -> None:
    folder = write_folder(tmp_path / "set", numbered("w", 9))
    if broken:
        (folder / "4.png").write_bytes(b"no image")
    else:
        (folder / "4.png").unlink()
    with pytest.raises(DatasetError) as caught:
        read([files(folder)], 9, workers=workers, batch_size=1)
    assert str(caught.value).startswith(f"{folder}: 4.png ")
    assert "\n" not in str(caught.value)


def test_what_is_missing_is_named_before_training_starts(tmp_path: Path) -> None:
    def mixture(source: SyntheticSource | FilesSource) -> Mixture:
        return Mixture([WORDS, source], size=SIZE, seed=1, batch_size=4)

    with pytest.raises(DatasetError, match="nowhere: no such folder"):
        mixture(files(tmp_path / "nowhere"))
    (tmp_path / "empty" / "deeper").mkdir(parents=True)
    with pytest.raises(DatasetError, match=r"empty: holds neither labels\.tsv nor data\.mdb, nor does"):
        mixture(files(tmp_path / "empty"))
    (tmp_path / "empty" / "deeper" / "labels.tsv").write_text("no tab")
    with pytest.raises(DatasetError, match=r"deeper/labels\.tsv, line 1"):
        mixture(files(tmp_path / "empty"))
    with pytest.raises(FontError, match="nowhere does not exist"):
        mixture(SyntheticSource(source="synthetic", fonts=tmp_path / "nowhere"))


@pytest.mark.parametrize(
    "change", [{"seed": -1}, {"batch_size": 0}, {"start": -1}, {"rank": 2, "world": 2}, {"rank": -1}]
)
def test_numbers_out_of_range_are_refused(change: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="batch_size at least 1 and rank in 0"):
        read([WORDS], 1, **change)


def test_a_mixture_needs_a_source() -> None:
    with pytest.raises(ValueError, match="at least one source"):
        read([], 1)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"source": "files"}, "path"),
        ({"source": "files", "path": "x", "weight": 0}, "weight"),
        ({"source": "files", "path": "x", "weight": float("inf")}, "weight"),
        ({"source": "files", "path": "x", "fonts": "y"}, "fonts"),
        ({"source": "synthetic", "start_length": 26}, "start_length"),
        ({"source": "synthetic", "start_difficulty": 1.5}, "start_difficulty"),
        ({"source": "synthetic", "full_difficulty_at": -1}, "full_difficulty_at"),
    ],
)
def test_wrong_fields_are_located(fields: dict[str, object], problem: str) -> None:
    adapter: TypeAdapter[SyntheticSource | FilesSource] = TypeAdapter(Source)
    with pytest.raises(ValidationError) as caught:
        adapter.validate_python(fields)
    assert [error["loc"][-1] for error in caught.value.errors()] == [problem]


def test_an_unknown_source_lists_those_there_are() -> None:
    with pytest.raises(ValidationError, match="'synthetic', 'files'"):
        TypeAdapter(Source).validate_python({"source": "video"})
