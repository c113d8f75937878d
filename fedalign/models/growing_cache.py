"""A key-value cache with room for tokens to come: a new token is written beside the others and nothing is copied."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer


class GrowingLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """One layer's keys and values; half as much room again is taken whenever it is used up.

    The layer that it stands for joins all keys and values anew for every token, which for many rows is the larger part
    of a step of a small model.

    Parameters
    ----------
    layer : DynamicLayer
        Whose keys and values it takes over.
    """

    def __init__(self, layer: DynamicLayer) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        if layer.keys is not None and layer.values is not None:
            self.lazy_initialization(layer.keys, layer.values)
            self.keys, self.values = layer.keys, layer.values
        self._rooms: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Add tokens and return all keys and all values, each of shape (rows, heads, tokens, width)."""
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        if self._rooms is None or end > self._rooms[0].shape[-2] or not _is_in(self.keys, self._rooms[0]):
            self._rooms = _room(key_states, self.keys, start, end), _room(value_states, self.values, start, end)
        keys, values = self._rooms
        keys[..., start:end, :] = key_states
        values[..., start:end, :] = value_states
        self.keys, self.values = keys[..., :end, :], values[..., :end, :]
        return self.keys, self.values


def with_room(cache: Any) -> Any:
    """Return a cache after its first tokens; layers of a kind that is not known here stay as they are."""
    if type(cache) is DynamicCache:
        cache.layers = [GrowingLayer(layer) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def _is_in(keys: Tensor, room: Tensor) -> bool:
    """Say whether keys are what stands in the room: rows may have been chosen or reordered since."""
    return keys.data_ptr() == room.data_ptr() and keys.stride() == room.stride() and len(keys) == len(room)


def _room(new: Tensor, old: Tensor, start: int, end: int) -> Tensor:
    rows, heads, _, width = new.shape
    # Heads of a token side by side: a new token is then one piece of memory a row.
    room = new.new_empty(rows, end + end // 2 + 1, heads, width).transpose(1, 2)
    if start:
        room[..., :start, :] = old
    return room
