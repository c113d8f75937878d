"""What parties and coordinator send each other, as flat dicts of str, bytes and lists of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

KEY_BYTES = 32
SHARE_BYTES = 16


@dataclass(frozen=True)
class PublicKeys:
    """Stage 1, from a party to the coordinator, and on to the party's neighbours.

    Parameters
    ----------
    round_id : str
    encryption, masking : bytes
        X25519 public keys, 32 bytes each: for the secrecy of shares, and for pairwise masks.
    commitment : bytes
        32 bytes that follow from the seed of the self mask and tell whether that seed was recovered rightly.
    """

    round_id: str
    encryption: bytes
    masking: bytes
    commitment: bytes

    def to_dict(self) -> dict[str, str | bytes]:
        """Return the message as plain values."""
        return {"round_id": self.round_id, **{name: getattr(self, name) for name in _KEYS}}

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> PublicKeys:
        """Return the message that a dict holds.

        Raises
        ------
        ValueError
            If a field is missing, superfluous, or of a wrong type or length.
        """
        fields = _fields(given, "round_id", *_KEYS)
        return cls(_text(fields["round_id"]), *(_key(fields[name], name) for name in _KEYS))


@dataclass(frozen=True)
class UnmaskRequest:
    """Stage 4, from the coordinator to a party: what became of everyone whose shares the party holds.

    Parameters
    ----------
    round_id : str
    survivors : tuple of str
        Whose masked vector arrived, the party itself included; their self masks are to be removed.
    dropped : tuple of str
        Whose did not; the pairwise masks with them are to be removed.
    """

    round_id: str
    survivors: tuple[str, ...]
    dropped: tuple[str, ...]

    def to_dict(self) -> dict[str, str | list[str]]:
        """Return the message as plain values."""
        return {"round_id": self.round_id, "survivors": list(self.survivors), "dropped": list(self.dropped)}

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> UnmaskRequest:
        """Return the message that a dict holds.

        Raises
        ------
        ValueError
            If a field is missing, superfluous, or of a wrong type, or a name occurs twice in it.
        """
        fields = _fields(given, "round_id", "survivors", "dropped")
        return cls(_text(fields["round_id"]), _names(fields["survivors"]), _names(fields["dropped"]))


@dataclass(frozen=True)
class Disclosure:
    """Stage 4, from a party to the coordinator: one share of one secret for everyone in the request.

    Parameters
    ----------
    round_id : str
    self_masks : dict of str to bytes
        By survivor, the share of the seed of its self mask, 16 bytes.
    mask_keys : dict of str to bytes
        By dropped party, the share of the seed of its masking key, 16 bytes.
    """

    round_id: str
    self_masks: dict[str, bytes]
    mask_keys: dict[str, bytes]

    def to_dict(self) -> dict[str, str | list[str] | list[bytes]]:
        """Return the message as plain values."""
        return {
            "round_id": self.round_id,
            "survivors": list(self.self_masks),
            "self_masks": list(self.self_masks.values()),
            "dropped": list(self.mask_keys),
            "mask_keys": list(self.mask_keys.values()),
        }

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Disclosure:
        """Return the message that a dict holds.

        Raises
        ------
        ValueError
            If a field is missing, superfluous, or of a wrong type or length, or a name occurs twice.
        """
        fields = _fields(given, "round_id", "survivors", "self_masks", "dropped", "mask_keys")
        return cls(
            _text(fields["round_id"]),
            _shares(fields["survivors"], fields["self_masks"]),
            _shares(fields["dropped"], fields["mask_keys"]),
        )


_KEYS = ("encryption", "masking", "commitment")


def _fields(given: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    if set(given) != set(names):
        raise ValueError(f"message with the fields {sorted(given)}, {sorted(names)} expected")
    return given


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{type(value).__name__} given where a string is expected")
    return value


def _key(value: Any, name: str) -> bytes:
    if not isinstance(value, bytes) or len(value) != KEY_BYTES:
        raise ValueError(f"{name} is not {KEY_BYTES} bytes")
    return value


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{type(value).__name__} given where a list of names is expected")
    names = tuple(_text(name) for name in value)
    if len(set(names)) != len(names):
        raise ValueError("a name occurs twice in a list of names")
    return names


def _shares(names: Any, shares: Any) -> dict[str, bytes]:
    owners = _names(names)
    if not isinstance(shares, list | tuple) or len(shares) != len(owners):
        raise ValueError("not one share a name")
    if not all(isinstance(share, bytes) and len(share) == SHARE_BYTES for share in shares):
        raise ValueError(f"a share is not {SHARE_BYTES} bytes")
    return dict(zip(owners, shares, strict=True))
