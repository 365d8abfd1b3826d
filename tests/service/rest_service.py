"""A REST application before a real engine, a client for it, and checks of what it answers."""

import base64
from typing import Any

import httpx
from pydantic import BaseModel

from clip4str_service.gate import Gate
from clip4str_service.intake import Intake
from clip4str_service.rest import create_app
from clip4str_service.schemas import RecognizeAnswer, ResponseProblemBody
from clip4str_service.settings import Settings
from clip4str_service.tracing import RequestTracing
from tests.service.engine_stage import Stage
from tests.service.pixel_worker import settings

PNG = {"Content-Type": "image/png"}
LIMITS = settings(max_crop_bytes=2000, max_request_bytes=10_000, max_crops=4)


class Service:
    """A REST application and a client for it, in this process."""

    def __init__(self, limits: Settings = LIMITS) -> None:
        self.stage = Stage(limits)
        self.intake = Intake(limits.queue_bytes)
        app = create_app(
            self.stage.engine,
            Gate(limits.api_keys_file),
            self.intake,
            limits,
            self.stage.metrics,
            RequestTracing(None, 1.0),
        )
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service")

    async def recognize(self, **request: Any) -> httpx.Response:
        return await self.http.post("/v1/recognize", **request)


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
