"""Collects fonts, checks which characters each can draw, and hands them out by family.

Collect fonts on a Debian or Ubuntu machine (no root needed; about 700 MB are downloaded):

    python -m clip4str.synth.fonts DEST

Any other folder of .ttf/.otf fonts works as well: it is checked and indexed the first time it is opened.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from clip4str.charset import CHARACTERS
from clip4str.synth.font_packages import CAPITALS, EXCLUDED, HANDWRITTEN, PACKAGES, PLAIN, SLANTED, TYPEWRITER
from clip4str.synth.kinds import Kind

_INDEX = "fonts.json"
_APT, _APT_CACHE, _DPKG = "apt-get", "apt-cache", "dpkg-deb"
_PROBE_SIZE = 48
_GLYPH_SIZE = 24
_BUNDLED = ""
# Mean likeness of lower-case to upper-case glyphs (different letters only) above which a font has one case.
_ONE_CASE = 0.72
# What tells the members of one family apart; removed, so that a family of forty weights counts once.
_STYLE = re.compile(
    r"\d+|Thin|Hairline|Extra|Ultra|Semi|Demi|Light|Book|Medium|Bold|Black|Heavy|Condensed|Cond|Cn|Narrow|"
    r"Expanded|Italic|Oblique|Display|Caption|Subhead|Text|Slanted|Unslanted|Regular|OSF|SC|\b(Lt|Md|Lg|Sb|Bk)\b"
)
_LETTERS_AND_DIGITS = "".join(c for c in CHARACTERS if c.isalnum())
# Of the words of each kind: the shares in typewriter, plain and handwritten faces; the rest takes any.
_FAMILIAR = {Kind.FORM: (0.38, 0.50, 0.04), Kind.RECEIPT: (0.52, 0.40, 0.0), Kind.SIGN: (0.02, 0.48, 0.04)}
# Letters whose two cases differ in shape; the others (Cc, Oo, ...) say nothing about small capitals.
_TWO_SHAPED = "abdefghlnqrt"


class FontError(ValueError):
    """No usable font where fonts were expected; the message says how to collect some."""


@dataclass(frozen=True, slots=True)
class FontFace:
    """One font file. `path` is relative to the library's folder ("" is Pillow's bundled font).

    `missing` holds the characters it cannot draw; with `one_case` its lower case looks like its upper case,
    so that only upper-case labels may be drawn with it; `weight` is how much of its letters' boxes is ink.
    """

    path: str
    family: str
    missing: str
    one_case: bool
    weight: float

    def can_draw(self, label: str) -> bool:
        """Whether the label can be drawn and read back exactly."""
        if self.one_case and label != label.upper():
            return False
        return not self.missing or not any(c in self.missing for c in label)


def _open(path: Path | None, size: int) -> ImageFont.FreeTypeFont:
    if path is None:
        font = ImageFont.load_default(size)
        if not isinstance(font, ImageFont.FreeTypeFont):
            raise FontError("Pillow was built without FreeType: install a Pillow wheel that has it")
        return font
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


def _glyph(font: ImageFont.FreeTypeFont, character: str) -> np.ndarray | None:
    """The character's ink, tight, as a float array [24, 24] in 0..1; None without ink."""
    image = Image.new("L", (_PROBE_SIZE * 4, _PROBE_SIZE * 3))
    ImageDraw.Draw(image).text((_PROBE_SIZE, _PROBE_SIZE * 2), character, fill=255, font=font, anchor="ls")
    box = image.getbbox()
    if box is None:
        return None
    # The shape keeps a hint of its aspect: l and - must not both become a full square.
    tall, wide = box[3] - box[1], box[2] - box[0]
    scale = _GLYPH_SIZE / max(tall, wide)
    size = (max(1, round(wide * scale)), max(1, round(tall * scale)))
    glyph = Image.new("L", (_GLYPH_SIZE, _GLYPH_SIZE))
    corner = ((_GLYPH_SIZE - size[0]) // 2, (_GLYPH_SIZE - size[1]) // 2)
    glyph.paste(image.crop(box).resize(size, Image.Resampling.BOX), corner)
    return np.asarray(glyph, dtype=np.float32) / 255.0


def _likeness(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation of two glyphs, -1..1."""
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / norm if norm > 0 else 0.0


def inspect(path: Path, relative_to: Path) -> FontFace | None:
    """The facts about a font file; None if it cannot be read or lacks letters or digits."""
    try:
        font = _open(path, _PROBE_SIZE)
        unknown = _glyph(font, "\U0010fffd")
        glyphs = {c: _glyph(font, c) for c in CHARACTERS}
    except (OSError, ValueError):
        return None
    found = {
        c: g
        for c, g in glyphs.items()
        if g is not None and not (unknown is not None and np.array_equal(g, unknown))
    }
    missing = "".join(c for c in CHARACTERS if c not in found)
    if any(c in missing for c in _LETTERS_AND_DIGITS):
        return None
    likeness = float(np.mean([_likeness(found[c], found[c.upper()]) for c in _TWO_SHAPED]))
    one_case = likeness > _ONE_CASE or CAPITALS.search(path.name) is not None
    weight = float(np.mean([found[c] for c in _TWO_SHAPED + _TWO_SHAPED.upper()]))
    name = font.getname()[0] or path.stem
    family = _STYLE.sub("", name).strip(" -") or name
    return FontFace(str(path.relative_to(relative_to)), family, missing, one_case, round(weight, 3))


class FontLibrary:
    """The fonts of a folder, drawn by family so that large families do not crowd out the others."""

    def __init__(self, folder: Path | None, faces: list[FontFace]) -> None:
        self._folder = folder
        families: dict[str, list[FontFace]] = {}
        for face in faces:
            families.setdefault(face.family, []).append(face)
        self.families: tuple[tuple[FontFace, ...], ...] = tuple(tuple(f) for _, f in sorted(families.items()))
        named = (TYPEWRITER, PLAIN, HANDWRITTEN)
        pools = [tuple(f for f in self.families if names.search(f[0].family)) for names in named]
        # A folder may lack a pool: its words then take any family.
        self._pools = tuple(pool or self.families for pool in (*pools, self.families))

    @classmethod
    def open(cls, folder: Path | None) -> "FontLibrary":
        """Open a folder of fonts, indexing it the first time. None means the one font that Pillow ships.

        Raises FontError where the folder does not exist or holds no usable font.
        """
        if folder is None:
            return cls(None, [FontFace(_BUNDLED, "bundled", "", False, 0.4)])
        how = "collect fonts with: python -m clip4str.synth.fonts DEST"
        if not folder.is_dir():
            raise FontError(f"the fonts folder {folder} does not exist; {how}")
        index = folder / _INDEX
        if not index.is_file():
            index_fonts(folder)
        try:
            faces = [FontFace(**entry) for entry in json.loads(index.read_text(encoding="utf-8"))]
        except (ValueError, TypeError) as error:
            raise FontError(
                f"the font index {index} is damaged ({error}); delete it to have it made again"
            ) from error
        if not faces:
            raise FontError(f"the fonts folder {folder} holds no usable .ttf or .otf font; {how}")
        return cls(folder, faces)

    def load(self, face: FontFace, size: int) -> ImageFont.FreeTypeFont:
        """The face at a size in pixels. Opening takes a fraction of drawing a word, so none is kept in memory."""
        return _open(self._folder / face.path if self._folder is not None else None, size)

    def choose(self, label: str, kind: Kind, rng: np.random.Generator) -> FontFace | None:
        """A face that can draw the label: a family as the kind has it, then a face. None after many failed tries.

        Of three faces of a family signs often take the heaviest, as they are mostly set in bold type; slanted
        faces mostly give way to upright ones.
        """
        edges = np.cumsum(_FAMILIAR[kind])
        for _ in range(64):
            pool = self._pools[int(np.searchsorted(edges, rng.random(), side="right"))]
            family = pool[int(rng.random() * len(pool))]
            faces = [family[int(rng.random() * len(family))] for _ in range(3)]
            if rng.random() < 0.75:
                faces = [face for face in faces if not SLANTED.search(face.path)] or faces
            heavy = kind is Kind.SIGN and rng.random() < 0.7
            face = max(faces, key=lambda other: other.weight) if heavy else faces[0]
            if face.can_draw(label):
                return face
        return None


def index_fonts(folder: Path) -> int:
    """Check every .ttf/.otf file below the folder and write its index; returns the number of usable faces."""
    faces = []
    for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".ttf", ".otf")):
        if EXCLUDED.search(path.name):
            continue
        face = inspect(path, folder)
        if face is not None:
            faces.append(face)
    unfinished = folder / f".{_INDEX}.{os.getpid()}"  # several processes may find that there is none
    unfinished.write_text(json.dumps([asdict(face) for face in faces], indent=0), encoding="utf-8")
    unfinished.replace(folder / _INDEX)
    return len(faces)


def collect(destination: Path) -> int:
    """Download the Debian packages, unpack their fonts and licences, and index them; returns the faces kept.

    Packages that this release of the distribution does not have are left out. Raises FontError where the Debian
    tools are absent or a download fails.
    """
    for tool in (_APT, _APT_CACHE, _DPKG):
        if shutil.which(tool) is None:
            raise FontError(
                f"{tool} was not found: collecting needs Debian or Ubuntu; any folder of fonts works"
            )
    destination.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        try:
            names = subprocess.run([_APT_CACHE, "pkgnames"], check=True, capture_output=True, text=True)
            available = set(names.stdout.split())
            wanted = [package for package in PACKAGES if package in available]
            if not wanted:
                raise FontError("none of the font packages is known here; run apt-get update first")
            subprocess.run([_APT, "download", "-q", *wanted], cwd=folder, check=True)
            for package in sorted(Path(folder).glob("*.deb")):
                _unpack(package, destination / re.sub(r"_.*", "", package.name))
        except subprocess.CalledProcessError as error:
            raise FontError(
                f"{error.cmd[0]} failed (exit status {error.returncode}); see its output above"
            ) from error
    return index_fonts(destination)


def _unpack(package: Path, destination: Path) -> None:
    """The fonts and the licence of one package, flat in one folder."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([_DPKG, "-x", str(package), folder], check=True)
        destination.mkdir(exist_ok=True)
        for path in sorted(Path(folder).rglob("*")):
            wanted = path.suffix.lower() in (".ttf", ".otf") or path.name == "copyright"
            if wanted and path.is_file() and not path.is_symlink():
                shutil.copyfile(path, destination / path.name)


def main() -> None:
    """Command line: collect fonts into a folder."""
    parser = argparse.ArgumentParser(
        description="Collect free fonts for synthetic word images (Debian, Ubuntu)."
    )
    parser.add_argument(
        "destination", type=Path, metavar="DEST", help="folder for the fonts, outside the repository"
    )
    destination = parser.parse_args().destination
    try:
        kept = collect(destination)
    except FontError as error:
        raise SystemExit(f"error: {error}") from None
    sys.stdout.write(f"{kept} usable fonts in {destination}\n")


if __name__ == "__main__":
    main()
