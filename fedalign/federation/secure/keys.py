"""Key derivation and key agreement: X25519 and HKDF-SHA256 of the package cryptography, bound to round and names."""

from __future__ import annotations

from collections.abc import Mapping

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedalign.federation.secure.messages import KEY_BYTES, PublicKeys

SEED_BYTES = 16


def derive(secret: bytes, purpose: str, *context: str) -> bytes:
    """Return a 32-byte key for one purpose and context (HKDF, RFC 5869); others tell nothing of it."""
    return HKDF(SHA256(), KEY_BYTES, salt=None, info=pack(purpose, *context)).derive(secret)


def pack(*parts: str) -> bytes:
    """Return strings as bytes from which no other strings follow: each is preceded by its length."""
    encoded = [part.encode() for part in parts]
    return b"".join(len(part).to_bytes(4, "big") + part for part in encoded)


def encryption_key(seed: bytes, round_id: str, name: str) -> X25519PrivateKey:
    """Return the private key with which shares for ``name`` are encrypted, from a 16-byte seed."""
    return X25519PrivateKey.from_private_bytes(derive(seed, "encryption key", round_id, name))


def masking_key(seed: bytes, round_id: str, name: str) -> X25519PrivateKey:
    """Return the private key from which the pairwise masks of ``name`` follow, from a 16-byte seed."""
    return X25519PrivateKey.from_private_bytes(derive(seed, "masking key", round_id, name))


def self_mask_key(seed: bytes, round_id: str, name: str) -> bytes:
    """Return the key of the self mask of ``name``, from a 16-byte seed."""
    return derive(seed, "self mask", round_id, name)


def commitment(seed: bytes, round_id: str, name: str) -> bytes:
    """Return what ``name`` publishes of the seed of its self mask."""
    return derive(seed, "commitment", round_id, name)


def public_keys(seeds: Mapping[str, bytes], round_id: str, name: str) -> PublicKeys:
    """Return what ``name`` publishes of its seeds ``encryption``, ``masking`` and ``self_mask``, 16 bytes each."""
    return PublicKeys(
        round_id,
        encryption_key(seeds["encryption"], round_id, name).public_key().public_bytes_raw(),
        masking_key(seeds["masking"], round_id, name).public_key().public_bytes_raw(),
        commitment(seeds["self_mask"], round_id, name),
    )


def agree(private: X25519PrivateKey, public: bytes, purpose: str, round_id: str, one: str, other: str) -> bytes:
    """Return the 32-byte key that two parties share; both arrive at the same.

    Parameters
    ----------
    private : X25519PrivateKey
        Of either party.
    public : bytes
        Of the other one, from the network.
    purpose, round_id : str
    one, other : str
        Whose keys ``private`` and ``public`` are.

    Raises
    ------
    ValueError
        If ``public`` is a point of low order, with which everyone arrives at the same key.
    """
    try:
        secret = private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        raise ValueError(f"a public key of {other} is a point of low order") from None
    return derive(secret, purpose, round_id, *sorted((one, other)))


def pair_mask_key(private: X25519PrivateKey, public: bytes, round_id: str, one: str, other: str) -> bytes:
    """Return the key of the mask that ``one`` and ``other`` share (see ``agree``)."""
    return agree(private, public, "pair mask", round_id, one, other)
