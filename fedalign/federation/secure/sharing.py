"""Secrets in shares: Shamir's scheme of pycryptodome, and AES-GCM for the way to whom a share belongs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from Crypto.Protocol.SecretSharing import Shamir
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fedalign.federation.secure.keys import pack
from fedalign.federation.secure.messages import SHARE_BYTES

NONCE_BYTES = 12
TAG_BYTES = 16


def holders(owner: str, neighbours: Sequence[str] | frozenset[str]) -> list[str]:
    """Return who holds the shares of ``owner``, in the order of the shares: its neighbours and itself, sorted."""
    return sorted({owner, *neighbours})


def split(secret: bytes, needed: int, holding: Sequence[str]) -> dict[str, bytes]:
    """Return the shares of a 16-byte secret by holder; any ``needed`` of them recover it, fewer tell nothing."""
    shares = Shamir.split(needed, len(holding), secret, False)
    return {holder: share for holder, (_, share) in zip(holding, shares, strict=True)}


def combine(shares: Mapping[str, bytes], needed: int, holding: Sequence[str]) -> bytes:
    """Return the secret.

    Parameters
    ----------
    shares : mapping of str to bytes
        By holder; the first ``needed`` in the order of ``holding`` are used.
    needed : int
    holding : sequence of str
        Everyone who was given a share, in the order of the split.

    Raises
    ------
    ValueError
        If there are fewer than ``needed`` shares.
    """
    points = [(place, shares[holder]) for place, holder in enumerate(holding, 1) if holder in shares]
    if len(points) < needed:
        raise ValueError(f"{len(points)} shares given, {needed} needed")
    return Shamir.combine(points[:needed], False)


def encrypt(key: bytes, self_mask: bytes, mask_key: bytes, round_id: str, sender: str, recipient: str) -> bytes:
    """Return the two shares that ``recipient`` is to hold for ``sender``, encrypted and bound to round and names."""
    nonce = os.urandom(NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, self_mask + mask_key, pack(round_id, sender, recipient))


def decrypt(key: bytes, ciphertext: bytes, round_id: str, sender: str, recipient: str) -> tuple[bytes, bytes]:
    """Return the two shares of ``encrypt``: of the self mask's seed and of the masking key's.

    Raises
    ------
    ValueError
        If the ciphertext is not from ``sender`` for ``recipient`` in this round, or was changed; names the sender.
    """
    if not well_formed(ciphertext):
        raise ValueError(f"the shares of {sender} have a wrong length")
    nonce, body = ciphertext[:NONCE_BYTES], ciphertext[NONCE_BYTES:]
    try:
        plain = AESGCM(key).decrypt(nonce, body, pack(round_id, sender, recipient))
    except InvalidTag:
        raise ValueError(f"the shares of {sender} were changed, or are not for {recipient} in this round") from None
    return plain[:SHARE_BYTES], plain[SHARE_BYTES:]


def well_formed(ciphertext: object) -> bool:
    """Return whether something has the type and length of a ciphertext."""
    return isinstance(ciphertext, bytes) and len(ciphertext) == NONCE_BYTES + 2 * SHARE_BYTES + TAG_BYTES
