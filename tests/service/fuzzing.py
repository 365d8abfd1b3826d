"""Services on a thread of their own, and what to send them: good requests with some bytes wrong."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Coroutine, Sequence
from types import TracebackType
from typing import Any, TypeVar

from hypothesis import strategies as st

from clip4str_service.http_connection import HttpLimits
from clip4str_service.http_server import HttpServer
from clip4str_service.images import MEDIA_TYPES
from clip4str_service.wire import Done, Wanted
from tests.service.front import LIMITS, PATIENCE, Front
from tests.service.pixel_process import colour
from tests.service.pixel_worker import POISON, UNREADABLE, PixelWorker, encoded, plain
from tests.service.rest_service import Service, body
from tests.service.test_images import scene

T = TypeVar("T")


class Background:
    """An event loop on a thread of its own, for services whose clients block."""

    def __init__(self) -> None:
        self._thread = threading.Thread(target=lambda: asyncio.run(self._live()))
        self._began = threading.Event()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Its result."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(2 * PATIENCE)

    async def _live(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        self._began.set()
        await self._over.wait()

    def __enter__(self) -> Background:
        self._thread.start()
        self._began.wait(PATIENCE)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(PATIENCE)


class RestPort(Service):
    """A REST service on a real port."""

    async def open(self, loaded: bool = True) -> None:
        await super().open(loaded)
        seconds = dict.fromkeys(("head_timeout", "idle_timeout", "body_timeout", "write_timeout"), PATIENCE)
        limits = HttpLimits(max_connections=100, **seconds)
        self.server = HttpServer(self.app, limits, tls=None, refused=lambda _: None)
        listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        self._serving = asyncio.create_task(self.server.serve([listening]))

    async def stop(self) -> None:
        self.server.stop(0)
        await self._serving
        await super().stop()


class SturdyWorker(PixelWorker):
    """One that no colour breaks: a mutated image may have any."""

    async def read(self, slots: Sequence[int], wanted: Sequence[Wanted], limit: float) -> Done:
        if self._crops is not None:
            for slot in slots:
                pixels = self._crops.pixels[slot]
                if colour(pixels) in (POISON, UNREADABLE):
                    pixels[:] = 255
        return await super().read(slots, wanted, limit)


async def opened(kind: Callable[..., Front]) -> Any:
    """A running service of a kind, of narrow limits."""
    service = kind(LIMITS)
    service.stage.worker = SturdyWorker()
    await service.open()
    return service


IMAGES = [*(encoded(scene(), name) for name in MEDIA_TYPES.values()), plain(), b""]

DOCUMENT = {
    **body(plain("123456"), b"", charset="digits", top_k=2, detail="text", priority="bulk", timeout_ms=500),
    "crops": [{"id": "a", **each} for each in body(plain("123456"), b"")["crops"]],
}
JSON = json.dumps(DOCUMENT).encode()

FORM = b"".join(
    b"--b\r\nContent-Disposition: form-data; name=%b\r\nContent-Type: image/png\r\n\r\n%b\r\n" % part
    for part in [(b'"image"; filename="a.png"', plain()), (b'"top_k"', b"2"), (b"image", IMAGES[0])]
)
FORM += b"--b--\r\n"


@st.composite
def mutated(draw: st.DrawFn, good: st.SearchStrategy[bytes]) -> bytes:
    """Good bytes, of which up to four pieces are cut out, overwritten, put in or said twice."""
    content = draw(good)
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(content)))
        end = start + draw(st.integers(0, 12) | st.integers(0, len(content)))
        piece = draw(st.sampled_from([b"", content[start:end] * 2]) | st.binary(max_size=12))
        content = content[:start] + piece + content[end:]
    return content
