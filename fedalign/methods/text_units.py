"""What a client's DP-SGD protects when it trains a language model: each example, or each user."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fedalign.data.corpus import Example
from fedalign.privacy.dp_sgd import UnitLosses
from fedalign.privacy.local import Unit
from fedalign.rng import Streams

RowLosses = Callable[[Sequence[Example], Sequence[int]], Tensor]
"""From B examples, and a seed for the draws of each, to B losses: a row's depends on its example and seed alone."""


class TextUnits(UnitLosses):
    """Units that are made of examples; each is as many rows in every step.

    Parameters
    ----------
    units : sequence of sequences of Example
        The examples of each unit, at least one.
    rows : int
        Examples of a unit in a step: drawn anew for each where it has more, repeated where it has fewer.
    losses : RowLosses
    streams : Streams
        Of draws that nobody else knows.
    """

    def __init__(self, units: Sequence[Sequence[Example]], rows: int, losses: RowLosses, streams: Streams) -> None:
        self._units, self._rows, self._losses, self._streams = units, rows, losses, streams

    @property
    def units(self) -> int:
        """Units of the client."""
        return len(self._units)

    def losses(self, chosen: Tensor, step: int) -> Tensor:
        """Return the mean loss of each chosen unit's examples of a step, shape (U,)."""
        rows, seeds = [], []
        for unit in chosen.tolist():
            generator = self._streams.torch(f"dp_sgd/{step}/{unit}")
            own = self._units[unit]
            order = torch.randperm(len(own), generator=generator).tolist()
            rows += [own[order[row % len(own)]] for row in range(self._rows)]
            seeds += torch.randint(2**62, (self._rows,), generator=generator).tolist()
        return self._losses(rows, seeds).view(len(chosen), self._rows).mean(1)


def units_of(
    examples: Sequence[Example], unit: Unit, user_examples: int, losses: RowLosses, streams: Streams
) -> TextUnits:
    """Return what is to be protected on a client that holds ``examples``.

    Parameters
    ----------
    examples : sequence of Example
    unit : {"example", "user"}
    user_examples : int
        Examples of a user in a step.
    losses : RowLosses
    streams : Streams
        From :meth:`fedalign.privacy.local.LocalPrivacy.draws`.
    """
    if unit == "example":
        return TextUnits([[example] for example in examples], 1, losses, streams)
    by_user: dict[str, list[Example]] = {}
    for example in examples:
        by_user.setdefault(example.user, []).append(example)
    return TextUnits(list(by_user.values()), user_examples, losses, streams)
