"""What somebody states to want: sides of dimensions, in words or with weights, and as a vector over experts.

A statement names sides, with commas between them: ``praise, ornate, short``. A side may have a weight, ``praise=0.7,
short=0.3``; without one it weighs 1. A dimension that is not spoken of is left alone, and its experts have no part.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fedalign.data.names import suggest
from fedalign.errors import UserError
from fedalign.methods.text_reward import TextReward
from fedalign.models.control import Told
from fedalign.models.text import TextCodec
from fedalign.objectives.expert_mixture import bradley_terry_reward

KEY = "method.dimensions"
NOTHING = ("", "all")
"""Statements of those who state nothing."""


@dataclass(frozen=True)
class Dimension:
    """Something that texts differ in, and whose sides people want.

    Parameters
    ----------
    sides : tuple of str
        Names of experts; with a measure, the side that it scores high, then the one that it scores low.
    measure : TextReward or None
        None where sides are known by name alone: then they can be learnt from judgments, and nothing scores texts.
    scale : float
        Nats of preference for a unit of the measure.
    """

    sides: Annotated[tuple[str, ...], Field(min_length=2)]
    measure: TextReward | None
    scale: Annotated[float, Field(gt=0)]


class Preferences:
    """All that can be stated, about some dimensions.

    Parameters
    ----------
    dimensions : mapping from name to Dimension

    Attributes
    ----------
    names : tuple of str, length n
        Sides, dimension by dimension in the order of their names: the experts in their order.
    statements : tuple of str
        Every combination of one side a dimension, each weighing 1.

    Raises
    ------
    UserError
        If there is none, two sides have one name, or a name cannot be stated or be a folder's.
    """

    def __init__(self, dimensions: Mapping[str, Dimension]) -> None:
        if not dimensions:
            raise UserError(f"{KEY} is empty; give at least one dimension with two sides")
        # By name: a configuration reaches nodes with its keys in another order than the server's.
        self.dimensions = dict(sorted(dimensions.items()))
        self.names = tuple(side for dimension in self.dimensions.values() for side in dimension.sides)
        for name in self.names:
            if self.names.count(name) > 1:
                raise UserError(f"{KEY}: two sides are called {name!r}; give each its own name")
            if name.strip() != name or not name or set(name) & set(",=") or name in NOTHING:
                raise UserError(f"{KEY}: a side is called {name!r}, which cannot be stated; leave out commas and =")
            if "/" in name or name.startswith("."):
                raise UserError(
                    f"{KEY}: a side is called {name!r}, and its expert is saved under its name; leave out / and a dot "
                    "at the beginning"
                )
        self._check_measures()
        combinations = itertools.product(*(dimension.sides for dimension in self.dimensions.values()))
        self.statements = tuple(", ".join(sides) for sides in combinations)

    def vector(self, statement: str, key: str) -> Tensor:
        """Return what a statement wants, float32 of shape (n,); zeros where nothing is stated.

        Parameters
        ----------
        statement : str
        key : str
            Where it stands, for error messages.

        Raises
        ------
        UserError
            If it names no side that is known, one twice, or a weight that is none.
        """
        found = torch.zeros(len(self.names))
        if statement.strip() in NOTHING:
            return found
        for part in statement.split(","):
            name, equals, number = (piece.strip() for piece in part.partition("="))
            if name not in self.names:
                raise UserError(f"{key}={statement}: there is no side {name!r}{suggest(name, self.names)}")
            place = self.names.index(name)
            if found[place] > 0:
                raise UserError(f"{key}={statement}: {name} is stated twice; state it once")
            found[place] = _weight(number if equals else "1", f"{key}={statement}")
        if not bool((found > 0).any()):
            raise UserError(f"{key}={statement}: no side has a weight above 0; give one of them more")
        return found

    def statement(self, vector: Tensor) -> str:
        """Return a vector in words; sides that weigh 0 are left out, and weights of 1."""
        parts = []
        for name, weight in zip(self.names, vector.tolist(), strict=True):
            if weight:
                parts.append(name if weight == 1 else f"{name}={weight:g}")
        return ", ".join(parts)

    def told(self, vectors: Tensor, fallback: Tensor, codec: TextCodec | None, device: torch.device) -> Told:
        """Return what a control model is told; weight that is fixed is on experts that are active.

        Parameters
        ----------
        vectors : float32 tensor, shape (B, n)
            Rows of zeros state nothing: weights are then those of ``fallback``.
        fallback : float32 tensor, shape (n,)
            On the simplex.
        codec : TextCodec or None
            What the control model's statements are written in; None where it does not read them.
        device : torch.device
        """
        silent = vectors.sum(1) == 0
        nothing = torch.zeros(len(vectors), 0, dtype=torch.int64)
        opening = nothing, nothing
        if codec is not None:
            # A statement ends as a sentence does, so that the text after it begins anew.
            opening = codec.prompts([f"{self.statement(vector)}. " for vector in vectors], 2**31)
        told = Told(
            vectors,
            torch.where(silent[:, None], fallback > 0, vectors > 0),
            self.numbers(vectors),
            opening,
            torch.where(silent[:, None], fallback, 0.0),
        )
        return told.map(lambda tensor: tensor.to(device))

    def numbers(self, vectors: Tensor) -> Tensor:
        """Return the place of each preference among ``statements``, int64 of shape (B,); -1 where it has none."""
        known = torch.stack([self.vector(statement, KEY) for statement in self.statements])
        same = (vectors[:, None] == known).all(2)
        return torch.where(same.any(1), same.int().argmax(1), -1)

    def _check_measures(self) -> None:
        for name, dimension in self.dimensions.items():
            if dimension.measure is not None and len(dimension.sides) != 2:
                raise UserError(
                    f"{KEY}.{name}.sides={list(dimension.sides)}: a measure has a high and a low side; name two, or "
                    f"set {KEY}.{name}.measure=null"
                )


class SideRewards:
    """What responses are worth to every side, and to a preference.

    Parameters
    ----------
    preferences : Preferences
        Every dimension has a measure.
    otherwise : str
        What else would do than a measure, for the error message.

    Raises
    ------
    UserError
        If one has none.
    """

    def __init__(self, preferences: Preferences, otherwise: str = "") -> None:
        self._dimensions = preferences.dimensions
        for name, dimension in self._dimensions.items():
            if dimension.measure is None:
                fix = f"set a measure, or {otherwise}" if otherwise else "set a measure"
                raise UserError(f"{KEY}.{name}.measure=null: nothing says what texts are worth; {fix}")

    def prepare(self) -> None:
        """Load what measures need.

        Raises
        ------
        UserError
            If something cannot be had.
        """
        for dimension in self._dimensions.values():
            assert dimension.measure is not None
            dimension.measure.prepare()

    def measured(self, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        """Return each dimension's measure times its scale, float32 of shape (B, D)."""
        columns = []
        for dimension in self._dimensions.values():
            assert dimension.measure is not None
            columns.append(dimension.scale * dimension.measure.score(prompts, responses))
        return torch.stack(columns, 1)

    def sides(self, measured: Tensor, reference: Tensor | None) -> Tensor:
        """Return the reward of every side, in [0, 1] (Zhou et al., Eq. 2).

        Parameters
        ----------
        measured : float32 tensor, shape (B, D)
        reference : float32 tensor, shape (B, D), or None
            Of a reference response to the same prompt; None compares with a measure of 0.

        Returns
        -------
        float32 tensor, shape (B, n)
        """
        high = bradley_terry_reward(measured, torch.zeros(()) if reference is None else reference, 1.0)
        return torch.stack([high, 1.0 - high], 2).flatten(1)


def combined(sides: Tensor, vectors: Tensor) -> Tensor:
    """Return what responses are worth to preferences: the weighted mean of the sides that are wanted.

    Parameters
    ----------
    sides : float tensor, shape (B, n)
    vectors : float tensor, shape (B, n)
        No row is all 0.

    Returns
    -------
    float tensor, shape (B,)
    """
    return (sides * vectors).sum(1) / vectors.sum(1)


def _weight(text: str, place: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not (value >= 0 and math.isfinite(value)):
        raise UserError(f"{place}: {text!r} is no weight; give a number of at least 0, such as praise=0.7")
    return value
