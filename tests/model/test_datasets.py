"""Labelled word sets: the benchmarks' label filter, both formats, and what is said when a set is broken."""

import io
import json
import os
import pickle
from pathlib import Path

import lmdb
import numpy as np
import pytest
from PIL import Image

from clip4str.charset import ALPHANUMERIC_LOWER, CHARACTERS, adapt
from clip4str.datasets import DatasetError, clean_label, open_set

GOLDEN = Path(__file__).parents[1] / "golden"


def png(color: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 4), color).save(buffer, "PNG")
    return buffer.getvalue()


def write_folder(path: Path, rows: dict[str, str]) -> Path:
    path.mkdir()
    for name in rows:
        (path / name).write_bytes(png("red"))
    labels = "".join(f"{name}\t{text}\n" for name, text in rows.items())
    (path / "labels.tsv").write_text(labels, encoding="utf-8")
    return path


def write_lmdb(path: Path, entries: dict[str, bytes]) -> Path:
    path.mkdir()
    environment = lmdb.open(str(path), map_size=1 << 20)
    with environment.begin(write=True) as transaction:
        for key, value in entries.items():
            transaction.put(key.encode(), value)
    environment.close()
    return path


@pytest.mark.parametrize("charset", ["36", "94"])
def test_label_filter_is_that_of_the_published_benchmarks(charset: str) -> None:
    golden = json.loads((GOLDEN / "text.json").read_text(encoding="utf-8"))["label_filter"]
    characters = {"36": ALPHANUMERIC_LOWER, "94": CHARACTERS}[charset]
    cleaned = [adapt(clean_label(raw) or "", characters) for raw in golden["raw"]]
    kept = [(number, label) for number, label in enumerate(cleaned, start=1) if label]
    expected = golden["result"][charset]
    assert kept == list(zip(expected["index"], expected["labels"], strict=True))


def test_folder_keeps_order_case_and_punctuation(tmp_path: Path) -> None:
    words = open_set(write_folder(tmp_path / "signs", {"b.png": "No.7", "a.png": "EXIT", "c.png": "x" * 26}))
    assert (words.name, len(words), words.labels) == ("signs", 2, ["No.7", "EXIT"])
    assert words.image(1).getpixel((0, 0)) == (255, 0, 0)


def test_lmdb_counts_from_one_and_skips_with_the_label_its_image(tmp_path: Path) -> None:
    entries = {"num-samples": b"3"}
    for number, (text, color) in enumerate(
        [("left out " * 4, "red"), ("Two", "lime"), ("three", "blue")], start=1
    ):
        entries[f"label-{number:09d}"] = text.encode()
        entries[f"image-{number:09d}"] = png(color)
    words = open_set(write_lmdb(tmp_path / "bench", entries))
    assert (words.name, words.labels) == ("bench", ["Two", "three"])
    assert words.image(0).getpixel((0, 0)) == (0, 255, 0)


def test_lmdb_is_read_twice_in_a_process_and_after_a_fork(tmp_path: Path) -> None:
    entries = {"num-samples": b"1", "label-000000001": b"One", "image-000000001": png("lime")}
    first = open_set(write_lmdb(tmp_path / "bench", entries))
    second = pickle.loads(pickle.dumps(open_set(tmp_path / "bench")))  # noqa: S301 - our own object
    assert [words.image(0).getpixel((0, 0)) for words in (first, second)] == [(0, 255, 0)] * 2
    child = os.fork()
    if child == 0:  # pytest must not run on here, whatever happens
        try:
            os._exit(0 if first.image(0).getpixel((0, 0)) == (0, 255, 0) else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert first.image(0).getpixel((0, 0)) == (0, 255, 0)


def test_image_is_turned_upright_by_its_exif_orientation(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "signs", {"a.jpg": "EXIT"})
    exif = Image.Exif()
    exif[0x0112] = 6  # stored a quarter turn off
    Image.new("RGB", (4, 8)).save(folder / "a.jpg", exif=exif)
    assert open_set(folder).image(0).size == (8, 4)


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "signs", {"a.png": "EXIT"})
    Image.fromarray(np.full((4, 8), 0x8000, np.uint16)).save(folder / "a.png")
    assert open_set(folder).image(0).convert("RGB").getpixel((0, 0)) == (128, 128, 128)


def test_name_of_a_relative_path_is_the_folder_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_folder(tmp_path / "signs", {"a.png": "EXIT"})
    monkeypatch.chdir(folder)
    assert open_set(Path()).name == "signs"


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="nowhere: no such folder"):
        open_set(tmp_path / "nowhere")


def test_folder_without_labels_says_what_is_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"neither labels\.tsv nor data\.mdb"):
        open_set(tmp_path)


def test_line_without_a_tab_is_located(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "signs", {"a.png": "EXIT"})
    (folder / "labels.tsv").write_text("a.png\tEXIT\na.png EXIT\n", encoding="utf-8")
    with pytest.raises(DatasetError, match="line 2: expected filename, one tab, text"):
        open_set(folder)


def test_labels_that_are_not_utf8_are_refused(tmp_path: Path) -> None:
    (tmp_path / "labels.tsv").write_bytes(b"a.png\tcaf\xe9\n")
    with pytest.raises(DatasetError, match="not UTF-8"):
        open_set(tmp_path)


def test_set_without_a_usable_word_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="holds no word"):
        open_set(write_folder(tmp_path / "blank", {"a.png": " ", "b.png": "\u65e5\u672c"}))


def test_missing_and_broken_images_are_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "signs", {"a.png": "EXIT", "b.png": "OPEN", "c.png": "TAXI"})
    (folder / "a.png").unlink()
    (folder / "b.png").write_bytes(b"no image")
    (folder / "c.png").write_bytes(png("red")[:40])
    words = open_set(folder)
    problems = [
        "a.png cannot be read",
        r"b.png is not .* \(no known image format\)",
        "c.png is not a readable image",
    ]
    for index, problem in enumerate(problems):
        with pytest.raises(DatasetError, match=f"signs: {problem}"):
            words.image(index)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"label-000000001": b"x"}, "the key num-samples is missing"),
        ({"num-samples": b"many"}, "num-samples is b'many', expected a number"),
        ({"num-samples": b"2", "label-000000001": b"x"}, "the key label-000000002 is missing"),
        ({"num-samples": b"1", "label-000000001": b"\xff"}, "label-000000001 is not UTF-8"),
    ],
)
def test_broken_lmdb_says_which_key(tmp_path: Path, entries: dict[str, bytes], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        open_set(write_lmdb(tmp_path / "bench", entries))


def test_lmdb_without_an_image_names_its_key(tmp_path: Path) -> None:
    words = open_set(write_lmdb(tmp_path / "bench", {"num-samples": b"1", "label-000000001": b"x"}))
    with pytest.raises(DatasetError, match="the key image-000000001 is missing"):
        words.image(0)


def test_file_that_is_no_lmdb_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data.mdb").write_bytes(b"no database")
    with pytest.raises(DatasetError, match="not a readable LMDB"):
        open_set(tmp_path)
