"""TLS on real sockets: who comes in at either port, who does not, and what happens when files are replaced."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any

import grpc
import pytest
import trustme
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from clip4str_service.tls import Tls, TlsError
from tests.service.certificates import Mint, expired
from tests.service.guarded import GET, PATIENT, Door, Doors

SHORT = 0.1

REFUSALS = (ssl.SSLError, ConnectionError, asyncio.IncompleteReadError)
"""What a client meets that is not let in; with TLS 1.3 only when it reads."""

SERVING = health_pb2.HealthCheckResponse.SERVING

Intruder = Callable[[Mint], trustme.LeafCert | None]
INTRUDERS: dict[str, Intruder] = {
    "no certificate": lambda _: None,
    "certificate of another CA": lambda mint: mint.stranger.issue_cert("client@a"),
    "certificate of the servers' CA": lambda mint: mint.servers.issue_cert("client@a"),
    "expired certificate": lambda mint: expired(mint.clients),
}
intruders = pytest.mark.parametrize("intruder", INTRUDERS.values(), ids=INTRUDERS)


in_module = pytest.mark.asyncio(loop_scope="module")


@asynccontextmanager
async def grpc_port(credentials: grpc.ServerCredentials) -> AsyncIterator[int]:
    """The port of a server that has nothing but health checks."""
    server = grpc.aio.server()
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_secure_port("localhost:0", credentials)
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


def channel_credentials(mint: Mint, cert: trustme.LeafCert | None) -> grpc.ChannelCredentials:
    root = mint.servers.cert_pem.bytes()
    if cert is None:
        return grpc.ssl_channel_credentials(root)
    return grpc.ssl_channel_credentials(
        root, cert.private_key_pem.bytes(), b"".join(blob.bytes() for blob in cert.cert_chain_pems)
    )


async def check(port: int, credentials: grpc.ChannelCredentials | None) -> int:
    """The health that a new connection is told. Raises grpc.aio.AioRpcError."""
    target = f"localhost:{port}"
    options = [("grpc.use_local_subchannel_pool", 1)]
    channel = (
        grpc.aio.secure_channel(target, credentials, options)
        if credentials
        else grpc.aio.insecure_channel(target, options)
    )
    async with channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)  # the stubs of this package lack its methods
        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=PATIENT)
    return int(answer.status)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@in_module
async def test_http_by_tls(mint: Mint, doors: Doors, version: ssl.TLSVersion) -> None:
    tls = Tls(mint.files())
    guarded = await doors.open(tls.http_context())
    trusting = mint.client()
    trusting.minimum_version = trusting.maximum_version = version
    trusting.set_alpn_protocols(["h2", "http/1.1"])
    async with guarded.client(trusting) as client:
        client.send(GET)
        assert (await client.answer()).status == 200
        spoken = client.writer.get_extra_info("ssl_object")
        assert spoken.selected_alpn_protocol() == "http/1.1"
        assert guarded.app.scopes[0]["scheme"] == "https"
        client.send(b"nonsense\r\n\r\n")
        assert (await client.answer()).headers["strict-transport-security"] == "max-age=31536000"


@in_module
async def test_old_tls_is_refused(mint: Mint, doors: Doors) -> None:
    guarded = await doors.open(Tls(mint.files()).http_context())
    old = mint.client()
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")  # else the client itself would refuse
    with pytest.raises(REFUSALS):
        await visit(guarded, old)
    assert guarded.app.calls == 0


@in_module
async def test_client_with_a_certificate_comes_in(mint: Mint, doors: Doors) -> None:
    tls = Tls(mint.files(client_ca=mint.clients))
    mine = mint.clients.issue_cert("client@a")
    guarded = await doors.open(tls.http_context())
    assert await visit(guarded, mint.client(mine)) == 200
    async with grpc_port(tls.grpc_credentials()) as port:
        assert await check(port, channel_credentials(mint, mine)) == SERVING


@intruders
@in_module
async def test_intruder_stays_out_of_http(mint: Mint, doors: Doors, intruder: Intruder) -> None:
    tls = Tls(mint.files(client_ca=mint.clients))
    guarded = await doors.open(tls.http_context())
    with pytest.raises(REFUSALS):
        await visit(guarded, mint.client(intruder(mint)))
    assert guarded.app.calls == 0


@intruders
@in_module
async def test_intruder_stays_out_of_grpc(mint: Mint, intruder: Intruder) -> None:
    tls = Tls(mint.files(client_ca=mint.clients))
    async with grpc_port(tls.grpc_credentials()) as port:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await check(port, channel_credentials(mint, intruder(mint)))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


@in_module
async def test_plain_client_stays_out(mint: Mint, doors: Doors) -> None:
    tls = Tls(mint.files())
    guarded = await doors.open(tls.http_context())
    async with guarded.client() as client:
        client.send(GET)
        assert b"HTTP" not in await client.closed()
    assert guarded.app.calls == 0
    async with grpc_port(tls.grpc_credentials()) as port:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await check(port, None)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("greeting", [b"", b"\x16\x03\x01\x02\x00"], ids=["silent", "stuck"])
@in_module
async def test_handshake_has_its_time(mint: Mint, doors: Doors, greeting: bytes) -> None:
    guarded = await doors.open(Tls(mint.files()).http_context(), head_timeout=SHORT)
    async with guarded.client() as client:
        started = monotonic()
        client.send(greeting)
        assert await client.closed() == b""
        assert SHORT * 0.9 <= monotonic() - started < 1


@pytest.mark.parametrize("closing", [b"", b"Connection: close\r\n"])
@in_module
async def test_client_that_does_not_read_is_dropped(mint: Mint, doors: Doors, closing: bytes) -> None:
    guarded = await doors.open(Tls(mint.files()).http_context(), write_timeout=SHORT)
    async with guarded.client(mint.client(), receive_buffer=8192) as client:
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]  # it is one for reading as well
        client.send(b"GET /large HTTP/1.1\r\nHost: a\r\n%s\r\n" % closing)
        await guarded.until_ended(1)
        await guarded.until_empty()
        client.writer.transport.abort()


@in_module
async def test_replaced_files_hold_for_new_connections(mint: Mint, doors: Doors) -> None:
    tls = Tls(mint.files(client_ca=mint.clients))
    before, after = mint.clients.issue_cert("client@a"), mint.stranger.issue_cert("client@a")
    guarded = await doors.open(tls.http_context())
    async with grpc_port(tls.grpc_credentials()) as port, guarded.client(mint.client(before)) as old:
        assert await check(port, channel_credentials(mint, before)) == SERVING
        serial = peer_serial(old.writer)
        mint.files(client_ca=mint.stranger)  # another certificate, and another CA of clients
        tls.reload()
        old.send(GET)
        assert (await old.answer()).status == 200
        async with guarded.client(mint.client(after)) as new:
            new.send(GET)
            assert (await new.answer()).status == 200
            assert peer_serial(new.writer) != serial
        assert await check(port, channel_credentials(mint, after)) == SERVING
        with pytest.raises(REFUSALS):
            await visit(guarded, mint.client(before))
        with pytest.raises(grpc.aio.AioRpcError):
            await check(port, channel_credentials(mint, before))


@in_module
async def test_bad_files_change_nothing(mint: Mint, doors: Doors) -> None:
    tls = Tls(mint.files())
    guarded = await doors.open(tls.http_context())
    mint.files(expired(mint.servers))
    with pytest.raises(TlsError, match="certificate has expired"):
        tls.reload()
    assert await visit(guarded, mint.client()) == 200
    async with grpc_port(tls.grpc_credentials()) as port:
        assert await check(port, channel_credentials(mint, None)) == SERVING


async def visit(guarded: Door, client_tls: ssl.SSLContext) -> int:
    """The status that a new connection is answered with. Raises one of REFUSALS."""
    async with guarded.client(client_tls) as client:
        client.send(GET)
        return (await client.answer()).status


def peer_serial(writer: asyncio.StreamWriter) -> str:
    certificate: dict[str, str] = writer.get_extra_info("peercert")
    return certificate["serialNumber"]


def test_client_cannot_make_the_server_shake_hands_again(mint: Mint) -> None:
    connection = Tls(mint.files()).http_context().wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_side=True)
    assert connection.context.options & ssl.OP_NO_RENEGOTIATION
