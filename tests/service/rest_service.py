"""A REST application before a real engine, a client for it, and checks of what it answers."""

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
from pydantic import BaseModel

from clip4str_service.rest import create_app
from clip4str_service.schemas import RecognizeAnswer, ResponseProblemBody
from clip4str_service.settings import Settings
from tests.service.front import LIMITS, Front

PNG = {"Content-Type": "image/png"}


class Service(Front):
    """A REST application and a client for it, in this process."""

    def __init__(self, limits: Settings = LIMITS) -> None:
        super().__init__(limits)
        self.app = create_app(
            self.stage.engine, self.gate, self.intake, limits, self.stage.metrics, self.tracing
        )
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://service")

    async def recognize(self, **request: Any) -> httpx.Response:
        return await self.http.post("/v1/recognize", **request)

    async def stop(self) -> None:
        await self.http.aclose()
        await super().stop()

    def requests(self, method: str, code: str) -> float:
        """How many requests were counted so."""
        return self.stage.value("requests_total", protocol="rest", method=method, code=code)


@asynccontextmanager
async def serving(limits: Settings = LIMITS, loaded: bool = True) -> AsyncIterator[Service]:
    service = Service(limits)
    await service.open(loaded)
    try:
        yield service
    finally:
        await service.stop()


def body(*crops: bytes, **options: Any) -> dict[str, Any]:
    return {"crops": [{"content": base64.b64encode(crop).decode()} for crop in crops], "options": options}


def parts(*crops: bytes) -> list[tuple[str, tuple[str, bytes, str]]]:
    return [("image", (f"{index}.png", crop, "image/png")) for index, crop in enumerate(crops)]


def check(response: httpx.Response, status: int, schema: type[BaseModel]) -> dict[str, Any]:
    """The answer's JSON, which must have this status and be what the OpenAPI document promises."""
    assert response.status_code == status, response.text
    schema.model_validate_json(response.content)
    content: dict[str, Any] = response.json()
    return content


def problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    content = check(response, status, ResponseProblemBody)
    assert response.headers["Content-Type"] == "application/problem+json"
    assert (content["status"], content["code"]) == (status, code)
    assert content["request_id"] == response.headers["X-Request-ID"]
    return content


def said(response: httpx.Response) -> list[str]:
    """The text of each crop, or the code of its error."""
    results = check(response, 200, RecognizeAnswer)["results"]
    return [result["error"]["code"] if "error" in result else result["text"] for result in results]
