"""Where crops are prepared: small ones at once, all that could take long on a thread: the loop never stands still."""

import threading
import time
import zlib

import pytest
from PIL import Image

from clip4str.image import prepare_into
from clip4str_service import engine as engine_module
from clip4str_service.arena import Pixels
from clip4str_service.images import MEDIA_TYPES, ImageLimits, loaded, opened, quick
from clip4str_service.options import Options
from tests.service.engine_stage import said, started
from tests.service.pixel_worker import encoded, plain
from tests.service.test_images import chunk, jpeg_of_scans, scene

SMALL = Image.new("RGB", (256, 256), "#ABCDEF")


def packed(name: bytes, head: bytes, count: int = 20) -> bytes:
    """A PNG with chunks of one kilobyte that unpack to a megabyte each."""
    content = encoded(SMALL)
    bomb = chunk(name, head + zlib.compress(bytes(1 << 20), 9))
    return content[:33] + bomb * count + content[33:]


HEAVY = {
    "colour profile": packed(b"iCCP", b"k\0\0"),
    "text": packed(b"zTXt", b"k\0\0"),
    "international text": packed(b"iTXt", b"k\0\1\0\0\0"),
    "JPEG of many scans": jpeg_of_scans(100),
    "TIFF": encoded(SMALL, "TIFF", compression="tiff_lzw"),
}
LIGHT = {name: encoded(scene(), name) for name in MEDIA_TYPES.values() if name != "TIFF"}
LIGHT["progressive JPEG"] = encoded(scene(), "JPEG", progressive=True)


@pytest.mark.parametrize("content", HEAVY.values(), ids=HEAVY)
async def test_crop_that_may_take_long_is_prepared_on_a_thread(
    monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    assert len(content) < 32 << 10
    assert not quick(content)
    assert await threads(monkeypatch, [content]) == ({"decode"}, {"decode"})


@pytest.mark.parametrize("content", LIGHT.values(), ids=LIGHT)
async def test_small_crop_is_prepared_at_once(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    assert await threads(monkeypatch, [content] * 4) == ({"MainThread"}, {"MainThread"})


@pytest.mark.parametrize(
    "crops",
    [[plain()] * 5, [plain(size=(257, 256))], [plain() + bytes(32 << 10)]],
    ids=["many", "of many pixels", "of many bytes"],
)
async def test_other_crops_are_prepared_on_a_thread(
    monkeypatch: pytest.MonkeyPatch, crops: list[bytes]
) -> None:
    _, prepared = await threads(monkeypatch, crops)
    assert prepared == {"decode"}


async def threads(monkeypatch: pytest.MonkeyPatch, crops: list[bytes]) -> tuple[set[str], set[str]]:
    """The kinds of threads that crops, which are all read, are opened on, and prepared."""
    opening, preparing = set(), set()

    def open_(content: bytes, limits: ImageLimits) -> Image.Image:
        opening.add(this_thread())
        return opened(content, limits)

    def prepare(image: Image.Image, pixels: Pixels) -> None:
        preparing.add(this_thread())
        prepare_into(image, pixels)

    monkeypatch.setattr(engine_module, "opened", open_)
    monkeypatch.setattr(engine_module, "prepare_into", prepare)
    async with started() as stage:
        answer = said(await stage.engine.recognize(crops, Options()))
    assert all(isinstance(each, str) for each in answer), answer
    return opening, preparing


def this_thread() -> str:
    return threading.current_thread().name.split("_")[0]


def test_heavy_crops_are_heavy() -> None:
    content = HEAVY["text"]
    began = time.process_time()
    loaded(opened(content, ImageLimits(len(content), 1 << 16)))
    heavy = time.process_time() - began
    began = time.process_time()
    loaded(opened(encoded(SMALL), ImageLimits(len(content), 1 << 16)))
    assert heavy > 5 * (time.process_time() - began)
