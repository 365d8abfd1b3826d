"""What every HTTP answer tells browsers: to take it for what it says it is, to show and to keep nothing of it."""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send


def security_headers(*, tls: bool) -> dict[str, str]:
    """The headers, by their names."""
    headers = {
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
        "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    }
    if tls:
        headers["Strict-Transport-Security"] = "max-age=31536000"  # a year
    return headers


class SecurityHeaders:
    """ASGI middleware that adds them. An answer that has one of its own keeps it, as pages do."""

    def __init__(self, app: ASGIApp, *, tls: bool) -> None:
        """`tls`: whether clients come by TLS."""
        self._app = app
        self._headers = security_headers(tls=tls)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, and adds to its answer."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, send_with_headers)
