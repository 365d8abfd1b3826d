"""The bodies of REST requests: what is wrong with one is named, and no limit is passed while one is read."""

import base64
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.service.pixel_worker import plain, settings
from tests.service.rest_service import PNG, Service, body, parts, problem, said, serving


async def test_base64_is_read_strictly_and_fails_alone(service: Service) -> None:
    good = base64.b64encode(plain()).decode()
    wrong = ["%%%", good[:-1], good + "\n", good.replace("A", "-", 1)]
    for content in wrong:
        response = await service.recognize(json={"crops": [{"content": content}, {"content": good}]})
        assert said(response) == ["invalid_request", "ABCDEF"], content
        error = response.json()["results"][0]["error"]
        assert error["errors"] == [{"field": "crops[0].content", "detail": "is not valid base64"}]


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({"json": body()}, "crops"),
        ({"json": {}}, "crops"),
        ({"json": []}, "body"),
        ({"json": {"crops": [{"id": "a"}]}}, "crops[0].content"),
        ({"json": {"crops": [{"content": 7}]}}, "crops[0].content"),
        ({"json": {"crops": [{"content": "", "url": "http://a"}]}}, "crops[0].url"),
        ({"json": {"crops": [{"content": "", "id": "x" * 129}]}}, "crops[0].id"),
        ({"json": body(b"", top_k=6)}, "options.top_k"),
        ({"json": body(b"", top_k="3")}, "options.top_k"),
        ({"json": body(b"", colour="red")}, "options.colour"),
        ({"json": body(b""), "params": {"top_k": "1"}}, "top_k"),
        ({"content": b'{"crops": [', "headers": {"Content-Type": "application/json"}}, "body"),
        ({"content": b"\xff", "headers": {"Content-Type": "application/json"}}, "body"),
        ({"content": b"", "headers": {"Content-Type": "application/json; charset=utf-8"}}, "body"),
        ({"content": b"", "headers": PNG, "params": {"colour": "red"}}, "colour"),
        ({"content": b"", "headers": PNG, "params": {"top_k": ["1", "2"]}}, "top_k"),
        ({"files": {"picture": ("a.png", b"x", "image/png")}}, "picture"),
        ({"files": {"top_k": (None, "1")}}, "image"),
        ({"files": parts(b""), "data": {"top_k": "7"}}, "top_k"),
        ({"files": parts(b""), "data": {"top_k": ["1", "2"]}}, "top_k"),
        ({"files": parts(b""), "data": {"charset": "a" * 1025}}, "charset"),
        ({"files": parts(b""), "params": {"detail": "text"}}, "detail"),
    ],
)
async def test_wrong_request_names_the_field(service: Service, request_: dict[str, Any], field: str) -> None:
    content = problem(await service.recognize(**request_), 400, "invalid_request")
    assert field in [each["field"] for each in content["errors"]], content
    assert field in content["detail"]


FORM = b'--b\r\nContent-Disposition: form-data; name="image"\r\n'


@pytest.mark.parametrize(
    ("content_type", "content", "mentions"),
    [
        ("multipart/form-data", FORM, "boundary"),
        ("multipart/form-data; boundary=" + "b" * 300, FORM, "oundary"),
        ("multipart/form-data; boundary=b", b"", "ends before"),
        ("multipart/form-data; boundary=b", FORM + b"\r\nhalf an image", "ends before"),
        ("multipart/form-data; boundary=b", FORM + b"\r\nx\r\n--b\r\n", "ends before"),
        ("multipart/form-data; boundary=b", b"no boundary", "cannot be parsed"),
        ("multipart/form-data; boundary=b", b"--b\r\n\r\nx\r\n--b--\r\n", "named"),
        (
            "multipart/form-data; boundary=b",
            FORM + b"Content-Transfer-Encoding: base64\r\n\r\nx\r\n--b--\r\n",
            "Content-Transfer-Encoding",
        ),
        ("multipart/form-data; boundary=b", FORM + b"X" * 2049 + b": y\r\n\r\n", "longer than 2048 bytes"),
        ("multipart/form-data; boundary=b", FORM + b"X: " + b"y" * 2049 + b"\r\n\r\n", "than 2048 bytes"),
    ],
)
async def test_broken_form_is_refused(
    service: Service, content_type: str, content: bytes, mentions: str
) -> None:
    response = await service.recognize(content=content, headers={"Content-Type": content_type})
    assert mentions in problem(response, 400, "invalid_request")["detail"]


@pytest.mark.parametrize(
    "content_type", [None, "", "text/plain", "application/octet-stream", "image/svg+xml"]
)
async def test_other_media_types_are_refused(service: Service, content_type: str | None) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    response = await service.recognize(content=plain(), headers=headers)
    assert "image/webp" in problem(response, 415, "unsupported_media_type")["detail"]


async def test_compressed_body_is_refused(service: Service) -> None:
    response = await service.recognize(content=plain(), headers={**PNG, "Content-Encoding": "gzip"})
    assert "Content-Encoding" in problem(response, 415, "unsupported_media_type")["detail"]


async def chunks(content: bytes, seen: list[int]) -> AsyncIterator[bytes]:
    for start in range(0, len(content), 1000):
        seen.append(start)
        yield content[start : start + 1000]


async def test_declared_size_is_refused_before_the_body_is_read(service: Service) -> None:
    response = await service.recognize(content=bytes(10_001), headers=PNG)
    assert "10000" in problem(response, 413, "payload_too_large")["detail"]


@pytest.mark.parametrize(
    ("content_type", "code", "read"),
    [
        ("image/png", "image_too_large", 3),
        ("application/json", "payload_too_large", 11),
        ("multipart/form-data; boundary=b", "payload_too_large", 11),
    ],
)
async def test_undeclared_size_is_refused_when_the_limit_is_reached(
    service: Service, content_type: str, code: str, read: int
) -> None:
    seen: list[int] = []
    content = (FORM + b"\r\n" if "form" in content_type else b"") + bytes(100_000)
    response = await service.recognize(content=chunks(content, seen), headers={"Content-Type": content_type})
    problem(response, 413, code)
    assert len(seen) == read


async def test_body_at_the_limits_is_read(service: Service) -> None:
    crop = plain() + bytes(2000 - len(plain()))
    assert said(await service.recognize(content=crop, headers=PNG)) == ["ABCDEF"]
    response = await service.recognize(json=body(*[crop] * 3))
    assert said(response) == ["ABCDEF"] * 3
    document = response.request.content
    padded = document + b" " * (10_000 - len(document))
    assert said(await service.recognize(content=padded, headers={"Content-Type": "application/json"}))


async def test_too_many_crops(service: Service) -> None:
    for request in ({"json": body(*[b""] * 5)}, {"files": parts(*[b""] * 5)}):
        problem(await service.recognize(**request), 413, "too_many_crops")
    async with serving(settings()) as roomy:
        problem(await roomy.recognize(json=body(*[b""] * 2000)), 413, "too_many_crops")
