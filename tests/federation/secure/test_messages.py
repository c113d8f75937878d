"""Messages as plain values: round trips and what is refused."""

from __future__ import annotations

import json

import pytest
from flwr.app import ConfigRecord

from fedalign.federation.secure.messages import Disclosure, PublicKeys, UnmaskRequest

KEYS = PublicKeys("r1", b"a" * 32, b"b" * 32, b"c" * 32)
REQUEST = UnmaskRequest("r1", ("c0", "c1"), ("c2",))
DISCLOSURE = Disclosure("r1", {"c0": b"x" * 16, "c1": b"y" * 16}, {"c2": b"z" * 16})
EMPTY = Disclosure("r1", {}, {})


@pytest.mark.parametrize("message", [KEYS, REQUEST, DISCLOSURE, EMPTY, UnmaskRequest("r1", ("c0",), ())])
def test_messages_pass_through_flowers_records(message) -> None:
    carried = dict(ConfigRecord(message.to_dict()))
    assert type(message).from_dict(carried) == message


def test_a_request_is_plain_json() -> None:
    assert UnmaskRequest.from_dict(json.loads(json.dumps(REQUEST.to_dict()))) == REQUEST


@pytest.mark.parametrize("message", [KEYS, REQUEST, DISCLOSURE])
def test_missing_and_superfluous_fields_are_refused(message) -> None:
    given = message.to_dict()
    for name in given:
        with pytest.raises(ValueError, match="expected"):
            type(message).from_dict({key: value for key, value in given.items() if key != name})
    with pytest.raises(ValueError, match="expected"):
        type(message).from_dict({**given, "more": "x"})


@pytest.mark.parametrize(
    ("message", "field", "wrong"),
    [
        (KEYS, "round_id", 3),
        (KEYS, "masking", b"a" * 31),
        (KEYS, "commitment", "a" * 32),
        (REQUEST, "survivors", "c0"),
        (REQUEST, "survivors", ["c0", "c0"]),
        (REQUEST, "dropped", [1]),
        (DISCLOSURE, "survivors", ["c0"]),
        (DISCLOSURE, "survivors", ["c0", "c0"]),
        (DISCLOSURE, "self_masks", [b"x" * 16, b"y" * 15]),
        (DISCLOSURE, "mask_keys", b"z" * 16),
        (DISCLOSURE, "mask_keys", ["z" * 16]),
    ],
)
def test_wrong_types_and_lengths_are_refused(message, field: str, wrong: object) -> None:
    with pytest.raises(ValueError):
        type(message).from_dict({**message.to_dict(), field: wrong})
