"""Certificates as files, and clients that hold some of them."""

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from clip4str_service.tls import TlsFiles

NOW = datetime.now(UTC)
DAY = timedelta(days=1)


class Mint:
    """A CA for servers, one for clients, one of a stranger; a directory for files."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.servers, self.clients, self.stranger = trustme.CA(), trustme.CA(), trustme.CA()

    def write(self, name: str, content: bytes) -> Path:
        path = self.directory / name
        path.write_bytes(content)
        return path

    def files(self, cert: trustme.LeafCert | None = None, *, client_ca: trustme.CA | None = None) -> TlsFiles:
        """The files of a server, which are the same ones each time."""
        cert = cert or self.servers.issue_cert("localhost")
        return TlsFiles(
            self.write("cert.pem", b"".join(blob.bytes() for blob in cert.cert_chain_pems)),
            self.write("key.pem", cert.private_key_pem.bytes()),
            self.write("ca.pem", client_ca.cert_pem.bytes()) if client_ca else None,
        )

    def client(self, cert: trustme.LeafCert | None = None) -> ssl.SSLContext:
        """A client of the servers, with a certificate of its own or without."""
        context = ssl.create_default_context()
        self.servers.configure_trust(context)
        if cert is not None:
            cert.configure_cert(context)
        return context


def expired(ca: trustme.CA) -> trustme.LeafCert:
    return ca.issue_cert("localhost", not_before=NOW - 2 * DAY, not_after=NOW - DAY)


def not_yet_valid(ca: trustme.CA) -> trustme.LeafCert:
    return ca.issue_cert("localhost", not_before=NOW + DAY, not_after=NOW + 2 * DAY)


def encrypted(cert: trustme.LeafCert) -> bytes:
    """The certificate's key under a passphrase."""
    key = load_pem_private_key(cert.private_key_pem.bytes(), None)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))


def expired_ca() -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "old")])
    ca = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - 2 * DAY)
        .not_valid_after(NOW - DAY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    )
    return ca.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
