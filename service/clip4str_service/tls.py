"""TLS of both public ports, out of the same files: the certificate, its key, and the CA of clients' certificates.

With a client CA a client must show a certificate that this CA signed. Files that are replaced are taken over by
`reload`: from then on new connections know nothing of the old ones, and those that are open go on.
"""

from __future__ import annotations

import contextlib
import ssl
import time
from pathlib import Path
from typing import NamedTuple, NoReturn

import grpc

from clip4str_service.settings import flag, variable

_MAX_FILE_BYTES = 1 << 20
_CERT, _KEY, _CLIENT_CA = "tls_cert_file", "tls_key_file", "tls_client_ca_file"
_HTTP = ["http/1.1"]  # in the handshake's ALPN; gRPC names its own


class TlsError(Exception):
    """A file for TLS is no good; the message is one line that names its setting."""


class TlsFiles(NamedTuple):
    """The files in PEM form: a certificate and those that lead to its CA, its key, CAs of clients or None."""

    cert: Path
    key: Path
    client_ca: Path | None = None


def tls_files(cert: Path | None, key: Path | None, client_ca: Path | None) -> TlsFiles | None:
    """The files that the three settings name; None: no TLS. Raises TlsError where one is missing."""
    if cert is not None and key is not None:
        return TlsFiles(cert, key, client_ca)
    given = {_CERT: cert, _KEY: key, _CLIENT_CA: client_ca}
    if any(given.values()):
        missing = _CERT if cert is None else _KEY
        named = next(field for field, value in given.items() if value is not None)
        _refuse(missing, f"must be set as well, with {variable(named)}")
    return None


def check_tls(files: TlsFiles) -> None:
    """Raises TlsError if a server could not be run with these files."""
    _load(files)


class Tls:
    """The TLS of a process' servers."""

    def __init__(self, files: TlsFiles) -> None:
        """Raises TlsError."""
        self._files = files
        self._loaded = _load(files)
        self._http = _RotatingContext(ssl.PROTOCOL_TLS_SERVER)
        self._http.current = self._loaded.context
        self._fetched: _Loaded | None = None

    def http_context(self) -> ssl.SSLContext:
        """For the servers of HTTP; it follows `reload`."""
        return self._http

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """For the one gRPC server; they follow `reload`."""
        self._fetched = self._loaded
        return grpc.dynamic_ssl_server_credentials(
            self._loaded.grpc_configuration(),
            self._fetch,  # type: ignore[arg-type]  # the stubs do not know that it may answer None
            require_client_authentication=self._files.client_ca is not None,
        )

    def reload(self) -> None:
        """Reads the files again. Raises TlsError: they are no good, and all stays as it was."""
        self._loaded = _load(self._files)
        self._http.current = self._loaded.context

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        # gRPC asks at each connection, on threads of its own; None keeps what it has.
        loaded = self._loaded
        if loaded is self._fetched:
            return None
        self._fetched = loaded
        return loaded.grpc_configuration()


class _RotatingContext(ssl.SSLContext):
    """Begins each connection in the current context.

    To load other files into a context that is in use would keep the old client CA trusted beside the new one, and
    would let clients resume sessions that the old one allowed.
    """

    current: ssl.SSLContext

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        """As asyncio calls it for each connection."""
        return self.current.wrap_bio(incoming, outgoing, server_side, server_hostname, session)


class _Loaded(NamedTuple):
    """The files' contents, checked, and a context made of them."""

    cert: bytes
    key: bytes
    client_ca: bytes | None
    context: ssl.SSLContext

    def grpc_configuration(self) -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration([(self.key, self.cert)], self.client_ca)


def _load(files: TlsFiles) -> _Loaded:
    contents = _contents(files)
    cert, _, client_ca = contents
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(_HTTP)
    client = _trusting(cert, _CERT, files.cert)
    try:
        context.load_cert_chain(files.cert, files.key, password=lambda: _refuse_password(files.key))
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            _refuse(_KEY, f"{files.key} is not the key of the certificate in {files.cert}")
        _refuse(_KEY, f"{files.key} and {files.cert} cannot be used: {_reason(error)}")
    _shake_hands(client, context, files.cert)
    if client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        _trust_clients(context, client_ca, files.client_ca)
    if _contents(files) != contents:  # OpenSSL read the files by itself
        _refuse(_CERT, f"{files.cert} or a file beside it was replaced while it was read; load it again")
    return _Loaded(*contents, context)


def _contents(files: TlsFiles) -> tuple[bytes, bytes, bytes | None]:
    client_ca = None if files.client_ca is None else _read(_CLIENT_CA, files.client_ca)
    return _read(_CERT, files.cert), _read(_KEY, files.key), client_ca


def _read(field: str, path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        _refuse(field, f"{path}: {error.strerror or error}")
    if len(content) > _MAX_FILE_BYTES:
        _refuse(field, f"{path} has more than {_MAX_FILE_BYTES} bytes")
    return content


def _trusting(cert: bytes, field: str, path: Path) -> ssl.SSLContext:
    """A client that trusts these certificates, and no other."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # the certificate itself will do, without its CA
    _add(client, cert, field, path)
    return client


def _shake_hands(client: ssl.SSLContext, server: ssl.SSLContext, path: Path) -> None:
    """Connects the two in memory. What the client finds wrong, such as an expired certificate, every one would."""
    asked, answered = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking = client.wrap_bio(answered, asked)
    answering = server.wrap_bio(asked, answered, server_side=True)
    try:
        for side in (asking, answering, asking):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
    except ssl.SSLCertVerificationError as error:
        _refuse(_CERT, f"{path}: {error.verify_message}")
    except ssl.SSLError as error:
        _refuse(_CERT, f"{path}: no connection can be made with it: {_reason(error)}")


def _trust_clients(context: ssl.SSLContext, client_ca: bytes, path: Path | None) -> None:
    _add(context, client_ca, _CLIENT_CA, path)
    ends = [ssl.cert_time_to_seconds(str(each["notAfter"])) for each in context.get_ca_certs()]
    if not ends:
        _refuse(_CLIENT_CA, f"{path} holds no certificate of a CA")
    if max(ends) <= time.time():
        _refuse(_CLIENT_CA, f"{path}: certificate has expired")


def _add(context: ssl.SSLContext, pem: bytes, field: str, path: Path | None) -> None:
    try:
        context.load_verify_locations(cadata=pem.decode("ascii", "ignore"))
    except (ssl.SSLError, ValueError):
        _refuse(field, f"{path} holds no certificate in PEM form")


def _refuse_password(path: Path) -> NoReturn:
    # Without a password at hand OpenSSL would ask for one at the terminal.
    _refuse(_KEY, f"{path} is encrypted; give the key without a passphrase")


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or "they are not in PEM form").lower().replace("_", " ")


def _refuse(field: str, reason: str) -> NoReturn:
    raise TlsError(f"{variable(field)} ({flag(field)}): {reason}") from None
