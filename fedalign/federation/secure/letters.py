"""The secure sum's messages as Flower's records: JSON by client for keys and shares, one array a client for vectors."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedalign.federation.secure.fixed_point import Words
from fedalign.federation.untrusted import read_array

LETTERS, MASKED = "secure.letters", "secure.masked"

KEYS, SHARES, UNMASK = "query.secure_keys", "query.secure_shares", "query.secure_unmask"

Fields = Mapping[str, Any]

_BYTES = "base64"


def write_letters(by_client: Mapping[str, Fields]) -> ConfigRecord:
    """Return the record that carries a letter (str, bytes, lists and dicts of them) for or from each client."""
    return ConfigRecord({"json": json.dumps(by_client, default=_plain)})


def read_letters(content: RecordDict) -> dict[str, dict[str, Any]]:
    """Return the letters of a message by client.

    Raises
    ------
    ValueError
        If the message holds none, or they are malformed.
    """
    try:
        letters = json.loads(str(content.config_records[LETTERS]["json"]), object_hook=_revive)
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"the message holds no letters: {error!r}") from error
    if not isinstance(letters, dict) or not all(isinstance(letter, dict) for letter in letters.values()):
        raise ValueError("the letters are not one a client")
    return letters


def write_vectors(masked: Mapping[str, Words]) -> ArrayRecord:
    """Return the record that carries masked vectors."""
    return ArrayRecord({client: Array(vector) for client, vector in masked.items()})


def read_vectors(content: RecordDict) -> Iterator[tuple[str, Words]]:
    """Yield the masked vectors of a message by client, one at a time.

    Raises
    ------
    ValueError
        If the message holds none, or something else.
    """
    if MASKED not in content.array_records:
        raise ValueError("the message holds no masked vectors")
    for client, array in content.array_records[MASKED].items():
        try:
            vector = read_array(array)
        except ValueError as error:
            raise ValueError(f"{client}: masked vector cannot be read: {error}") from None
        if not np.issubdtype(vector.dtype, np.unsignedinteger):
            raise ValueError(f"{client}: masked vector of {vector.dtype}")
        yield client, vector


def _plain(value: Any) -> dict[str, str]:
    if not isinstance(value, bytes):
        raise TypeError(f"{type(value).__name__} does not travel")
    return {_BYTES: base64.b64encode(value).decode()}


def _revive(fields: dict[str, Any]) -> Any:
    """Turn the one-field object that stands for bytes back into them."""
    # A client may have this name too, but what it then names is no string.
    only = fields.get(_BYTES) if len(fields) == 1 else None
    return base64.b64decode(only, validate=True) if isinstance(only, str) else fields
