"""Synthetic word images one can look at: contact sheets, and folders of images with labels.tsv."""

from collections.abc import Sequence
from itertools import chain, islice
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from clip4str.synth.stream import WordStream


def contact_sheet(images: Tensor, labels: Sequence[str], path: Path, columns: int = 8) -> None:
    """Write crops uint8 [N, 3, H, W] with their labels underneath as one PNG."""
    n, _, high, wide = images.shape
    cell_w, cell_h = wide + 6, high + 16
    rows = -(-n // columns)
    sheet = Image.new("RGB", (columns * cell_w, rows * cell_h), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(10)
    for k in range(n):
        x, y = k % columns * cell_w + 3, k // columns * cell_h + 2
        sheet.paste(Image.fromarray(images[k].permute(1, 2, 0).cpu().numpy()), (x, y))
        draw.text((x, y + high), labels[k], fill="black", font=font)
    sheet.save(path)


def write_dataset(out_dir: Path, count: int, seed: int, fonts: Path | None) -> None:
    """Write `count` synthetic crops as PNG files and labels.tsv (file name, tab, text) into a folder.

    The first of them are also put on one sheet beside it, OUT.sheet.png, to look at.

    Raises ValueError if count is below 1, FontError if the fonts folder holds no usable font.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    out_dir.mkdir(parents=True, exist_ok=True)
    stream = WordStream(fonts, seed=seed, reuse=1, like_lengths=False).crops()
    first = next(stream)
    shown = min(count, len(first.labels))
    sheet = out_dir.with_name(f"{out_dir.resolve().name}.sheet.png")
    contact_sheet(first.images[:shown], first.labels[:shown], sheet)
    crops = chain.from_iterable(zip(b.images, b.labels, strict=True) for b in chain([first], stream))
    with (out_dir / "labels.tsv").open("w", encoding="utf-8", newline="\n") as table:
        for number, (image, label) in enumerate(islice(crops, count)):
            name = f"{number:06d}.png"
            Image.fromarray(image.permute(1, 2, 0).cpu().numpy()).save(out_dir / name)
            table.write(f"{name}\t{label}\n")
