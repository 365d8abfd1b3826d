"""Files of certificates and keys: those that are wrong are told in one line, with the setting that names them."""

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clip4str_service.tls import TlsError, TlsFiles, check_tls, tls_files
from tests.service.certificates import Mint, encrypted, expired, expired_ca, not_yet_valid


def missing_key(mint: Mint) -> TlsFiles:
    return mint.files()._replace(key=mint.directory / "none.pem")


def directory_as_cert(mint: Mint) -> TlsFiles:
    return mint.files()._replace(cert=mint.directory)


def cert_of_nothing(mint: Mint) -> TlsFiles:
    return mint.files()._replace(cert=mint.write("empty.pem", b""))


def key_as_cert(mint: Mint) -> TlsFiles:
    files = mint.files()
    return files._replace(cert=files.key)


def cert_as_key(mint: Mint) -> TlsFiles:
    files = mint.files()
    return files._replace(key=files.cert)


def key_of_another(mint: Mint) -> TlsFiles:
    other = mint.servers.issue_cert("localhost").private_key_pem.bytes()
    return mint.files()._replace(key=mint.write("other.pem", other))


def encrypted_key(mint: Mint) -> TlsFiles:
    cert = mint.servers.issue_cert("localhost")
    return mint.files(cert)._replace(key=mint.write("encrypted.pem", encrypted(cert)))


def large_key(mint: Mint) -> TlsFiles:
    return mint.files()._replace(key=mint.write("large.pem", b" " * ((1 << 20) + 1)))


def expired_cert(mint: Mint) -> TlsFiles:
    return mint.files(expired(mint.servers))


def early_cert(mint: Mint) -> TlsFiles:
    return mint.files(not_yet_valid(mint.servers))


def missing_ca(mint: Mint) -> TlsFiles:
    return mint.files()._replace(client_ca=mint.directory / "none.pem")


def ca_of_nothing(mint: Mint) -> TlsFiles:
    return mint.files()._replace(client_ca=mint.write("text.pem", b"hello"))


def client_cert_as_ca(mint: Mint) -> TlsFiles:
    leaf = mint.clients.issue_cert("client@a").cert_chain_pems[0].bytes()
    return mint.files()._replace(client_ca=mint.write("leaf.pem", leaf))


def old_ca(mint: Mint) -> TlsFiles:
    return mint.files()._replace(client_ca=mint.write("old.pem", expired_ca()))


@pytest.mark.parametrize(
    ("make", "field", "reason"),
    [
        (missing_key, "tls_key_file", r"none\.pem: No such file or directory"),
        (directory_as_cert, "tls_cert_file", "Is a directory"),
        (cert_of_nothing, "tls_cert_file", "holds no certificate in PEM form"),
        (key_as_cert, "tls_cert_file", "holds no certificate in PEM form"),
        (cert_as_key, "tls_key_file", "cannot be used"),
        (key_of_another, "tls_key_file", r"other\.pem is not the key of the certificate in .*cert\.pem"),
        (encrypted_key, "tls_key_file", "is encrypted; give the key without a passphrase"),
        (large_key, "tls_key_file", "has more than 1048576 bytes"),
        (expired_cert, "tls_cert_file", "certificate has expired"),
        (early_cert, "tls_cert_file", "certificate is not yet valid"),
        (missing_ca, "tls_client_ca_file", r"none\.pem: No such file or directory"),
        (ca_of_nothing, "tls_client_ca_file", "holds no certificate in PEM form"),
        (client_cert_as_ca, "tls_client_ca_file", "holds no certificate of a CA"),
        (old_ca, "tls_client_ca_file", "certificate has expired"),
    ],
)
def test_bad_file_is_told_in_one_line(
    mint: Mint, make: Callable[[Mint], TlsFiles], field: str, reason: str
) -> None:
    with pytest.raises(TlsError, match=reason) as caught:
        check_tls(make(mint))
    line = str(caught.value)
    assert line.startswith(f"CLIP4STR_{field.upper()} (--{field.replace('_', '-')}): ")
    assert "\n" not in line


def test_files_replaced_while_they_are_read_are_not_mixed(
    mint: Mint, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = mint.files()
    load = ssl.SSLContext.load_cert_chain

    def load_and_replace(*args: Any, **options: Any) -> None:
        load(*args, **options)
        mint.files()

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", load_and_replace)
    with pytest.raises(TlsError, match="was replaced while it was read"):
        check_tls(files)


def test_good_files(mint: Mint) -> None:
    check_tls(mint.files())
    check_tls(mint.files(client_ca=mint.clients))


def test_settings_belong_together() -> None:
    cert, key, ca = Path("cert.pem"), Path("key.pem"), Path("ca.pem")
    assert tls_files(None, None, None) is None
    assert tls_files(cert, key, None) == TlsFiles(cert, key)
    assert tls_files(cert, key, ca) == TlsFiles(cert, key, ca)
    for given, missing, named in (
        ((cert, None, None), "KEY", "CERT"),
        ((None, key, None), "CERT", "KEY"),
        ((None, None, ca), "CERT", "CLIENT_CA"),
        ((cert, None, ca), "KEY", "CERT"),
    ):
        with pytest.raises(
            TlsError, match=f"CLIP4STR_TLS_{missing}_FILE .*: must be set .* CLIP4STR_TLS_{named}"
        ):
            tls_files(*given)
