"""What a phase's contributions may hold: names and shapes known in advance, and their order in one flat vector."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from fedalign.contribution import DELTA, WEIGHT, Contribution, StackedContribution, State, is_finite

Vector = npt.NDArray[np.float64]

_LONGEST = 300
"""Characters of a name that only its sender knows."""


@dataclass(frozen=True)
class Template:
    """The tensors of a contribution, by name and shape. They are public and do not depend on anybody's data.

    Secure sums and noise need it: what travels is a vector of fixed length, whatever a client has to say.

    Parameters
    ----------
    tensors : mapping from name to shape
        In the order of the flat vector.
    """

    tensors: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @staticmethod
    def of_deltas(parameters: Mapping[str, torch.Tensor]) -> Template:
        """Return the template of weighted deltas for ``parameters``."""
        return Template({DELTA + name: tuple(value.shape) for name, value in parameters.items()})

    def __or__(self, other: Template) -> Template:
        """Return the template of both."""
        return Template({**self.tensors, **other.tensors})

    @property
    def size(self) -> int:
        """Length of the flat vector."""
        return sum(math.prod(shape) for shape in self.tensors.values())

    def check(self, contribution: Contribution) -> None:
        """Refuse a contribution that must not be added.

        Raises
        ------
        ValueError
            If a tensor is not in the template, has another shape, or holds NaN or Inf; if a scalar does, or the
            weight is negative.
        """
        self._check_shapes({name: tensor.shape for name, tensor in contribution.tensors.items()})
        for name, tensor in contribution.tensors.items():
            if not is_finite(tensor):
                raise ValueError(f"{name}: holds NaN or Inf")
        for name, value in contribution.scalars.items():
            if not math.isfinite(value):
                raise ValueError(f"{name}: is {value}")
        if contribution.scalars.get(WEIGHT, 0.0) < 0:
            raise ValueError(f"{WEIGHT}: is {contribution.scalars[WEIGHT]}")

    def check_stacked(self, stacked: StackedContribution) -> dict[int, Exception]:
        """Return why clients of a stack must not be added, by place; where all is well, nothing.

        What all of them have is looked at but for NaN and Inf, which show in the total: see :meth:`check` of one.
        """
        found: dict[int, Exception] = {}
        shapes = {name: tensor.shape[1:] for name, tensor in stacked.tensors.items()}
        for place, own in enumerate(stacked.own):
            if place not in stacked.failures:
                try:
                    self._check_shapes(shapes)
                    self.check(own)
                except ValueError as error:
                    found[place] = error
        return found

    def check_open(
        self, contribution: Contribution, shapes: Mapping[str, tuple[int, ...]], numbered: bool = False
    ) -> None:
        """Refuse a contribution with anything but the template's tensors and others, whose names only begin as known.

        Parameters
        ----------
        contribution : Contribution
        shapes : mapping from prefix to shape
            What else there may be.
        numbered : bool
            Whether what follows a prefix is a number of 63 bits.

        Raises
        ------
        ValueError
            Naming the tensor.
        """
        known = {name: tensor for name, tensor in contribution.tensors.items() if name in self.tensors}
        self.check(Contribution(known, contribution.scalars))
        for name in contribution.tensors.keys() - known.keys():
            prefix = next((start for start in shapes if name.startswith(start)), None)
            rest = "" if prefix is None else name.removeprefix(prefix)
            if prefix is None or not 0 < len(rest) <= _LONGEST or (numbered and not _is_number(rest)):
                raise ValueError(f"{name[:80]}: no such sum in this phase")
            tensor = contribution.tensors[name]
            if tuple(tensor.shape) != tuple(shapes[prefix]):
                raise ValueError(f"{name[:80]}: shape {tuple(tensor.shape)[:4]}, not {tuple(shapes[prefix])}")
            if not is_finite(tensor):
                raise ValueError(f"{name[:80]}: holds NaN or Inf")

    def flatten(self, contribution: Contribution) -> Vector:
        """Return the contribution's tensors as one float64 vector; zero where it lacks one."""
        parts = [
            contribution.tensors[name].detach().cpu().to(torch.float64).reshape(-1).numpy()
            if name in contribution.tensors
            else np.zeros(math.prod(shape))
            for name, shape in self.tensors.items()
        ]
        return np.concatenate(parts) if parts else np.zeros(0)

    def unflatten(self, vector: Vector, dtype: torch.dtype = torch.float64) -> State:
        """Return the named tensors of a flat vector.

        Raises
        ------
        ValueError
            If the vector has another length.
        """
        if vector.shape != (self.size,):
            raise ValueError(f"a vector of shape {vector.shape}, but the template holds {self.size} numbers")
        tensors: State = {}
        start = 0
        for name, shape in self.tensors.items():
            stop = start + math.prod(shape)
            tensors[name] = torch.from_numpy(vector[start:stop].copy()).reshape(shape).to(dtype)
            start = stop
        return tensors

    def scales(self, factors: Mapping[str, float]) -> Vector:
        """Return one factor for every number of the flat vector, from factors by name prefix; 1 where none fits."""
        parts = []
        for name, shape in self.tensors.items():
            fitting = [prefix for prefix in factors if name.startswith(prefix)]
            factor = factors[max(fitting, key=len)] if fitting else 1.0
            parts.append(np.full(math.prod(shape), factor))
        return np.concatenate(parts) if parts else np.zeros(0)

    def _check_shapes(self, shapes: Mapping[str, Sequence[int]]) -> None:
        for name, shape in shapes.items():
            if name not in self.tensors:
                raise ValueError(f"{name}: no such sum in this phase")
            if tuple(shape) != tuple(self.tensors[name]):
                raise ValueError(f"{name}: shape {tuple(shape)}, not {tuple(self.tensors[name])}")


def _is_number(text: str) -> bool:
    return len(text) < 20 and text.isascii() and text.isdecimal() and int(text) < 2**63
