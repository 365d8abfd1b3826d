"""The stream: crops, random access, reproducibility, reuse, lengths, curriculum; and folders written from it."""

import itertools
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clip4str.charset import CHARACTERS
from clip4str.synth.fonts import FontError
from clip4str.synth.sheet import contact_sheet, write_dataset
from clip4str.synth.stream import Curriculum, Stage, WordBatch, WordStream


def _stream(
    *, seed: int | tuple[int, ...] = 1, reuse: int = 4, curriculum: Curriculum | None = None
) -> WordStream:
    """A stream with short chapters: ten chunks of sixteen crops."""
    return WordStream(None, seed=seed, chapter=160, reuse=reuse, chunk=16, curriculum=curriculum)


def _take(stream: WordStream, count: int, start: int = 0) -> list[WordBatch]:
    return list(itertools.islice(stream.crops(start), count))


def _assert_equal(first: list[WordBatch], second: list[WordBatch]) -> None:
    for a, b in zip(first, second, strict=True):
        assert a.labels == b.labels
        assert torch.equal(a.images, b.images)


def test_batches_are_crops_with_valid_labels() -> None:
    for batch in _take(_stream(), 12):
        assert batch.images.shape == (16, 3, 32, 128)
        assert batch.images.dtype == torch.uint8
        assert len(batch.labels) == 16
        assert all(1 <= len(label) <= 25 and set(label) <= set(CHARACTERS) for label in batch.labels)


def test_every_crop_shows_something() -> None:
    for batch in _take(_stream(reuse=1), 20):
        grey = batch.images.float().mean(1).flatten(1)
        spread = grey.quantile(0.98, dim=1) - grey.quantile(0.02, dim=1)
        assert (spread > 15).all()


def test_the_seed_decides_everything() -> None:
    _assert_equal(_take(_stream(seed=(1, 2)), 12), _take(_stream(seed=(1, 2)), 12))
    labels = [batch.labels for batch in _take(_stream(seed=(1, 2)), 4)]
    for other in ((1, 3), (2, 1), (1, 2, 0), 1):
        assert labels != [batch.labels for batch in _take(_stream(seed=other), 4)]


@pytest.mark.parametrize("start", [16, 144, 160, 336])
def test_entering_anywhere_gives_what_reading_from_the_beginning_gives(start: int) -> None:
    curriculum = Curriculum((Stage(0, 3, 0.2), Stage(400, 25, 1.0)))
    whole = _take(_stream(curriculum=curriculum), 30)
    _assert_equal(_take(_stream(curriculum=curriculum), 30 - start // 16, start), whole[start // 16 :])


def test_iterators_of_one_stream_do_not_disturb_each_other() -> None:
    stream = _stream()
    first, second = stream.crops(), stream.crops(160)
    mixed = [(next(first), next(second)) for _ in range(6)]
    _assert_equal([a for a, _ in mixed], _take(_stream(), 6))
    _assert_equal([b for _, b in mixed], _take(_stream(), 6, 160))


def test_chapters_have_different_words() -> None:
    batches = _take(_stream(), 20)
    first, second = (
        {label for batch in part for label in batch.labels} for part in (batches[:10], batches[10:])
    )
    assert len(first & second) < 0.3 * len(first)


def test_every_word_comes_back_composed_differently() -> None:
    seen: dict[str, list[torch.Tensor]] = {}
    for batch in _take(_stream(), 10):
        for image, label in zip(batch.images, batch.labels, strict=True):
            seen.setdefault(label, []).append(image)
    assert all(len(images) % 4 == 0 for images in seen.values())
    for images in seen.values():
        assert not any(torch.equal(a, b) for a, b in itertools.combinations(images, 2))


def test_chunks_hold_words_of_like_length_and_keep_all_lengths() -> None:
    lengths = [
        [len(label) for label in batch.labels]
        for batch in itertools.islice(WordStream(None, seed=3, chunk=16).crops(), 16)
    ]
    window = sorted(itertools.chain(*lengths[:8]))
    assert np.mean([np.ptp(chunk) for chunk in lengths]) < 0.35 * np.ptp(window)
    assert window[0] == 1
    assert window[-1] > 10
    means = [np.mean(chunk) for chunk in lengths[:8]]
    assert means != sorted(means)


def test_the_curriculum_moves_both_knobs() -> None:
    curriculum = Curriculum((Stage(0, 3, 0.0), Stage(100, 3, 0.2), Stage(300, 23, 1.0)))
    assert curriculum.at(0) == (3, 0.0)
    length, difficulty = curriculum.at(200)
    assert length == 13
    assert difficulty == pytest.approx(0.6)
    assert curriculum.at(10_000) == (23, 1.0)
    batches = _take(_stream(curriculum=Curriculum((Stage(0, 2, 0.0), Stage(320, 25, 1.0)))), 30)
    assert max(len(label) for batch in batches[:10] for label in batch.labels) == 2
    assert max(len(label) for batch in batches[20:] for label in batch.labels) > 8
    # Clean crops are two flat colours; at full difficulty the borders of a crop vary.
    first, last = (
        float(torch.cat([b.images for b in part]).float()[:, :, 0].std(-1).median())
        for part in (batches[:10], batches[20:])
    )
    assert first < 0.5 * last


def test_a_stream_can_be_sent_to_another_process() -> None:
    stream = _stream()
    copy: WordStream = pickle.loads(pickle.dumps(stream))  # noqa: S301 - our own object
    _assert_equal(_take(copy, 2), _take(stream, 2))


def test_bad_arguments_are_refused(tmp_path: Path) -> None:
    for chapter, reuse, chunk in ((100, 4, 64), (192, 5, 64), (192, 4, 0), (192, 0, 64), (0, 4, 64)):
        with pytest.raises(ValueError, match="chapter must be a multiple of chunk and of reuse"):
            WordStream(None, seed=1, chapter=chapter, reuse=reuse, chunk=chunk)
    for seed in (-1, (), (1, -2)):
        with pytest.raises(ValueError, match="seed must be integers of at least 0"):
            WordStream(None, seed=seed)
    for start in (-16, 8):
        with pytest.raises(ValueError, match="start must be a multiple of the chunk of 16 crops"):
            _stream().crops(start)
    with pytest.raises(ValueError, match="increasing sample counts"):
        Curriculum((Stage(5, 3, 0.0), Stage(5, 4, 0.0)))
    with pytest.raises(ValueError, match="increasing sample counts"):
        Curriculum(())
    with pytest.raises(FontError, match="collect fonts"):
        WordStream(tmp_path / "none", seed=1)


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
    with Image.open(tmp_path / "set.sheet.png") as sheet:
        assert sheet.width == 8 * 134
    with pytest.raises(ValueError, match="count must be at least 1"):
        write_dataset(tmp_path / "set", 0, 3, None)


def test_a_contact_sheet_shows_every_crop(tmp_path: Path) -> None:
    batch = _take(_stream(), 1)[0]
    contact_sheet(batch.images, batch.labels, tmp_path / "sheet.png", columns=5)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (5 * 134, 4 * 48)
        assert np.array_equal(np.asarray(sheet)[2:34, 3:131], batch.images[0].permute(1, 2, 0).numpy())
