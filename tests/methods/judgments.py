"""Small shards of judgments made from arrays, without any of the package's data sources."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedalign.data.pairs import Judgments, PairShard, Role

FEATURES = 4
GROUPS = ("left", "right")


def judgments(
    person: str,
    features: Tensor,
    group: str = "left",
    test: int = 0,
    categories: Sequence[str] | None = None,
    lengths: Tensor | None = None,
    tie: Tensor | None = None,
    conflict: Tensor | None = None,
) -> Judgments:
    """Return a person's judgments; the last ``test`` of them are held out.

    Parameters
    ----------
    features : Tensor, shape (J, 2, dim)
        The chosen response first.
    """
    count = len(features)
    nothing = torch.zeros(count, dtype=torch.bool)
    return Judgments(
        person=person,
        group=group,
        prompts=tuple(f"{person}: prompt {place}" for place in range(count)),
        categories=(group,) * count if categories is None else tuple(categories),
        features=features.float(),
        lengths=torch.ones(count, 2) if lengths is None else lengths.float(),
        tie=nothing if tie is None else tie,
        conflict=nothing if conflict is None else conflict,
        train=torch.arange(count - test),
        test=torch.arange(count - test, count),
    )


def random_person(person: str, count: int, seed: int, test: int = 0, group: str = "left") -> Judgments:
    """Return judgments without any pattern."""
    values = np.random.default_rng(seed).normal(size=(count, 2, FEATURES))
    return judgments(person, torch.tensor(values), group, test)


def shard(*people: Judgments, client: str | None = None, role: Role = Role.TRAIN) -> PairShard:
    """Return a client that holds the people, named after the first unless told."""
    return PairShard(people[0].person if client is None else client, role, people, prompt_tail=400)


def linear_person(person: str, group: str, train: int, test: int, seed: int, conflict_share: float = 0.5) -> Judgments:
    """Return judgments of somebody whose reward is linear in the first two features.

    Everybody wants the second feature high. On a conflict pair the responses differ in the first one alone, which
    the group ``left`` wants high and ``right`` wants low. The other features are noise.
    """
    generator = np.random.default_rng(seed)
    count = train + test
    values = generator.normal(size=(count, 2, FEATURES))
    values[:, :, :2] = 0.0
    conflict = generator.random(count) < conflict_share
    axis = np.where(conflict, 0, 1)
    sign = np.where(conflict & (group == "right"), -1.0, 1.0)
    rows = np.arange(count)
    values[rows, 0, axis], values[rows, 1, axis] = 1.5 * sign, -1.5 * sign
    return judgments(person, torch.tensor(0.5 * values), group, test, conflict=torch.tensor(conflict))


def linear_world(people: int, train: int, test: int, seed: int = 0, role: Role = Role.TRAIN) -> list[PairShard]:
    """Return one client a person; the two opposed groups take turns."""
    return [
        shard(linear_person(f"{role}-{place}", GROUPS[place % 2], train, test, 1000 * seed + place), role=role)
        for place in range(people)
    ]


def silo(shards: Sequence[PairShard], client: str = "silo") -> PairShard:
    """Return a client that holds the people of all the shards."""
    return shard(*(person for each in shards for person in each.people), client=client)


def turned(person: Judgments, index: Tensor) -> Judgments:
    """Return the person with the judgments at ``index`` the other way round, longer and partly a tie."""
    features, lengths = person.features.clone(), person.lengths.clone()
    features[index], lengths[index] = 3.0 * features[index].flip(1), lengths[index].flip(1) + 5.0
    tie = person.tie.clone()
    tie[index[:1]] = True
    return dataclasses.replace(person, features=features, lengths=lengths, tie=tie)
