"""Odd and broken images: each is read right or refused with its code, and harms no neighbour."""

import base64
import io
import struct
import zlib
from collections.abc import Callable

import grpc
import httpx
import numpy as np
import pytest
from google.rpc import error_details_pb2
from PIL import Image

from clip4str_service.pb import recognition_pb2 as pb
from clip4str_service.pb.recognition_pb2_grpc import RecognitionServiceStub
from clip4str_service.samples import Sample

Maker = Callable[[bytes], bytes]


def saved(image: Image.Image, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


def animated_gif(content: bytes) -> bytes:
    first = opened(content)
    return saved(first, "GIF", save_all=True, append_images=[Image.new("RGB", first.size)])


def sixteen_bit_png(content: bytes) -> bytes:
    grey = np.asarray(opened(content).convert("L")).astype(np.uint16) * 257
    return saved(Image.fromarray(grey), "PNG")


def exif_rotated_jpeg(content: bytes) -> bytes:
    """Stored upright-down by a quarter turn, with the EXIF orientation (6) that turns it back."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(opened(content).rotate(90, expand=True), "JPEG", quality=95, exif=exif)


def transparent_png(content: bytes) -> bytes:
    image = opened(content).convert("RGBA")
    image.putalpha(255)
    return saved(image, "PNG")


def png_of_size(width: int, height: int, *, whole: bool) -> bytes:
    """A PNG that declares a size and holds no pixels: its header alone, or all the parts that a PNG has."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"") if whole else header


READABLE: dict[str, Maker] = {
    "animated GIF, first frame": animated_gif,
    "CMYK JPEG": lambda content: saved(opened(content).convert("CMYK"), "JPEG", quality=95),
    "grey JPEG": lambda content: saved(opened(content).convert("L"), "JPEG", quality=95),
    "16-bit PNG": sixteen_bit_png,
    "palette PNG": lambda content: saved(opened(content).quantize(64), "PNG"),
    "PNG with alpha": transparent_png,
    "EXIF-rotated JPEG": exif_rotated_jpeg,
    "WebP": lambda content: saved(opened(content), "WEBP", quality=90),
    "BMP": lambda content: saved(opened(content), "BMP"),
    "TIFF": lambda content: saved(opened(content), "TIFF"),
}

REFUSED: dict[str, tuple[Maker, str, int]] = {
    "corrupt JPEG": (lambda content: content[: len(content) // 2], "undecodable_image", 422),
    "JPEG header alone": (lambda content: content[:20], "undecodable_image", 422),
    "noise after a JPEG header": (
        lambda content: content[:4] + bytes(range(256)) * 4,
        "undecodable_image",
        422,
    ),
    "100-megapixel PNG": (lambda _: png_of_size(10_000, 10_000, whole=True), "image_too_large", 413),
    "100-megapixel PNG header": (lambda _: png_of_size(10_000, 10_000, whole=False), "image_too_large", 413),
    "crop over 2 MiB": (lambda content: content + bytes(2 << 20), "image_too_large", 413),
    "text file": (lambda _: b"not an image at all\n" * 20, "unsupported_media_type", 415),
}


def test_readable_images_are_read_right(rest: httpx.Client, exit_sign: Sample) -> None:
    for name, make in READABLE.items():
        response = rest.post("/v1/recognize", files=[("image", (name, make(exit_sign.content), "image/png"))])
        assert response.json()["results"][0].get("text") == exit_sign.text, (name, response.text)


@pytest.mark.parametrize("name", REFUSED)
def test_refused_image_s_error_is_the_raw_response_s_error(
    rest: httpx.Client, exit_sign: Sample, name: str
) -> None:
    make, code, status = REFUSED[name]
    response = rest.post(
        "/v1/recognize", content=make(exit_sign.content), headers={"Content-Type": "image/jpeg"}
    )
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert response.headers["Content-Type"] == "application/problem+json"
    assert response.json()["detail"]


def test_bad_crops_fail_alone_over_rest_and_grpc(
    rest: httpx.Client, rpc: RecognitionServiceStub, exit_sign: Sample
) -> None:
    crops, expected = [], []
    for name, (make, code, status) in REFUSED.items():
        crops += [(name, make(exit_sign.content)), (f"after {name}", exit_sign.content)]
        expected += [(code, status), exit_sign.text]
    body = [{"id": name, "content": base64.b64encode(content).decode()} for name, content in crops]
    by_rest = rest.post("/v1/recognize", json={"crops": body}).json()["results"]
    assert [result["id"] for result in by_rest] == [name for name, _ in crops]
    found = [
        (result["error"]["code"], result["error"]["status"]) if "error" in result else result["text"]
        for result in by_rest
    ]
    assert found == expected

    request = pb.RecognizeRequest(crops=[pb.Crop(id=name, content=content) for name, content in crops])
    by_grpc = rpc.Recognize(request, timeout=60).results
    for result, wanted in zip(by_grpc, expected, strict=True):
        if isinstance(wanted, str):
            assert result.recognition.text == wanted
        else:
            info = error_details_pb2.ErrorInfo()
            assert any(detail.Unpack(info) for detail in result.error.details)
            assert info.reason == wanted[0]
            assert result.error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
            assert result.error.message


def test_content_that_is_no_base64_fails_alone(rest: httpx.Client, exit_sign: Sample) -> None:
    good = base64.b64encode(exit_sign.content).decode()
    answer = rest.post("/v1/recognize", json={"crops": [{"content": "%%%"}, {"content": good}]})
    bad_result, good_result = answer.json()["results"]
    assert (bad_result["error"]["code"], good_result["text"]) == ("invalid_request", exit_sign.text)


def test_empty_body_is_refused_by_every_door(
    rest: httpx.Client, rpc: RecognitionServiceStub, exit_sign: Sample
) -> None:
    raw = rest.post("/v1/recognize", content=b"", headers={"Content-Type": "image/jpeg"})
    assert (raw.status_code, raw.json()["code"]) == (422, "undecodable_image")
    parts = [
        ("image", ("empty.jpg", b"", "image/jpeg")),
        ("image", ("good.jpg", exit_sign.content, "image/jpeg")),
    ]
    empty, good = rest.post("/v1/recognize", files=parts).json()["results"]
    assert (empty["error"]["code"], good["text"]) == ("undecodable_image", exit_sign.text)
    request = pb.RecognizeRequest(crops=[pb.Crop(id="empty"), pb.Crop(id="good", content=exit_sign.content)])
    empty_result, good_result = rpc.Recognize(request, timeout=60).results
    assert empty_result.WhichOneof("outcome") == "error"
    assert good_result.recognition.text == exit_sign.text
