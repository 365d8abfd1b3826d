"""The samples are read right by every door, and every door says the same of the same crop."""

import base64
from typing import Any

import httpx
import pytest

from clip4str_service.pb import recognition_pb2 as pb
from clip4str_service.pb.recognition_pb2_grpc import RecognitionServiceStub
from clip4str_service.samples import Sample, alike, as_rest

JPEG = {"Content-Type": "image/jpeg"}


def as_json(samples: list[Sample], **options: Any) -> dict[str, Any]:
    crops = [{"id": each.name, "content": base64.b64encode(each.content).decode()} for each in samples]
    return {"crops": crops, "options": options}


def as_multipart(samples: list[Sample]) -> list[tuple[str, tuple[str, bytes, str]]]:
    return [("image", (each.name, each.content, "image/jpeg")) for each in samples]


def results(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == httpx.codes.OK, response.text
    found: list[dict[str, Any]] = response.json()["results"]
    return found


def texts(found: list[dict[str, Any]]) -> list[str]:
    return [result["text"] for result in found]


def test_raw_body_reads_one_crop(rest: httpx.Client, samples: list[Sample]) -> None:
    for sample in samples:
        assert texts(results(rest.post("/v1/recognize", content=sample.content, headers=JPEG))) == [
            sample.text
        ]


def test_multipart_body_reads_many_crops_in_order(rest: httpx.Client, samples: list[Sample]) -> None:
    found = results(rest.post("/v1/recognize", files=as_multipart(samples)))
    assert texts(found) == [sample.text for sample in samples]


def test_json_body_reads_many_crops_and_keeps_their_ids(rest: httpx.Client, samples: list[Sample]) -> None:
    found = results(rest.post("/v1/recognize", json=as_json(samples)))
    assert texts(found) == [sample.text for sample in samples]
    assert [result["id"] for result in found] == [sample.name for sample in samples]


def test_grpc_reads_many_crops_and_keeps_their_ids(
    rpc: RecognitionServiceStub, samples: list[Sample]
) -> None:
    crops = [pb.Crop(id=sample.name, content=sample.content) for sample in samples]
    found = rpc.Recognize(pb.RecognizeRequest(crops=crops), timeout=60).results
    assert [result.recognition.text for result in found] == [sample.text for sample in samples]
    assert [result.id for result in found] == [sample.name for sample in samples]


@pytest.mark.parametrize("top_k", [0, 3])
def test_rest_and_grpc_answer_the_same_crop_field_by_field(
    rest: httpx.Client, rpc: RecognitionServiceStub, samples: list[Sample], top_k: int
) -> None:
    for sample in samples:
        (by_rest,) = results(rest.post("/v1/recognize", json=as_json([sample], top_k=top_k)))
        request = pb.RecognizeRequest(
            crops=[pb.Crop(id=sample.name, content=sample.content)], options=pb.Options(top_k=top_k)
        )
        (by_grpc,) = rpc.Recognize(request, timeout=60).results
        assert alike(by_rest, {"id": by_grpc.id, **as_rest(by_grpc)}), sample.name


def test_result_has_the_documented_fields(rest: httpx.Client, samples: list[Sample]) -> None:
    response = rest.post("/v1/recognize", json=as_json(samples[:1]))
    body = response.json()
    assert set(body) == {"model", "results", "timing"}
    assert set(body["model"]) == {"name", "revision"}
    assert set(body["timing"]) == {"decode_ms", "queue_ms", "inference_ms"}
    (result,) = body["results"]
    assert set(result) == {"id", "text", "confidence", "agreement", "truncated", "branches"}
    assert set(result["branches"]) == {"visual", "cross_modal"}
    branch = result["branches"]["cross_modal"]
    assert set(branch) == {"text", "confidence", "eos_confidence", "characters"}
    assert set(branch["characters"][0]) == {"text", "confidence", "alternatives"}
    assert (result["text"], result["confidence"]) == (branch["text"], branch["confidence"])


def test_word_confidence_is_the_product_over_characters_and_end(
    rest: httpx.Client, samples: list[Sample]
) -> None:
    for result in results(rest.post("/v1/recognize", files=as_multipart(samples))):
        for branch in result["branches"].values():
            product = branch["eos_confidence"]
            for character in branch["characters"]:
                product *= character["confidence"]
            assert branch["confidence"] == pytest.approx(product, rel=1e-4)
            assert "".join(character["text"] for character in branch["characters"]) == branch["text"]


def test_company_does_not_change_a_reading(rest: httpx.Client, samples: list[Sample]) -> None:
    together = results(rest.post("/v1/recognize", json=as_json(samples)))
    for sample, in_company in zip(samples, together, strict=True):
        (alone,) = results(rest.post("/v1/recognize", json=as_json([sample])))
        assert in_company["text"] == alone["text"]
        assert in_company["confidence"] == pytest.approx(alone["confidence"], rel=0, abs=1e-5)


def test_top_k_gives_other_characters_most_probable_first(rest: httpx.Client, samples: list[Sample]) -> None:
    (result,) = results(rest.post("/v1/recognize?top_k=5", content=samples[0].content, headers=JPEG))
    for character in result["branches"]["cross_modal"]["characters"]:
        alternatives = character["alternatives"]
        confidences = [character["confidence"], *(other["confidence"] for other in alternatives)]
        assert len(alternatives) == 5
        assert confidences == sorted(confidences, reverse=True)
        assert character["text"] not in [other["text"] for other in alternatives]


@pytest.mark.parametrize(
    ("charset", "allowed"),
    [("digits", "0123456789"), ("lowercase", "abcdefghijklmnopqrstuvwxyz"), ("XYZ", "XYZ")],
)
def test_charset_constrains_both_branches(
    rest: httpx.Client, rpc: RecognitionServiceStub, samples: list[Sample], charset: str, allowed: str
) -> None:
    (by_rest,) = results(rest.post("/v1/recognize", json=as_json(samples[:1], charset=charset)))
    for branch in by_rest["branches"].values():
        assert set(branch["text"]) <= set(allowed)
    request = pb.RecognizeRequest(
        crops=[pb.Crop(content=samples[0].content)], options=pb.Options(charset=charset)
    )
    assert rpc.Recognize(request, timeout=60).results[0].recognition.text == by_rest["text"]


def test_detail_text_leaves_the_characters_out(
    rest: httpx.Client, rpc: RecognitionServiceStub, exit_sign: Sample
) -> None:
    (by_rest,) = results(rest.post("/v1/recognize", json=as_json([exit_sign], detail="text")))
    assert by_rest["text"] == exit_sign.text
    for branch in by_rest.get("branches", {}).values():
        assert not branch.get("characters")
    request = pb.RecognizeRequest(
        crops=[pb.Crop(content=exit_sign.content)], options=pb.Options(detail=pb.DETAIL_TEXT)
    )
    recognition = rpc.Recognize(request, timeout=60).results[0].recognition
    assert recognition.text == exit_sign.text
    assert not recognition.branches.cross_modal.characters


def test_models_names_what_is_loaded_alike(rest: httpx.Client, rpc: RecognitionServiceStub) -> None:
    model = rest.get("/v1/models").json()["models"][0]
    assert (model["name"], model["variant"], model["max_length"]) == ("default", "tiny", 25)
    assert model["revision"].startswith("sha256:")
    assert len(model["charset"]) == 94
    by_grpc = rpc.GetModel(pb.GetModelRequest(), timeout=60)
    assert (by_grpc.name, by_grpc.revision, by_grpc.charset) == (
        model["name"],
        model["revision"],
        model["charset"],
    )


def test_request_id_is_echoed_or_made(rest: httpx.Client, samples: list[Sample]) -> None:
    content = samples[0].content
    given = rest.post("/v1/recognize", content=content, headers={**JPEG, "X-Request-ID": "abc-123"})
    assert given.headers["X-Request-ID"] == "abc-123"
    made = [
        rest.post("/v1/recognize", content=content, headers=JPEG).headers["X-Request-ID"] for _ in range(2)
    ]
    assert made[0] != made[1]
    refused = rest.post("/v1/recognize", content=b"", headers={**JPEG, "X-Request-ID": "abc-124"})
    assert refused.json()["request_id"] == refused.headers["X-Request-ID"] == "abc-124"
