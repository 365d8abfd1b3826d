"""Security headers, through the middleware."""

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from clip4str_service.security_headers import SecurityHeaders


async def api(_: Request) -> Response:
    return Response("{}")


async def page(_: Request) -> Response:
    return Response(
        "", headers={"content-security-policy": "default-src 'self'", "Cache-Control": "max-age=60"}
    )


async def get(path: str, *, tls: bool) -> httpx.Response:
    app = Starlette(routes=[Route("/api", api), Route("/page", page)])
    transport = httpx.ASGITransport(SecurityHeaders(app, tls=tls))
    async with httpx.AsyncClient(transport=transport, base_url="http://a") as client:
        return await client.get(path)


@pytest.mark.parametrize("path", ["/api", "/nowhere"])
async def test_answers_have_them_all(path: str) -> None:
    found = (await get(path, tls=False)).headers
    assert found["X-Content-Type-Options"] == "nosniff"
    assert found["Referrer-Policy"] == "no-referrer"
    assert found["Cache-Control"] == "no-store"
    assert found["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert "Strict-Transport-Security" not in found


async def test_page_keeps_its_own() -> None:
    found = (await get("/page", tls=False)).headers
    assert found.get_list("Content-Security-Policy") == ["default-src 'self'"]
    assert found.get_list("Cache-Control") == ["max-age=60"]
    assert found["X-Content-Type-Options"] == "nosniff"


async def test_tls_is_to_stay() -> None:
    assert (await get("/page", tls=True)).headers["Strict-Transport-Security"] == "max-age=31536000"
