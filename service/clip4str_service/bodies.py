"""The three body forms of a REST request: raw image, multipart form, JSON. Limits hold while one is read."""

from __future__ import annotations

import binascii
from collections.abc import AsyncIterator
from typing import NamedTuple

from fastapi import Request
from pydantic import ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from clip4str_service.errors import (
    ClientGoneError,
    ImageTooLargeError,
    InvalidRequestError,
    PayloadTooLargeError,
    ServiceError,
    TooManyCropsError,
    UnsupportedMediaTypeError,
    Violation,
)
from clip4str_service.images import MEDIA_TYPES
from clip4str_service.intake import Holding
from clip4str_service.options import Options, invalid_request, options_from_strings
from clip4str_service.schemas import RecognizeBody
from clip4str_service.settings import Settings

JSON = "application/json"
FORM = "multipart/form-data"
IMAGE_FIELD = "image"

_MAX_FIELD_BYTES = 1024  # of a form field that is an option
_MAX_HEADER_BYTES = 2048  # of a form part's header: of its name, and of its value
_PLAIN_ENCODINGS = (b"7bit", b"8bit", b"binary")


class Crops(NamedTuple):
    """What a request asks: crops (or why one is none), their ids, options. `raw`: the body is the crop."""

    ids: list[str]
    contents: list[bytes | ServiceError]
    options: Options
    raw: bool = False


async def read_crops(request: Request, settings: Settings, holding: Holding) -> Crops:
    """Reads the body, whose bytes `holding` takes, in the form that its Content-Type names. Raises ServiceError."""
    media_type, parameters = parse_options_header(request.headers.get("content-type"))
    form = media_type.decode("latin-1")
    if request.headers.get("content-encoding", "identity") != "identity":
        raise UnsupportedMediaTypeError("the body has a Content-Encoding; bodies are taken as they are")
    if form in MEDIA_TYPES:
        options = options_from_strings(_unique(request.query_params.multi_items()))
        return Crops(["0"], [await _raw(request, settings, holding)], options, raw=True)
    if form not in (FORM, JSON):
        accepted = ", ".join((JSON, FORM, *MEDIA_TYPES))
        named = form[:64] or "unknown"
        raise UnsupportedMediaTypeError(f"the body is of type {named!r}; accepted are {accepted}")
    if request.query_params:
        names = dict.fromkeys(request.query_params)
        place = "in form fields" if form == FORM else "under `options` in the body"
        raise InvalidRequestError(*(Violation(name[:64], f"options of {form} go {place}") for name in names))
    if form == JSON:
        return _json(b"".join([chunk async for chunk in _chunks(request, settings, holding)]), settings)
    return await _multipart(request, parameters.get(b"boundary", b""), settings, holding)


async def _chunks(request: Request, settings: Settings, holding: Holding) -> AsyncIterator[bytes]:
    """The body as it arrives; raises PayloadTooLargeError before more than the limit is held."""
    limit = settings.max_request_bytes
    declared = request.headers.get("content-length", "")
    left = limit - (int(declared) if declared.isdecimal() else 0)
    too_large = PayloadTooLargeError(f"the body has more than {limit} bytes ({limit / 2**20:g} MiB)")
    if left < 0:
        raise too_large
    left = limit
    try:
        async for chunk in request.stream():
            left -= len(chunk)
            if left < 0:
                raise too_large
            holding.take(len(chunk))
            yield chunk
    except ClientDisconnect:
        raise ClientGoneError("the client left before it had sent the body") from None


async def _raw(request: Request, settings: Settings, holding: Holding) -> bytes:
    parts = []
    size = 0
    async for chunk in _chunks(request, settings, holding):
        size += len(chunk)
        if size > settings.max_crop_bytes:
            raise _crop_too_large(settings)
        parts.append(chunk)
    return b"".join(parts)


def _json(body: bytes, settings: Settings) -> Crops:
    try:
        parsed = RecognizeBody.model_validate_json(body, strict=True)
    except ValidationError as error:
        if any(each["type"] == "too_long" and each["loc"] == ("crops",) for each in error.errors()):
            raise TooManyCropsError(f"at most {settings.max_crops} crops are read") from None
        raise invalid_request(error) from None
    ids = [crop.id or str(index) for index, crop in enumerate(parsed.crops)]
    contents = [_base64(index, crop.content, settings) for index, crop in enumerate(parsed.crops)]
    return Crops(ids, contents, parsed.options)


def _base64(index: int, content: str, settings: Settings) -> bytes | ServiceError:
    if len(content) * 3 // 4 > settings.max_crop_bytes + 2:  # padding stands for up to two bytes
        return _crop_too_large(settings)
    try:
        return binascii.a2b_base64(content, strict_mode=True)
    except ValueError:
        return InvalidRequestError(Violation(f"crops[{index}].content", "is not valid base64"))


def _crop_too_large(settings: Settings) -> ImageTooLargeError:
    return ImageTooLargeError(
        f"the image has more than {settings.max_crop_bytes} bytes, the limit of one crop"
    )


async def _multipart(request: Request, boundary: bytes, settings: Settings, holding: Holding) -> Crops:
    if not boundary:
        raise InvalidRequestError(Violation("body", f"the Content-Type {FORM} must name the form's boundary"))
    form = _Form(settings)
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": form.part_begin,
                "on_header_field": form.header_name,
                "on_header_value": form.header_value,
                "on_header_end": form.header_end,
                "on_headers_finished": form.headers_finished,
                "on_part_data": form.part_data,
                "on_part_end": form.part_end,
                "on_end": form.end,
            },
        )
        async for chunk in _chunks(request, settings, holding):
            parser.write(chunk)
        parser.finalize()
    except FormParserError as error:
        raise InvalidRequestError(Violation("body", f"the form cannot be parsed: {error}")) from None
    if not form.finished:
        raise InvalidRequestError(Violation("body", "the form ends before its last boundary"))
    if not form.contents:
        raise InvalidRequestError(Violation(IMAGE_FIELD, "there must be at least one part of this name"))
    ids = [str(index) for index in range(len(form.contents))]
    return Crops(ids, form.contents, options_from_strings(form.options))


class _Form:
    """Takes in a form's parts as the parser finds them: images as crops, all others as options."""

    def __init__(self, settings: Settings) -> None:
        self.contents: list[bytes | ServiceError] = []
        self.options: dict[str, str] = {}
        self.finished = False
        self._settings = settings
        self._headers: dict[bytes, bytes] = {}
        self._header = [bytearray(), bytearray()]  # name and value of the one that is being read
        self._name = ""
        self._data: list[bytes] = []
        self._size = 0

    def part_begin(self) -> None:
        self._headers.clear()
        self._data.clear()
        self._size = 0

    def header_name(self, data: bytes, start: int, end: int) -> None:
        self._extend_header(0, data[start:end])

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._extend_header(1, data[start:end])

    def header_end(self) -> None:
        name, value = self._header
        self._headers[bytes(name).lower()] = bytes(value)
        name.clear()
        value.clear()

    def headers_finished(self) -> None:
        _, disposition = parse_options_header(self._headers.get(b"content-disposition", b""))
        self._name = disposition.get(b"name", b"").decode("utf-8", "replace")[:64]
        if self._name == IMAGE_FIELD and len(self.contents) == self._settings.max_crops:
            raise TooManyCropsError(f"the form holds more than {self._settings.max_crops} images")
        if self._name != IMAGE_FIELD and self._name not in Options.model_fields:
            raise InvalidRequestError(
                Violation(
                    self._name or "body", f"parts are named {IMAGE_FIELD} or as an option; this one is not"
                )
            )
        if self._name in self.options:
            raise InvalidRequestError(Violation(self._name, "is given more than once"))
        if self._headers.get(b"content-transfer-encoding", b"binary").lower() not in _PLAIN_ENCODINGS:
            raise InvalidRequestError(Violation(self._name, "Content-Transfer-Encoding must not be used"))

    def part_data(self, data: bytes, start: int, end: int) -> None:
        self._size += end - start
        if self._size <= self._limit:
            self._data.append(data[start:end])
        elif self._name != IMAGE_FIELD:
            raise InvalidRequestError(Violation(self._name, f"is longer than {self._limit} bytes"))
        else:
            self._data.clear()  # the crop fails, its neighbours go on

    def part_end(self) -> None:
        content = b"".join(self._data)
        if self._name != IMAGE_FIELD:
            self.options[self._name] = content.decode("utf-8", "replace")
        elif self._size > self._limit:
            self.contents.append(_crop_too_large(self._settings))
        else:
            self.contents.append(content)

    def end(self) -> None:
        self.finished = True

    def _extend_header(self, part: int, data: bytes) -> None:
        if len(self._header[part]) + len(data) > _MAX_HEADER_BYTES:
            reason = f"a header of a form's part is longer than {_MAX_HEADER_BYTES} bytes"
            raise InvalidRequestError(Violation("body", reason))
        self._header[part] += data

    @property
    def _limit(self) -> int:
        return self._settings.max_crop_bytes if self._name == IMAGE_FIELD else _MAX_FIELD_BYTES


def _unique(items: list[tuple[str, str]]) -> dict[str, str]:
    """Named values as a mapping; raises InvalidRequestError for a name that comes twice."""
    unique = dict(items)
    if len(unique) < len(items):
        names = [name for name, _ in items]
        repeated = dict.fromkeys(name for name in names if names.count(name) > 1)
        raise InvalidRequestError(*(Violation(name[:64], "is given more than once") for name in repeated))
    return unique
