"""What the shipped model reads in a crop must not depend on the crop's neighbours in the batch."""

import io
import itertools
import random
from collections.abc import Callable

import pytest
from PIL import Image, ImageEnhance, ImageFilter

from clip4str import BranchReading, Reading, Recognizer
from clip4str_service.samples import load_samples
from samples.demo import SAMPLES

COUNT = 64
TOLERANCES = {"fp32": 1e-5, "bf16": 1e-3}

CHANGES: list[Callable[[Image.Image], Image.Image]] = [
    lambda image: image,
    lambda image: image.crop((0, 0, image.width // 2, image.height)),
    lambda image: image.crop((image.width // 3, 0, image.width, image.height)),
    lambda image: image.rotate(5, Image.Resampling.BICUBIC, expand=True),
    lambda image: ImageEnhance.Brightness(image.filter(ImageFilter.GaussianBlur(2))).enhance(0.5),
]


@pytest.fixture(scope="module", params=TOLERANCES)
def precision(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def recognizer(precision: str) -> Recognizer:
    return Recognizer.load("default", device="cpu", precision=precision)


@pytest.fixture(scope="module")
def crops() -> list[Image.Image]:
    """Each sample whole, its ends, tilted and dim, then pairs side by side: words of different length."""
    images = [Image.open(io.BytesIO(sample.content)).convert("RGB") for sample in load_samples(SAMPLES)]
    pairs = [side_by_side(left, right) for left, right in itertools.pairwise(images)]
    return ([change(image) for change in CHANGES for image in images] + pairs)[:COUNT]


@pytest.fixture(scope="module")
def alone(recognizer: Recognizer, crops: list[Image.Image]) -> list[Reading]:
    return [recognizer.read([crop], top_k=2)[0] for crop in crops]


def side_by_side(left: Image.Image, right: Image.Image) -> Image.Image:
    joined = Image.new("RGB", (left.width + right.width, max(left.height, right.height)))
    joined.paste(left, (0, 0))
    joined.paste(right, (left.width, 0))
    return joined


def numbers(branch: BranchReading) -> list[float]:
    """Every probability a branch reports, but those of alternatives, which may tie."""
    return [
        branch.confidence,
        branch.eos_confidence,
        *(character.confidence for character in branch.characters),
    ]


def assert_same(readings: list[Reading], expected: list[Reading], precision: str) -> None:
    for index, (reading, single) in enumerate(zip(readings, expected, strict=True)):
        for branch, single_branch in (
            (reading.visual, single.visual),
            (reading.cross_modal, single.cross_modal),
        ):
            assert branch.text == single_branch.text, index
            assert numbers(branch) == pytest.approx(
                numbers(single_branch), rel=0, abs=TOLERANCES[precision]
            ), index


def test_crops_are_many_and_of_many_lengths(crops: list[Image.Image], alone: list[Reading]) -> None:
    assert len(crops) == COUNT
    assert len({len(reading.text) for reading in alone}) >= 5


def test_batch_of_all_reads_as_each_alone(
    recognizer: Recognizer, crops: list[Image.Image], alone: list[Reading], precision: str
) -> None:
    assert_same(recognizer.read(crops, top_k=2), alone, precision)


@pytest.mark.parametrize("size", [2, 3, 5, 8, 16, 31, 33, 63, COUNT])
def test_shuffled_batches_read_as_each_alone(
    recognizer: Recognizer, crops: list[Image.Image], alone: list[Reading], precision: str, size: int
) -> None:
    order = random.Random(size).sample(range(COUNT), COUNT)
    for start in range(0, COUNT, size):
        batch = order[start : start + size]
        readings = recognizer.read([crops[index] for index in batch], top_k=2)
        assert_same(readings, [alone[index] for index in batch], precision)
