"""Rankings of vectors by linear utilities: a world in which models of types are exactly right.

An item is a vector x in R^d and is worth <w_k, x> to somebody of type k; judgments follow the Plackett-Luce model.
Three populations:

``random``
    Items are standard normal, and w_k is ``scale`` times a random direction.
``mirrored``
    The items +e, 0 and -e of one axis e; half of the people have w = scale * e and the others w = -scale * e.
``indifferent``
    The same items and w = 0.

The last two say why pairs of unknown judges do not identify a population: every pair is won half of the time in both.
Of menus of three, somebody mirrored ranks the item 0 first with probability 1 / (1 + 2 cosh(scale)), somebody
indifferent with 1/3. A response's text spells its vector, which is what models see of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field

from fedalign.data.ranking_forms import Form, Tiers, check_form, drawn_tiers, told, with_ties
from fedalign.data.ranking_world import dealt, person, world_set
from fedalign.data.rankings import Menu, Ranking, RankingSet, RankingSource, Split
from fedalign.errors import UserError
from fedalign.rng import Streams

Population = Literal["random", "mirrored", "indifferent"]

PROBE_RESPONSES = 3
"""Items of a public menu."""

_TYPES: dict[Population, int] = {"mirrored": 2, "indifferent": 1}
_AXIS = (1.0, 0.0, -1.0)

_Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LinearRankings(RankingSource):
    """Judgments drawn from a linear world (see the module).

    Parameters
    ----------
    name : str
    prompt_tail : int
        Unused: vectors are not encoded.
    annotators : int
        How many people, called annotator-001, ...
    types : int
        K: how many types, called type-1, ...; 2 if the population is mirrored and 1 if it is indifferent.
    shares : sequence of float, length K, or None
        Types' shares of the people, relative to the sum; None makes types equal.
    population : {"random", "mirrored", "indifferent"}
    dimension : int
        d.
    scale : float
        Length of every w_k.
    train_judgments, test_judgments : int
        Judgments of each person; those in which all items tie are dropped and counted.
    responses : int
        Items of a menu; at most three of one axis.
    form : {"pair", "best", "full", "top"}
        What a judgment tells (``ranking_forms``).
    top : int or None
        How many items a judgment of form ``top`` tells.
    ties : float
        Probability that neighbours in the order of a training judgment are told as a tie.
    test_exact : bool
        Whether held-out judgments are without noise.
    probe_menus : int
        How many public menus of three items everybody ranks completely.
    world_seed : int or None
        Seed of the world; None takes the run's seed.
    """

    name: str
    prompt_tail: Annotated[int, Field(ge=1)]
    annotators: Annotated[int, Field(ge=1)]
    types: Annotated[int, Field(ge=1)]
    shares: Annotated[tuple[Annotated[float, Field(gt=0.0)], ...], Field(min_length=1)] | None
    population: Population
    dimension: Annotated[int, Field(ge=1)]
    scale: Annotated[float, Field(ge=0.0)]
    train_judgments: Annotated[int, Field(ge=0)]
    test_judgments: Annotated[int, Field(ge=0)]
    responses: Annotated[int, Field(ge=2, le=16)]
    form: Form
    top: int | None
    ties: Annotated[float, Field(ge=0.0, lt=1.0)]
    test_exact: bool
    probe_menus: Annotated[int, Field(ge=0)]
    world_seed: int | None

    def load(self, streams: Streams) -> RankingSet:
        """Draw the world.

        Raises
        ------
        UserError
            If settings do not fit each other.
        """
        self._check()
        world = self._world(streams)
        weights = self.weights(streams)
        shares = (1.0,) * self.types if self.shares is None else self.shares
        people = {person(i): k for i, k in enumerate(dealt(shares, self.annotators))}
        judged = [
            ranking
            for name, k in people.items()
            for ranking in self._judgments(name, k, weights[k], world.at(client=name))
        ]
        menus = self._menus(self.probe_menus, PROBE_RESPONSES, world.numpy("linear_rankings/probe"))
        answers = {name: self._answers(menus, weights[k], world.at(client=name)) for name, k in people.items()}
        probe = [Menu(_prompt(i), tuple(map(spelt, menu))) for i, menu in enumerate(menus)]
        return world_set(judged, {name: type_name(k) for name, k in people.items()}, probe, answers)

    def vectors(self, rankings: Sequence[Ranking]) -> Sequence[torch.Tensor]:
        """Return the items that the responses spell, a float32 tensor of shape (S, d) for every ranking."""
        return [
            torch.tensor([read_item(response) for response in ranking.responses], dtype=torch.float32)
            for ranking in rankings
        ]

    def weights(self, streams: Streams) -> _Array:
        """Return the types' true weights w, shape (K, d); for upper bounds and for tests."""
        if self.population == "indifferent":
            return np.zeros((1, self.dimension))
        if self.population == "mirrored":
            axis = np.eye(self.dimension)[0]
            return self.scale * np.stack([axis, -axis])
        drawn = self._world(streams).numpy("linear_rankings/weights").standard_normal((self.types, self.dimension))
        directions: _Array = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
        return self.scale * directions

    def _world(self, streams: Streams) -> Streams:
        return streams if self.world_seed is None else Streams(seed=self.world_seed)

    def _judgments(self, name: str, k: int, weight: _Array, here: Streams) -> list[Ranking]:
        """Return what one person judges, training judgments first."""
        rng = here.numpy("linear_rankings/annotator")
        train: list[Split] = ["train"] * self.train_judgments
        test: list[Split] = ["test"] * self.test_judgments
        splits = train + test
        rankings = []
        for number, (split, menu) in enumerate(zip(splits, self._menus(len(splits), self.responses, rng), strict=True)):
            tiers = drawn_tiers(menu @ weight, None if split == "test" and self.test_exact else 1.0, rng)
            if split == "train":
                tiers = with_ties(tiers, self.ties, rng)
            items = tuple(map(spelt, menu))
            rankings.append(
                Ranking(_prompt(number), items, told(tiers, self.form, self.top), split, type_name(k), name)
            )
        return rankings

    def _menus(self, menus: int, size: int, rng: np.random.Generator) -> _Array:
        """Return the items of menus, shape (menus, size, d), as their texts spell them."""
        if self.population == "random":
            return np.round(rng.standard_normal((menus, size, self.dimension)), 4)
        places = rng.permuted(np.tile(_AXIS, (menus, 1)), axis=1)[:, :size]
        items = np.zeros((menus, size, self.dimension))
        items[..., 0] = places
        return items

    def _answers(self, menus: _Array, weight: _Array, here: Streams) -> list[Tiers]:
        rng = here.numpy("linear_rankings/answers")
        return [drawn_tiers(menu @ weight, 1.0, rng) for menu in menus]

    def _check(self) -> None:
        check_form(self.form, self.responses, self.top)
        needed = _TYPES.get(self.population, self.types)
        if self.types != needed:
            raise UserError(f"data.types={self.types}: population {self.population} has types={needed}; set that")
        if self.shares is not None and len(self.shares) != self.types:
            raise UserError(f"data.shares has {len(self.shares)} numbers; give data.types={self.types}, or null")
        if self.population != "random" and self.responses > len(_AXIS):
            raise UserError(f"data.responses={self.responses}: population {self.population} has 3 items; set 2 or 3")


def type_name(k: int) -> str:
    """Return the name of a type; numbers are from 0 and names from ``type-1``."""
    return f"type-{k + 1}"


def spelt(item: Sequence[float] | _Array) -> str:
    """Return an item as a text: its coordinates with four decimals."""
    return " ".join(f"{coordinate:+.4f}" for coordinate in item)


def read_item(text: str) -> list[float]:
    """Return the item that a text spells."""
    return [float(coordinate) for coordinate in text.split()]


def _prompt(number: int) -> str:
    return f"Menu {number + 1}"


__all__ = ["PROBE_RESPONSES", "LinearRankings", "Population", "read_item", "spelt", "type_name"]
