"""Draws one word in one font as a tight glyph mask on a fixed canvas (CPU, FreeType through Pillow)."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from clip4str.synth.fonts import FontError, FontFace, FontLibrary
from clip4str.synth.kinds import Kind

#: Height and width of a mask in pixels; finer than the 32x128 crops, so that warping does not blur them.
MASK_SIZE = (40, 160)
# Sizes in pixels at which words are drawn: about the height of the mask, some more to keep short words sharp.
_FONT_SIZES = (36, 60)
# Shares of words drawn bolder, with other spacing, with letters off their line, and underlined.
_HABITS = {
    Kind.FORM: (0.1, 0.12, 0.04, 0.03),
    Kind.RECEIPT: (0.06, 0.1, 0.02, 0.005),
    Kind.SIGN: (0.1, 0.3, 0.05, 0.01),
}
# A box narrower than this (width / height) gets room at its sides: nobody crops an "l" to its ink alone.
_LEAST_ASPECT = 0.45


@dataclass(frozen=True, slots=True)
class WordMask:
    """A drawn word.

    `coverage` is uint8 [40, 160], 255 where ink covers the pixel, the word squeezed to fill the canvas;
    `aspect` is the width of the word's box over its height before it was squeezed.
    """

    coverage: np.ndarray
    aspect: float


def render_word(
    label: str, kind: Kind, fonts: FontLibrary, face: FontFace, rng: np.random.Generator
) -> WordMask:
    """Draw the label in a face that can draw it; size, spacing, weight and stretch are random."""
    font = fonts.load(face, int(rng.integers(*_FONT_SIZES)))
    size = int(font.size)
    pad = size // 2
    heavier, spacing, uneven, underlined = _HABITS[kind]
    stroke = float(rng.uniform(0.3, 1.2)) * size / 40 if rng.random() < heavier else 0.0
    tracking = 0.0
    if len(label) > 1 and rng.random() < spacing:
        # Wide setting is common on signs, letters that nearly touch in headlines.
        tracking = float(rng.choice((-0.06, -0.04, 0.04, 0.08, 0.14, 0.25, 0.5))) * size
    # Capitals with a larger first letter, as titles have them.
    first = 1.0
    if kind is Kind.SIGN and len(label) > 2 and label.isupper() and rng.random() < 0.06:
        first = float(rng.uniform(1.15, 1.4))
    bounce = float(rng.uniform(0.02, 0.1)) * size if rng.random() < uneven else 0.0
    wide = int(font.getlength(label) + max(tracking, 0.0) * len(label)) + 4 * pad
    baseline = 2 * size
    image = Image.new("L", (wide, 3 * size))
    draw = ImageDraw.Draw(image)
    if tracking or bounce or first > 1:
        x = float(2 * pad)
        for number, character in enumerate(label):
            y = baseline + (bounce * float(rng.standard_normal()) if bounce else 0.0)
            own = font if number else fonts.load(face, round(first * size))
            draw.text((x, y), character, fill=255, font=own, anchor="ls", stroke_width=stroke)
            x += own.getlength(character) + tracking
    else:
        draw.text((2 * pad, baseline), label, fill=255, font=font, anchor="ls", stroke_width=stroke)
    box = image.getbbox()
    if box is None:
        raise FontError(
            f"{face.path} draws nothing for {label!r}; delete the font and its folder's fonts.json"
        )
    left, top, right, bottom = box
    if rng.random() < underlined:
        thick = max(1, round(size * float(rng.uniform(0.03, 0.08))))
        y = max(baseline + round(size * float(rng.uniform(0.06, 0.2))), baseline + 2)
        draw.rectangle((left - pad // 2, y, right + pad // 2, y + thick), fill=255)
        bottom = max(bottom, y + thick + 1)
    top, bottom = _line_box(top, bottom, baseline, size, rng)
    least = round((bottom - top) * _LEAST_ASPECT)
    if right - left < least:
        left -= (least - (right - left)) // 2
        right = left + least
    high, across = MASK_SIZE
    word = image.resize(
        (across, high), Image.Resampling.BILINEAR, box=(max(left, 0), top, min(right, wide), bottom)
    )
    stretch = float(np.exp(rng.normal(-0.22, 0.25))) if rng.random() < 0.75 else 1.0
    return WordMask(np.array(word), (right - left) / (bottom - top) * stretch)


def _line_box(top: int, bottom: int, baseline: int, size: int, rng: np.random.Generator) -> tuple[int, int]:
    """The vertical extent of the crop: the ink, often reaching up to the line's height as annotators draw it.

    Marks such as "-" or "." would fill the crop as a bar otherwise, and lose what tells them apart.
    """
    line_top, line_bottom = baseline - round(0.72 * size), baseline + round(0.02 * size)
    small = bottom - top < 0.42 * size
    if rng.random() < (0.75 if small else 0.2):
        reach = float(rng.uniform(0.5, 1.0)) if small else float(rng.random())
        top = min(top, round(top + (line_top - top) * reach))
        bottom = max(bottom, round(bottom + (line_bottom - bottom) * reach))
    return top, bottom
