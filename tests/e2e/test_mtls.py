"""TLS with clients' certificates on both public ports: intruders fail, and probes need none on their own port."""

import signal
from collections.abc import Iterator
from contextlib import closing
from typing import NamedTuple

import grpc
import httpx
import pytest
import trustme

from clip4str_service.pb import recognition_pb2 as pb
from clip4str_service.pb.recognition_pb2_grpc import RecognitionServiceStub
from clip4str_service.samples import Sample
from samples.demo import RunningService, running_service
from tests.e2e.observed import PATIENT, until
from tests.e2e.traffic import OWN_CONNECTION
from tests.service.certificates import Mint, expired

JPEG = {"Content-Type": "image/jpeg"}


class Service(NamedTuple):
    """A service that asks for certificates, and who made them."""

    running: RunningService
    mint: Mint


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    mint = Mint(tmp_path_factory.mktemp("tls"))
    files = mint.files(mint.servers.issue_cert("127.0.0.1"), client_ca=mint.clients)
    with running_service(
        CLIP4STR_TLS_CERT_FILE=str(files.cert),
        CLIP4STR_TLS_KEY_FILE=str(files.key),
        CLIP4STR_TLS_CLIENT_CA_FILE=str(files.client_ca),
    ) as running:
        yield Service(running, mint)


@pytest.fixture(scope="module")
def mine(service: Service) -> trustme.LeafCert:
    return service.mint.clients.issue_cert("client@a")


def by_rest(service: Service, cert: trustme.LeafCert | None, sample: Sample) -> str:
    """What a client with a certificate reads. Raises httpx.TransportError when it does not come in."""
    address = service.running.http.replace("http://", "https://") + "/v1/recognize"
    with httpx.Client(verify=service.mint.client(cert), timeout=PATIENT) as client:
        answer = client.post(address, content=sample.content, headers=JPEG)
    text: str = answer.json()["results"][0]["text"]
    return text


def secure_channel(service: Service, cert: trustme.LeafCert | None) -> grpc.Channel:
    root = service.mint.servers.cert_pem.bytes()
    if cert is None:
        credentials = grpc.ssl_channel_credentials(root)
    else:
        chain = b"".join(blob.bytes() for blob in cert.cert_chain_pems)
        credentials = grpc.ssl_channel_credentials(root, cert.private_key_pem.bytes(), chain)
    return grpc.secure_channel(service.running.grpc, credentials, OWN_CONNECTION)


def by_grpc(channel: grpc.Channel, sample: Sample) -> str:
    """Likewise. Raises grpc.RpcError."""
    request = pb.RecognizeRequest(crops=[pb.Crop(content=sample.content)])
    with closing(channel):
        return RecognitionServiceStub(channel).Recognize(request, timeout=PATIENT).results[0].recognition.text


def by_stream(channel: grpc.Channel, sample: Sample) -> str:
    """Likewise."""
    request = pb.RecognizeStreamRequest(crops=[pb.Crop(content=sample.content)])
    with closing(channel):
        (answer,) = RecognitionServiceStub(channel).RecognizeStream(iter([request]), timeout=PATIENT)
    return answer.results[0].recognition.text


def test_client_with_a_certificate_is_served(
    service: Service, mine: trustme.LeafCert, exit_sign: Sample
) -> None:
    assert by_rest(service, mine, exit_sign) == exit_sign.text
    assert by_grpc(secure_channel(service, mine), exit_sign) == exit_sign.text
    assert by_stream(secure_channel(service, mine), exit_sign) == exit_sign.text


@pytest.mark.parametrize("kind", ["none", "foreign", "of the servers", "expired"])
def test_intruder_stays_out(service: Service, exit_sign: Sample, kind: str) -> None:
    mint = service.mint
    certs = {
        "none": None,
        "foreign": mint.stranger.issue_cert("client@a"),
        "of the servers": mint.servers.issue_cert("client@a"),
        "expired": expired(mint.clients),
    }
    cert = certs[kind]
    with pytest.raises(httpx.TransportError):
        by_rest(service, cert, exit_sign)
    for call in (by_grpc, by_stream):
        with pytest.raises(grpc.RpcError, match="UNAVAILABLE"):
            call(secure_channel(service, cert), exit_sign)


def test_plain_tcp_stays_out(service: Service, exit_sign: Sample) -> None:
    address = f"{service.running.http}/v1/recognize"
    with pytest.raises(httpx.TransportError):
        httpx.post(address, content=exit_sign.content, headers=JPEG, timeout=PATIENT)
    for call in (by_grpc, by_stream):
        with pytest.raises(grpc.RpcError, match="UNAVAILABLE"):
            call(grpc.insecure_channel(service.running.grpc, OWN_CONNECTION), exit_sign)


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/startupz", "/metrics"])
def test_probes_need_no_certificate_on_the_metrics_port(service: Service, path: str) -> None:
    assert httpx.get(service.running.metrics + path).status_code == httpx.codes.OK


def test_reload_exchanges_who_is_trusted(service: Service, mine: trustme.LeafCert, exit_sign: Sample) -> None:
    mint = service.mint
    other = mint.stranger.issue_cert("client@a")
    mint.files(mint.servers.issue_cert("127.0.0.1"), client_ca=mint.stranger)
    service.running.process.send_signal(signal.SIGHUP)
    until(lambda: comes_in(service, other, exit_sign))
    assert by_grpc(secure_channel(service, other), exit_sign) == exit_sign.text
    with pytest.raises(httpx.TransportError):
        by_rest(service, mine, exit_sign)
    with pytest.raises(grpc.RpcError, match="UNAVAILABLE"):
        by_grpc(secure_channel(service, mine), exit_sign)


def comes_in(service: Service, cert: trustme.LeafCert, sample: Sample) -> bool:
    try:
        return by_rest(service, cert, sample) == sample.text
    except httpx.TransportError:
        return False
