"""REST before a real engine: the three body forms, health, and what surrounds a request."""

import asyncio
import re
from collections.abc import Awaitable
from typing import Any

import pytest
from starlette.types import Message

from clip4str_service.schemas import ModelsAnswer, RecognizeAnswer
from clip4str_service.wire import Phase
from tests.service.pixel_worker import MODEL, POISON, UNREADABLE, plain, settings
from tests.service.rest_service import PNG, Service, body, check, parts, problem, said, serving


async def test_raw_body(service: Service) -> None:
    response = await service.recognize(content=plain("1A2B3C"), headers=PNG, params={"top_k": "2"})
    answer = check(response, 200, RecognizeAnswer)
    assert answer["model"] == {"name": MODEL.name, "revision": MODEL.revision}
    assert set(answer["timing"]) == {"decode_ms", "queue_ms", "inference_ms"}
    (result,) = answer["results"]
    visual = result.pop("branches")["visual"]
    assert result == {
        "id": "0",
        "text": "1A2B3C",
        "confidence": 0.9**7,
        "agreement": False,
        "truncated": False,
    }
    assert (visual["text"], visual["confidence"], visual["eos_confidence"]) == ("1A2B", 0.9**5, 0.9)
    others = [{"text": "0", "confidence": 0.1}, {"text": "1", "confidence": 0.05}]
    assert visual["characters"][0] == {"text": "1", "confidence": 0.9, "alternatives": others}


async def test_raw_body_of_any_declared_format_is_read_by_its_bytes(service: Service) -> None:
    assert said(await service.recognize(content=plain(), headers={"Content-Type": "Image/GIF; a=b"})) == [
        "ABCDEF"
    ]


async def test_multipart_body(service: Service) -> None:
    response = await service.recognize(
        files=parts(plain("111111"), plain("22AA22")), data={"charset": "digits"}
    )
    assert said(response) == ["111111", "2222"]


async def test_json_body(service: Service) -> None:
    request = body(plain("111111"), plain("222222"), detail="text")
    request["crops"][0]["id"] = "first"
    response = await service.recognize(json=request)
    assert said(response) == ["111111", "222222"]
    assert [result["id"] for result in response.json()["results"]] == ["first", "1"]
    assert set(response.json()["results"][0]["branches"]["visual"]) == {
        "text",
        "confidence",
        "eos_confidence",
    }


async def test_position_stands_for_an_empty_id(service: Service) -> None:
    document = body(plain(), plain(), plain())
    document["crops"][0]["id"] = "a"
    document["crops"][1]["id"] = ""
    results = (await service.recognize(json=document)).json()["results"]
    assert [result["id"] for result in results] == ["a", "1", "2"]


async def test_bad_crop_is_the_error_of_a_raw_response(service: Service) -> None:
    problem(await service.recognize(content=b"", headers=PNG), 422, "undecodable_image")
    problem(await service.recognize(content=b"text", headers=PNG), 415, "unsupported_media_type")
    problem(await service.recognize(content=plain()[:40], headers=PNG), 422, "undecodable_image")


@pytest.mark.parametrize("form", ["multipart", "json"])
async def test_bad_crops_fail_alone(service: Service, form: str) -> None:
    crops = [plain(), bytes(2001), b"", plain("111111")]
    response = await service.recognize(
        **({"files": parts(*crops)} if form == "multipart" else {"json": body(*crops)})
    )
    assert said(response) == ["ABCDEF", "image_too_large", "undecodable_image", "111111"]


async def test_models(service: Service) -> None:
    (model,) = check(await service.http.get("/v1/models"), 200, ModelsAnswer)["models"]
    assert (model["name"], model["variant"], model["max_length"]) == ("pixels", "tiny", 25)
    assert (model["image_size"]["height"], model["image_size"]["width"]) == MODEL.image_size


ALIVE = ["/livez", "/v2/health/live"]
READY = ["/readyz", "/v2/health/ready", "/v2/models/clip4str/ready"]
STARTED = ["/startupz", "/v1/models", "/v2/models/clip4str"]


async def test_health_follows_the_supervisor(cold: Service) -> None:
    async def codes() -> list[set[str]]:
        answers = [[await cold.http.get(path) for path in paths] for paths in (ALIVE, READY, STARTED)]
        return [{answer.json().get("code", "ok") for answer in each} for each in answers]

    stage = cold.stage
    assert await codes() == [{"ok"}, {"not_ready"}, {"not_ready"}]
    response = await cold.recognize(content=b"", headers=PNG)
    assert problem(response, 503, "not_ready")["retry_after_ms"] == 1000
    assert response.headers["Retry-After"] == "1"
    await stage.load()
    assert await codes() == [{"ok"}] * 3
    await stage.say(Phase.RESTARTING)
    assert await codes() == [{"ok"}, {"not_ready"}, {"ok"}]
    await stage.say(Phase.FAILED)
    assert await codes() == [{"not_ready"}, {"not_ready"}, {"ok"}]
    assert "restarted" in problem(await cold.http.get("/livez"), 503, "not_ready")["detail"]
    await stage.drain()
    assert await codes() == [{"ok"}, {"draining"}, {"ok"}]
    problem(await cold.recognize(content=plain(), headers=PNG), 503, "draining")


async def test_full_queue_tells_when_to_retry() -> None:
    async with serving(settings(max_crops=4, queue_crops=4)) as service:
        service.stage.worker.gate.clear()
        accepted = asyncio.create_task(
            service.recognize(json=body(plain("111111"), plain(), plain("222222")))
        )
        await service.stage.until_running(3)
        refused = await service.recognize(json=body(plain(), plain()))
        assert problem(refused, 429, "overloaded")["retry_after_ms"] > 0
        assert int(refused.headers["Retry-After"]) >= 1
        service.stage.worker.gate.set()
        assert said(await accepted) == ["111111", "ABCDEF", "222222"]
        assert service.requests("/v1/recognize", "overloaded") == 1


async def test_timeout_answers_each_crop_or_the_raw_request(service: Service) -> None:
    service.stage.worker.gate.clear()
    late = await service.recognize(json=body(plain(), b"", timeout_ms=300))
    assert said(late) == ["deadline_exceeded", "undecodable_image"]
    raw = await service.recognize(content=plain("111111"), headers=PNG, params={"timeout_ms": "50"})
    problem(raw, 504, "deadline_exceeded")


async def test_crop_that_breaks_the_model_or_its_process_fails_alone(service: Service) -> None:
    response = await service.recognize(json=body(plain(UNREADABLE), plain(), plain(POISON)))
    assert said(response) == ["internal", "ABCDEF", "internal"]


async def status_told(
    service: Service, received: list[Message], leaves: Awaitable[object], content_type: bytes = b"image/png"
) -> int:
    """The status of the answer to a client that sends this of its request, and leaves."""
    sent: list[Message] = []

    async def receive() -> Message:
        if received:
            return received.pop(0)
        await leaves
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "scheme": "http",
        "path": "/v1/recognize",
        "query_string": b"",
        "headers": [(b"content-type", content_type)],
    }
    await service.app(scope, receive, send)
    status: int = sent[0]["status"]
    return status


async def test_client_that_leaves_gives_up_its_crops() -> None:
    async with serving(settings(max_batch=1)) as service:
        service.stage.worker.gate.clear()
        other = asyncio.create_task(service.recognize(content=plain("111111"), headers=PNG))
        await service.stage.until_running(1)
        body_ = {"type": "http.request", "body": plain(), "more_body": False}
        assert await status_told(service, [body_], service.stage.until_prepared(2)) == 499
        await service.stage.until_queued(0)
        assert service.stage.value("dropped_total", reason="cancelled") == 1
        assert service.requests("/v1/recognize", "cancelled") == 1
        service.stage.worker.gate.set()
        assert said(await other) == ["111111"]
        assert service.stage.worker.batches == [1]


@pytest.mark.parametrize(
    "content_type", [b"image/png", b"application/json", b"multipart/form-data; boundary=b"]
)
async def test_client_that_leaves_in_mid_upload(service: Service, content_type: bytes) -> None:
    half = {"type": "http.request", "body": b"--b\r\n", "more_body": True}
    assert await status_told(service, [half], asyncio.sleep(0), content_type) == 499


async def test_open_inference_metadata(service: Service) -> None:
    metadata = (await service.http.get("/v2/models/clip4str")).json()
    assert (metadata["name"], metadata["versions"]) == ("clip4str", [MODEL.revision])
    assert metadata["inputs"][0]["datatype"] == metadata["outputs"][0]["datatype"] == "BYTES"


async def test_unknown_path_and_method(service: Service) -> None:
    problem(await service.http.get("/v1/nothing"), 404, "not_found")
    response = await service.http.get("/v1/recognize")
    problem(response, 405, "method_not_allowed")
    assert response.headers["Allow"] == "POST"


async def test_fault_of_ours_is_internal_and_logged(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a secret detail")

    monkeypatch.setattr(service.stage.engine, "recognize", fail)
    response = await service.recognize(content=plain(), headers=PNG)
    assert "secret" not in problem(response, 500, "internal")["detail"]
    assert "a secret detail" in caplog.text


async def test_request_id_is_echoed_or_made(service: Service) -> None:
    given = await service.recognize(content=b"", headers={**PNG, "X-Request-ID": "abc-123"})
    assert problem(given, 422, "undecodable_image")["request_id"] == "abc-123"
    made = await service.recognize(content=b"", headers={**PNG, "X-Request-ID": "not sane"})
    assert re.fullmatch("[0-9a-f]{32}", made.headers["X-Request-ID"])


async def test_requests_are_logged_and_counted(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "clip4str_service.requests")
    await service.recognize(json=body(plain(), b""))
    await service.recognize(content=b"", headers=PNG)
    await service.http.get("/nowhere")
    lines = [record.__dict__ for record in caplog.records if record.name == "clip4str_service.requests"]
    assert [(line["method"], line["code"], line["crops"], line["status"]) for line in lines] == [
        ("/v1/recognize", "ok", 2, 200),
        ("/v1/recognize", "undecodable_image", 1, 422),
    ]

    assert service.requests("/v1/recognize", "ok") == 1
    assert service.requests("/v1/recognize", "undecodable_image") == 1
    assert service.requests("other", "not_found") == 1


async def test_openapi_is_whole(service: Service) -> None:
    document = (await service.http.get("/openapi.json")).json()

    def references(node: Any) -> set[str]:
        if isinstance(node, dict):
            found = {node["$ref"]} if "$ref" in node else set()
            return found.union(*(references(value) for value in node.values()))
        return set().union(*(references(value) for value in node)) if isinstance(node, list) else set()

    known = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert references(document) <= known
    recognize = document["paths"]["/v1/recognize"]["post"]
    assert {"application/json", "multipart/form-data", "image/gif"} <= set(
        recognize["requestBody"]["content"]
    )
    assert [each["name"] for each in recognize["parameters"]] == [
        "detail",
        "top_k",
        "charset",
        "priority",
        "timeout_ms",
    ]
    assert {"200", "400", "401", "413", "415", "422", "429", "500", "503", "504"} <= set(
        recognize["responses"]
    )
    assert (await service.http.get("/docs")).status_code == 200
