"""The stream: batches, reproducibility, reuse, length buckets, curriculum; and folders written from it."""

import itertools
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from clip4str.charset import CHARACTERS
from clip4str.synth.fonts import FontError
from clip4str.synth.sheet import contact_sheet, write_dataset
from clip4str.synth.stream import Curriculum, Stage, SyntheticBatch, WordStream


def _batches(count: int, *, seed: int = 1, batch_size: int = 16, **options: object) -> list[SyntheticBatch]:
    stream = WordStream(None, seed=seed, batch_size=batch_size, pool_size=512, **options)  # type: ignore[arg-type]
    return list(itertools.islice(stream, count))


def test_batches_are_crops_with_valid_labels() -> None:
    for batch in _batches(3):
        assert batch.images.shape == (16, 3, 32, 128)
        assert batch.images.dtype == torch.uint8
        assert len(batch.labels) == 16
        assert all(1 <= len(label) <= 25 and set(label) <= set(CHARACTERS) for label in batch.labels)


def test_the_seed_decides_everything() -> None:
    first, second, other = _batches(9), _batches(9), _batches(9, seed=2)
    for a, b in zip(first, second, strict=True):
        assert a.labels == b.labels
        assert torch.equal(a.images, b.images)
    assert [a.labels for a in first] != [b.labels for b in other]


def test_a_mask_comes_back_composed_differently() -> None:
    seen: dict[str, list[torch.Tensor]] = {}
    for batch in _batches(24, reuse=8):
        for image, label in zip(batch.images, batch.labels, strict=True):
            if len(label) > 6:
                seen.setdefault(label, []).append(image)
    repeated = [images for images in seen.values() if len(images) > 1]
    assert len(repeated) > 10
    assert not any(torch.equal(images[0], images[1]) for images in repeated)


def test_length_buckets_even_out_batches_but_keep_all_lengths() -> None:
    def spread(batches: list[SyntheticBatch]) -> float:
        return float(np.mean([np.ptp([len(label) for label in batch.labels]) for batch in batches]))

    with_buckets, without = _batches(32, reuse=1), _batches(32, reuse=1, length_buckets=False)
    assert spread(with_buckets) < 0.5 * spread(without)
    means = [
        np.mean([len(label) for batch in batches for label in batch.labels])
        for batches in (with_buckets, without)
    ]
    assert abs(means[0] - means[1]) < 1.0


def test_the_curriculum_moves_both_knobs() -> None:
    curriculum = Curriculum((Stage(0, 3, 0.0), Stage(100, 3, 0.2), Stage(300, 23, 1.0)))
    assert curriculum.at(0) == (3, 0.0)
    length, difficulty = curriculum.at(200)
    assert length == 13
    assert difficulty == pytest.approx(0.6)
    assert curriculum.at(10_000) == (23, 1.0)
    batches = _batches(40, curriculum=Curriculum((Stage(0, 2, 0.0), Stage(512, 25, 1.0))))
    assert max(len(label) for batch in batches[:8] for label in batch.labels) <= 2
    assert max(len(label) for batch in batches[-8:] for label in batch.labels) > 6


def test_workers_of_a_loader_make_different_words() -> None:
    stream = WordStream(None, seed=1, batch_size=8, pool_size=64)
    loader = DataLoader(stream, batch_size=None, num_workers=2)
    first, second = itertools.islice(loader, 2)
    assert isinstance(first, SyntheticBatch)
    assert first.labels != second.labels


def test_a_stream_can_be_sent_to_another_process() -> None:
    stream = WordStream(None, seed=1, batch_size=8, pool_size=64)
    copy = pickle.loads(pickle.dumps(stream))  # noqa: S301 - our own object
    assert next(iter(copy)).labels == next(iter(stream)).labels


def test_bad_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        WordStream(None, seed=1, batch_size=0)
    with pytest.raises(ValueError, match="increasing sample counts"):
        Curriculum((Stage(5, 3, 0.0), Stage(5, 4, 0.0)))
    with pytest.raises(ValueError, match="increasing sample counts"):
        Curriculum(())
    with pytest.raises(FontError, match="collect fonts"):
        next(iter(WordStream(tmp_path / "none", seed=1, batch_size=2)))


def test_a_dataset_folder_has_images_and_their_labels(tmp_path: Path) -> None:
    write_dataset(tmp_path / "set", 70, 3, None)
    rows = [
        line.split("\t")
        for line in (tmp_path / "set" / "labels.tsv").read_text(encoding="utf-8").splitlines()
    ]
    assert len(rows) == 70
    for name, text in rows:
        assert 1 <= len(text) <= 25
        with Image.open(tmp_path / "set" / name) as image:
            assert image.size == (128, 32)
    assert len(list((tmp_path / "set").glob("*.png"))) == 70
    with pytest.raises(ValueError, match="count must be at least 1"):
        write_dataset(tmp_path / "set", 0, 3, None)


def test_a_contact_sheet_shows_every_crop(tmp_path: Path) -> None:
    batch = _batches(1)[0]
    contact_sheet(batch.images, batch.labels, tmp_path / "sheet.png", columns=5)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (5 * 134, 4 * 48)
        assert np.array_equal(np.asarray(sheet)[2:34, 3:131], batch.images[0].permute(1, 2, 0).numpy())
