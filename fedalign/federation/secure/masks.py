"""Masks: an AES-256-CTR keystream per key, added to or subtracted from a vector of words."""

from __future__ import annotations

from typing import Literal

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

from fedalign.federation.secure.fixed_point import Words

CHUNK_BYTES = 1 << 18


def sign(name: str, other: str) -> Literal[1, -1]:
    """Return the sign with which ``name`` applies the mask that it shares with ``other``; the other's is opposite."""
    return 1 if name < other else -1


def apply_mask(vector: Words, key: bytes, direction: Literal[1, -1]) -> None:
    """Add the mask of a key to a vector in place, modulo the width of its words, or subtract it.

    Parameters
    ----------
    vector : words, shape ``(length,)``
        Little-endian, contiguous.
    key : bytes
        32 bytes, never used for another mask: the keystream starts at counter 0.
    direction : int
        1 adds, -1 subtracts.
    """
    encryptor = Cipher(AES(key), CTR(bytes(16))).encryptor()
    size = vector.itemsize
    zeros = bytes(min(CHUNK_BYTES, vector.nbytes))
    # In chunks that fit the processor's cache; a whole mask would be as large as the model.
    for start in range(0, len(vector), CHUNK_BYTES // size):
        part = vector[start : start + CHUNK_BYTES // size]
        stream = encryptor.update(memoryview(zeros)[: part.nbytes])
        apply = np.add if direction == 1 else np.subtract
        apply(part, np.frombuffer(stream, vector.dtype), out=part)
