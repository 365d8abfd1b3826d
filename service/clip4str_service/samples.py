"""`clip4str-service samples`: reads sample crops through a running service, over REST and over gRPC, and compares.

It proves a deployment from where its clients are: names, ports, TLS, keys and the model at once. The samples are
installed beside the package; any other folder of images and labels.tsv will do.
"""

from __future__ import annotations

import math
import re
import ssl
import sysconfig
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import grpc
import httpx2
from google.protobuf.json_format import MessageToDict

from clip4str_service.pb import recognition_pb2 as pb
from clip4str_service.pb.recognition_pb2_grpc import RecognitionServiceStub

INSTALLED = Path(sysconfig.get_path("data")) / "share" / "clip4str" / "samples"

_LABELS = "labels.tsv"
_ADDRESS = re.compile(r"[^\s/]+:\d{1,5}")
_URL = re.compile(r"https?://[^\s/]+/?")
_ROW = "{:<7} {:<9} {:<9} {:<11} {:<9} {:<12} {}\n"
_SECONDS = 60.0  # for one crop
_ROUNDING = 1e-6


class SamplesError(Exception):
    """The samples, the address or a file that was named are not what they should be; one line for the user."""


class UnreadError(Exception):
    """The service cannot be reached, or refuses; the message is one line with the address and the reason."""


@dataclass(frozen=True)
class Sample:
    """A sample crop: its file's name, what it says, and the file's bytes (JPEG)."""

    name: str
    text: str
    content: bytes


@dataclass(frozen=True)
class Access:
    """How a service is reached. Raises SamplesError for what is no address.

    Attributes:
        rest: http:// or https:// and where REST listens. With https gRPC is asked over TLS as well.
        grpc: HOST:PORT of gRPC.
        key: an API key.
        ca: CA certificates (PEM) to trust instead of the system's.
    """

    rest: str
    grpc: str
    key: str | None = field(default=None, repr=False)
    ca: Path | None = None

    def __post_init__(self) -> None:
        if not _URL.fullmatch(self.rest):
            raise SamplesError(
                f"{self.rest!r} is no address of REST: expected http://HOST:PORT or https://HOST:PORT"
            )
        if not _ADDRESS.fullmatch(self.grpc):
            raise SamplesError(f"{self.grpc!r} is no address of gRPC: expected HOST:PORT")


def load_samples(folder: Path) -> list[Sample]:
    """Return the crops that the folder's labels.tsv names, in its order. Raises SamplesError."""
    try:
        rows = [line.split("\t") for line in (folder / _LABELS).read_text(encoding="utf-8").splitlines()]
        samples = [Sample(name, text, (folder / name).read_bytes()) for name, text in rows]
    except OSError as error:
        raise SamplesError(f"{error.filename}: {error.strerror}") from None
    except ValueError:
        raise SamplesError(f"{folder / _LABELS}: each line has a file's name, a tab and its text") from None
    if not samples:
        raise SamplesError(f"{folder / _LABELS} names no sample")
    return samples


def load_key(path: Path) -> str:
    """Return the API key that is a file's only line. Raises SamplesError."""
    try:
        key = path.read_text(encoding="ascii").strip()
    except OSError as error:
        raise SamplesError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        key = ""
    if not key or key.split() != [key]:
        raise SamplesError(f"{path}: expected one line with an API key")
    return key


def check(access: Access, samples: Sequence[Sample], out: TextIO) -> bool:
    """Read each sample by both protocols and print a table; say whether all were read right, and alike.

    Raises:
        UnreadError: an answer did not come, or was a refusal.
        SamplesError: there are no CA certificates where `access` names them.
    """
    wrong = 0
    with _by_rest(access) as rest, _by_grpc(access) as rpc:
        out.write(_ROW.format("file", "label", "text", "confidence", "visual", "cross-modal", "REST == gRPC"))
        for sample in samples:
            by_rest = _rest_result(rest, sample)
            by_grpc = as_rest(_grpc_result(access, rpc, sample))
            same = alike({key: value for key, value in by_rest.items() if key != "id"}, by_grpc)
            texts = [by_rest["branches"][branch]["text"] for branch in ("visual", "cross_modal")]
            read = (by_rest["text"], f"{by_rest['confidence']:.3f}", *texts)
            out.write(_ROW.format(sample.name, sample.text, *read, "yes" if same else "NO"))
            wrong += by_rest["text"] != sample.text or not same
    out.write(f"{len(samples) - wrong} of {len(samples)} samples read right, and alike over REST and gRPC\n")
    return not wrong


def as_rest(result: pb.Result) -> dict[str, Any]:
    """Turn a gRPC recognition into the JSON that REST answers for it, without the crop's id."""
    return MessageToDict(
        result.recognition, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def alike(one: object, other: object) -> bool:
    """Say whether two JSON values are equal, numbers up to the rounding of two runs of the same model."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=0.0, abs_tol=_ROUNDING)
    return one == other


@contextmanager
def _by_rest(access: Access) -> Iterator[httpx2.Client]:
    headers = {"Content-Type": "image/jpeg"}
    if access.key is not None:
        headers["Authorization"] = f"Bearer {access.key}"
    try:
        trusted = ssl.create_default_context(cafile=access.ca)
    except OSError as error:  # ssl.SSLError is one
        raise SamplesError(f"{access.ca}: no CA certificates in PEM ({error.strerror})") from None
    with httpx2.Client(base_url=access.rest, headers=headers, verify=trusted, timeout=_SECONDS) as client:
        yield client


def _rest_result(client: httpx2.Client, sample: Sample) -> dict[str, Any]:
    url = client.base_url.join("/v1/recognize")
    try:
        response = client.post(url, content=sample.content)
        body: dict[str, Any] = response.json()
        if response.status_code == httpx2.codes.OK:
            result: dict[str, Any] = body["results"][0]
            return result
        reason = f"{body['code']}: {body['detail']}"
    except httpx2.HTTPError as error:
        raise UnreadError(f"{url}: {str(error) or type(error).__name__}") from None
    except (ValueError, LookupError, TypeError):
        reason = "the answer is not the service's"
    raise UnreadError(f"{url}: {sample.name}: {response.status_code} {reason}")


@contextmanager
def _by_grpc(access: Access) -> Iterator[RecognitionServiceStub]:
    if access.rest.startswith("https://"):
        roots = None if access.ca is None else access.ca.read_bytes()
        channel = grpc.secure_channel(access.grpc, grpc.ssl_channel_credentials(roots))
    else:
        channel = grpc.insecure_channel(access.grpc)
    with channel:
        yield RecognitionServiceStub(channel)


def _grpc_result(access: Access, stub: RecognitionServiceStub, sample: Sample) -> pb.Result:
    request = pb.RecognizeRequest(crops=[pb.Crop(content=sample.content)])
    metadata = () if access.key is None else (("authorization", f"Bearer {access.key}"),)
    try:
        result = stub.Recognize(request, timeout=_SECONDS, metadata=metadata).results[0]
    except grpc.RpcError as error:
        reason = f"{error.code().name}: {error.details()}"
    else:
        if result.HasField("recognition"):
            return result
        reason = result.error.message
    raise UnreadError(f"gRPC at {access.grpc}: {sample.name}: {reason}")
