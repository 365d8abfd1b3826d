"""REST before a real engine: the three body forms, health, and what surrounds a request."""

import asyncio
import re
from typing import Any

import pytest

from clip4str_service.batcher import Batcher
from clip4str_service.schemas import ModelsAnswer, RecognizeAnswer
from tests.service.pixel_worker import plain
from tests.service.rest_service import PNG, Service, body, check, parts, problem, said


async def test_raw_body(service: Service) -> None:
    response = await service.recognize(content=plain("#1A2B3C"), headers=PNG, params={"top_k": "2"})
    answer = check(response, 200, RecognizeAnswer)
    assert answer["model"] == {"name": "pixels", "revision": "sha256:" + "0" * 64}
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
        files=parts(plain("#111111"), plain("#22AA22")), data={"charset": "digits"}
    )
    assert said(response) == ["111111", "2222"]


async def test_json_body(service: Service) -> None:
    request = body(plain("#111111"), plain("#222222"), detail="text")
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
    crops = [plain(), bytes(2001), b"", plain("#111111")]
    response = await service.recognize(
        **({"files": parts(*crops)} if form == "multipart" else {"json": body(*crops)})
    )
    assert said(response) == ["ABCDEF", "image_too_large", "undecodable_image", "111111"]


async def test_models(service: Service) -> None:
    (model,) = check(await service.http.get("/v1/models"), 200, ModelsAnswer)["models"]
    assert (model["name"], model["variant"], model["max_length"]) == ("pixels", "tiny", 25)
    assert model["image_size"] == {"height": 32, "width": 128}


ALIVE = ["/livez", "/v2/health/live"]
READY = ["/readyz", "/v2/health/ready", "/v2/models/clip4str/ready"]
STARTED = ["/startupz", "/v1/models", "/v2/models/clip4str"]


async def test_health_follows_the_engine(cold: Service) -> None:
    async def codes(paths: list[str]) -> set[str]:
        return {(await cold.http.get(path)).json().get("code", "ok") for path in paths}

    assert [await codes(paths) for paths in (ALIVE, READY, STARTED)] == [{"ok"}, {"not_ready"}, {"not_ready"}]
    response = await cold.recognize(content=b"", headers=PNG)
    assert problem(response, 503, "not_ready")["retry_after_ms"] == 1000
    assert response.headers["Retry-After"] == "1"
    await cold.engine.start()
    assert [await codes(paths) for paths in (ALIVE, READY, STARTED)] == [{"ok"}] * 3
    await cold.engine.drain()
    assert [await codes(paths) for paths in (ALIVE, READY, STARTED)] == [{"ok"}, {"draining"}, {"ok"}]


async def test_dead_batch_loop_is_told_and_ends_the_life(
    cold: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def die(_: object) -> None:
        raise RuntimeError("a fault of the batcher")

    monkeypatch.setattr(Batcher, "_due", die)
    await cold.engine.start()
    while cold.engine.ready:  # noqa: ASYNC110 (the loop's death raises no event)
        await asyncio.sleep(0)
    for path in ALIVE + READY:
        assert "restarted" in problem(await cold.http.get(path), 503, "not_ready")["detail"]
    response = await cold.recognize(content=plain(), headers=PNG)
    assert "restarted" in problem(response, 503, "not_ready")["detail"]


async def test_open_inference_metadata(service: Service) -> None:
    metadata = (await service.http.get("/v2/models/clip4str")).json()
    assert (metadata["name"], metadata["versions"]) == ("clip4str", ["sha256:" + "0" * 64])
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

    monkeypatch.setattr(service.engine, "recognize", fail)
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

    def count(method: str, code: str) -> float | None:
        labels = {"protocol": "rest", "method": method, "code": code}
        return service.metrics.registry.get_sample_value("clip4str_requests_total", labels)

    assert count("/v1/recognize", "ok") == count("/v1/recognize", "undecodable_image") == 1
    assert count("other", "not_found") == 1


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
    assert {"200", "400", "413", "415", "422", "429", "500", "503", "504"} <= set(recognize["responses"])
    assert (await service.http.get("/docs")).status_code == 200
