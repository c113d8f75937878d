"""Who may talk to whom: a certificate authority, the server's certificate, and a key pair for every site."""

from __future__ import annotations

import datetime
import ipaddress
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedalign.deployment.plan import Address

LIFETIME = datetime.timedelta(days=1825)
SERVICE = "superlink"
"""The server's name inside a docker network."""


@dataclass(frozen=True)
class KeyPair:
    """A private key and what goes with it, as files hold them.

    Parameters
    ----------
    private : bytes
        PEM.
    public : bytes
        A certificate (PEM), or a public key as OpenSSH writes it.
    """

    private: bytes
    public: bytes


@dataclass(frozen=True)
class Tls:
    """What TLS needs.

    Parameters
    ----------
    authority, server : KeyPair
    """

    authority: KeyPair
    server: KeyPair


def make_tls(address: Address) -> Tls:
    """Return a new certificate authority and a certificate for the server at an address.

    The certificate is also valid for localhost, the loopback addresses and the server's name in a docker network.
    """
    now = datetime.datetime.now(datetime.UTC)
    root_key, server_key = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP384R1())
    root_name = _name("fedalign certificate authority")
    root = (
        _certificate(root_name, root_name, root_key.public_key(), root_key, now)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(sign_certificates=True), critical=True)
        .sign(root_key, hashes.SHA384())
    )
    server = (
        _certificate(_name(address.host[:64]), root_name, server_key.public_key(), root_key, now)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(sign_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(_alternatives(address)), critical=False)
        .sign(root_key, hashes.SHA384())
    )
    return Tls(KeyPair(_pem(root_key), _certificate_pem(root)), KeyPair(_pem(server_key), _certificate_pem(server)))


def make_node_key() -> KeyPair:
    """Return a new key pair (NIST P-384) that a SuperNode proves with who it is."""
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return KeyPair(private, public + b"\n")


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    signer: ec.EllipticCurvePrivateKey,
    now: datetime.datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        # Clocks of separate machines differ.
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + LIFETIME)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )


def _alternatives(address: Address) -> list[x509.GeneralName]:
    names = dict.fromkeys(["localhost", SERVICE, *([] if address.is_ip else [address.host])])
    loopback = ["127.0.0.1", "::1"]
    numbers = dict.fromkeys(map(ipaddress.ip_address, [*loopback, *([address.host] if address.is_ip else [])]))
    return [*map(x509.DNSName, names), *map(x509.IPAddress, numbers)]


def _usage(sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _certificate_pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
