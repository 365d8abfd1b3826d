"""Fonts: what a folder of them offers, and what is said where it offers none."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import ImageFont

from clip4str.synth import fonts
from clip4str.synth.fonts import FontError, FontFace, FontLibrary
from clip4str.synth.kinds import Kind


@pytest.fixture
def font_folder(tmp_path: Path) -> Path:
    """A folder with Pillow's bundled font as a file, and a file that is no font."""
    bundled = ImageFont.load_default(16)
    assert isinstance(bundled, ImageFont.FreeTypeFont)
    (tmp_path / "plain.ttf").write_bytes(bundled.font_bytes)
    (tmp_path / "broken.ttf").write_bytes(b"not a font")
    return tmp_path


def test_a_folder_is_indexed_when_first_opened(font_folder: Path) -> None:
    library = FontLibrary.open(font_folder)
    assert [face.path for family in library.families for face in family] == ["plain.ttf"]
    face = library.families[0][0]
    assert not face.one_case
    assert face.missing == ""
    assert 0.1 < face.weight < 0.7
    (font_folder / "plain.ttf").unlink()
    assert FontLibrary.open(font_folder).families == library.families


def test_a_loaded_font_has_the_size_asked_for(font_folder: Path) -> None:
    library = FontLibrary.open(font_folder)
    font = library.load(library.families[0][0], 40)
    assert font.size == 40


def test_a_face_draws_only_what_can_be_read_back() -> None:
    capitals = FontFace("a.ttf", "a", "@#", True, 0.4)
    assert capitals.can_draw("OPEN-24")
    assert not capitals.can_draw("Open")
    assert not capitals.can_draw("A@B")
    library = FontLibrary(None, [capitals, FontFace("b.ttf", "b", "", False, 0.4)])
    rng = np.random.default_rng(0)
    chosen = {face.family for _ in range(50) if (face := library.choose("Open", Kind.SIGN, rng))}
    assert chosen == {"b"}
    assert FontLibrary(None, [capitals]).choose("Open", Kind.SIGN, rng) is None


def test_signs_take_heavy_faces_and_print_any() -> None:
    library = FontLibrary(None, [FontFace(str(w), "a", "", False, w) for w in (0.2, 0.5)])
    rng = np.random.default_rng(0)

    def heavy(kind: Kind) -> float:
        return float(np.mean([library.choose("a", kind, rng) == library.families[0][1] for _ in range(400)]))

    assert heavy(Kind.SIGN) > 0.65
    assert 0.4 < heavy(Kind.FORM) < 0.6


def test_kinds_have_their_families_and_few_slanted_faces() -> None:
    names = ("Courier Prime", "Liberation Sans", "Leckerli One")
    faces = [FontFace(f"{n}-{s}.ttf", n, "", False, 0.4) for n in names for s in ("Regular", "Italic")]
    library = FontLibrary(None, faces)
    rng = np.random.default_rng(0)
    for kind, common in ((Kind.RECEIPT, names[0]), (Kind.FORM, names[1])):
        chosen = [face for _ in range(500) if (face := library.choose("a", kind, rng))]
        shares = {name: np.mean([face.family == name for face in chosen]) for name in names}
        assert max(shares, key=lambda name: shares[name]) == common
        assert shares["Leckerli One"] < 0.1
        assert np.mean(["Italic" in face.path for face in chosen]) < 0.35


def test_a_missing_or_empty_folder_says_how_to_collect_fonts(tmp_path: Path) -> None:
    with pytest.raises(
        FontError, match=r"does not exist; collect fonts with: python -m clip4str\.synth\.fonts"
    ):
        FontLibrary.open(tmp_path / "nowhere")
    with pytest.raises(FontError, match=r"no usable \.ttf or \.otf font; collect fonts with"):
        FontLibrary.open(tmp_path)


def test_a_damaged_index_is_named(font_folder: Path) -> None:
    (font_folder / "fonts.json").write_text('[{"path": 1}]', encoding="utf-8")
    with pytest.raises(FontError, match=r"fonts\.json is damaged"):
        FontLibrary.open(font_folder)


def test_collecting_without_the_debian_tools_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    assert shutil.which("apt-get") is None
    with pytest.raises(FontError, match="apt-get was not found"):
        fonts.collect(tmp_path)
