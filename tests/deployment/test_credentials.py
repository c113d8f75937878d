"""Certificates and keys, held against what TLS itself and Flower's own readers make of them."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import socket
import ssl
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key
from flwr.cli.supernode.register import try_load_public_key

from fedalign.deployment.credentials import Tls, make_node_key, make_tls
from fedalign.deployment.plan import Address


@pytest.fixture(scope="module")
def tls() -> Tls:
    return make_tls(Address("fed.example.org", 8443))


def handshake(tls: Tls, trusted: bytes, host: str, folder: Path) -> None:
    """Connect to a TLS server that shows the certificate, as a client that expects ``host``."""
    for name, content in {"crt": tls.server.public, "key": tls.server.private, "ca": trusted}.items():
        (folder / name).write_bytes(content)
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(folder / "crt", folder / "key")
    client_side = ssl.create_default_context(cafile=folder / "ca")
    here, there = socket.socketpair()
    here.settimeout(10)
    there.settimeout(10)

    def serve() -> None:
        # The client may break it off.
        with there, contextlib.suppress(OSError):
            server_side.wrap_socket(there, server_side=True).close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with here, client_side.wrap_socket(here, server_hostname=host):
            pass
    finally:
        thread.join()


@pytest.mark.parametrize("host", ["fed.example.org", "localhost", "superlink", "127.0.0.1", "::1"])
def test_the_server_is_accepted_under_its_names(tls: Tls, host: str, tmp_path: Path) -> None:
    handshake(tls, tls.authority.public, host, tmp_path)


@pytest.mark.parametrize("host", ["example.org", "other.example.org", "127.0.0.2"])
def test_and_under_no_other(tls: Tls, host: str, tmp_path: Path) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(tls, tls.authority.public, host, tmp_path)


def test_another_authority_does_not_vouch_for_it(tls: Tls, tmp_path: Path) -> None:
    other = make_tls(Address("fed.example.org", 8443))
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(tls, other.authority.public, "localhost", tmp_path)


def test_an_address_that_is_a_number_is_in_the_certificate_as_one(tmp_path: Path) -> None:
    tls = make_tls(Address("10.1.2.3", 8443))
    handshake(tls, tls.authority.public, "10.1.2.3", tmp_path)
    certificate = x509.load_pem_x509_certificate(tls.server.public)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert ipaddress.ip_address("10.1.2.3") in names.get_values_for_type(x509.IPAddress)
    assert "10.1.2.3" not in names.get_values_for_type(x509.DNSName)


def test_the_server_cannot_sign_certificates_and_the_authority_no_further_authorities(tls: Tls) -> None:
    server, authority = (x509.load_pem_x509_certificate(pair.public) for pair in (tls.server, tls.authority))
    assert not server.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    constraints = authority.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert (constraints.ca, constraints.path_length) == (True, 0)
    server.verify_directly_issued_by(authority)
    now = datetime.datetime.now(datetime.UTC)
    assert server.not_valid_before_utc < now < server.not_valid_after_utc <= authority.not_valid_after_utc


def test_a_node_key_is_what_flower_reads(tmp_path: Path) -> None:
    pair = make_node_key()
    (tmp_path / "key.pub").write_bytes(pair.public)
    private, public = load_ssh_private_key(pair.private, None), load_ssh_public_key(pair.public)
    assert private.public_key().public_numbers() == public.public_numbers()  # type: ignore[union-attr]
    assert public.curve.name == "secp384r1"  # type: ignore[union-attr]
    assert try_load_public_key(tmp_path / "key.pub")


def test_keys_differ() -> None:
    assert make_node_key().private != make_node_key().private
