"""Draw the sample crops of this folder: word images that look photographed, and their labels.tsv.

Run: python samples/make_samples.py [FONT_DIR]     (default: where Debian's fonts-dejavu-extra installs)
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

Color = tuple[int, int, int]

HERE = Path(__file__).resolve().parent
FONT_DIR = Path("/usr/share/fonts/truetype/dejavu")
TEXT_HEIGHT = 96  # pixels of the drawing; the crop is shrunk to CROP_HEIGHT
CROP_HEIGHT = 48


@dataclass(frozen=True)
class Sample:
    """One crop: what it says and how it looks. `lean` is the perspective, as a share of the height."""

    text: str
    font: str
    ink: Color
    paper: Color
    lean: float = 0.0
    blur: float = 0.6
    noise: float = 5.0
    light: float = 0.2
    shadow: bool = False
    frame: bool = False


SAMPLES = (
    Sample("MARKET", "DejaVuSans-Bold", (245, 240, 225), (24, 84, 58), lean=0.10, frame=True),
    Sample("Coffee", "DejaVuSerif-Bold", (60, 36, 22), (226, 204, 168), blur=0.9),
    Sample("STREET", "DejaVuSansCondensed-Bold", (250, 250, 250), (20, 62, 140), lean=-0.08),
    Sample("garden", "DejaVuSans", (32, 70, 30), (214, 224, 196), noise=8.0),
    Sample("Library", "DejaVuSerif", (40, 40, 48), (200, 196, 188), lean=0.06, light=0.4),
    Sample("EXIT", "DejaVuSans-Bold", (250, 246, 240), (178, 28, 30), blur=1.0, shadow=True),
    Sample("bread", "DejaVuSerif-BoldItalic", (120, 40, 24), (240, 226, 190), lean=-0.05),
    Sample("PARKING", "DejaVuSansCondensed-Bold", (16, 24, 60), (240, 196, 40), noise=9.0),
    Sample("Theatre", "DejaVuSerifCondensed-Bold", (238, 206, 120), (86, 18, 44), shadow=True),
    Sample("hotel", "DejaVuSans-BoldOblique", (36, 36, 36), (186, 206, 220), blur=0.9, light=0.35),
    Sample("2741", "DejaVuSans-Bold", (30, 30, 34), (232, 232, 226), lean=0.08, noise=8.0),
    Sample("TICKETS", "DejaVuSansMono-Bold", (252, 236, 200), (44, 48, 60), blur=0.8),
)


def draw(sample: Sample, font_dir: Path, rng: np.random.Generator) -> Image.Image:
    """Draw one crop, RGB, CROP_HEIGHT pixels high."""
    font = ImageFont.truetype(str(font_dir / f"{sample.font}.ttf"), TEXT_HEIGHT)
    left, top, right, bottom = (int(edge) for edge in font.getbbox(sample.text))
    margin_x, margin_y = TEXT_HEIGHT // 3, TEXT_HEIGHT // 5
    size = (right - left + 2 * margin_x, bottom - top + 2 * margin_y)
    origin = (margin_x - left, margin_y - top)

    image = Image.fromarray(paper(sample, size, rng))
    pen = ImageDraw.Draw(image)
    if sample.frame:
        pen.rounded_rectangle((6, 6, size[0] - 7, size[1] - 7), radius=14, outline=sample.ink, width=4)
    if sample.shadow:
        dark = (sample.paper[0] // 3, sample.paper[1] // 3, sample.paper[2] // 3)
        pen.text((origin[0] + 5, origin[1] + 5), sample.text, font=font, fill=dark)
    pen.text(origin, sample.text, font=font, fill=sample.ink)

    image = lean(image, sample.lean)
    image = image.filter(ImageFilter.GaussianBlur(2 * sample.blur))
    image = image.resize(
        (round(image.width * CROP_HEIGHT / image.height), CROP_HEIGHT), Image.Resampling.LANCZOS
    )
    grain = rng.normal(0.0, sample.noise, (image.height, image.width, 1))
    return Image.fromarray((np.asarray(image) + grain).clip(0, 255).astype(np.uint8))


def paper(sample: Sample, size: tuple[int, int], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Make a blotchy, unevenly lit ground, uint8 [height, width, 3]."""
    width, height = size
    blotches = Image.fromarray(rng.normal(0.0, 1.0, (height // 12 + 2, width // 12 + 2)).astype(np.float32))
    texture = np.asarray(blotches.resize(size, Image.Resampling.BICUBIC))[..., None]
    across = np.linspace(-0.5, 0.5, width)[None, :, None] * rng.choice((-1, 1))
    ground: NDArray[np.float64] = np.asarray(sample.paper) * (1 + sample.light * across) + 6 * texture
    return ground.clip(0, 255).astype(np.uint8)


def lean(image: Image.Image, amount: float) -> Image.Image:
    """Look at the image from one side: its left (amount > 0) or right edge comes nearer."""
    width, height = image.size
    inset = abs(amount) * height
    left, right = (0.0, inset) if amount > 0 else (inset, 0.0)
    corners = (0.0, left, 0.0, height - left, float(width), height - right, float(width), right)
    return image.transform(image.size, Image.Transform.QUAD, corners, Image.Resampling.BICUBIC)


def main() -> None:
    """Write every crop and labels.tsv next to this file."""
    font_dir = Path(sys.argv[1]) if len(sys.argv) > 1 else FONT_DIR
    rng = np.random.default_rng(4)
    rows = []
    for number, sample in enumerate(SAMPLES, start=1):
        name = f"{number:02d}.jpg"
        draw(sample, font_dir, rng).save(HERE / name, quality=85)
        rows.append(f"{name}\t{sample.text}\n")
    (HERE / "labels.tsv").write_text("".join(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
