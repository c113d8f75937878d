"""Which prototype a person is pulled to, and the loss that pulls."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from fedalign.contribution import State
from fedalign.errors import UserError
from fedalign.methods.latent_prior import BANK, person_id
from fedalign.methods.prototypes import LABEL, Prototypes
from fedalign.objectives.prototypes import orthogonality, prototype_pull
from fedalign.rng import Streams

from .judgments import random_person
from .selectors import method

DIM = 4


def prototypes(**changes: Any) -> Prototypes:
    known = method().prototypes
    assert known is not None
    plain: dict[str, Any] = {"count": 2, "scale": 3.0, "pull": 1.0, "orthogonality": 0.5, "warmup": 0}
    return dataclasses.replace(known, **{**plain, "labels": "clusters", "categories": None, **changes})


def bank(means: dict[str, list[float]], anchors: torch.Tensor | None = None) -> State:
    entries = {
        f"{BANK}{person_id(person)}": torch.cat([torch.tensor([9.0]), torch.tensor(mean), torch.zeros(DIM)])
        for person, mean in means.items()
    }
    return {**entries, "prototypes": 3.0 * torch.eye(DIM)[:2] if anchors is None else anchors}


LEFT, RIGHT = [2.0, -1.0, 0.0, 0.0], [-1.0, 2.0, 0.0, 0.0]
FOUR = {"ann": LEFT, "ben": RIGHT, "cid": [x + 0.1 for x in LEFT], "dee": [x + 0.1 for x in RIGHT]}


def labels(found: State) -> dict[str, int]:
    return {
        person: int(found[f"{LABEL}{person_id(person)}"]) for person in FOUR if f"{LABEL}{person_id(person)}" in found
    }


def test_prototypes_start_orthogonal_by_the_seed() -> None:
    settings = prototypes()
    first = settings.initial(DIM, Streams(1))
    assert torch.equal(first, settings.initial(DIM, Streams(1)))
    assert not torch.equal(first, settings.initial(DIM, Streams(2)))
    torch.testing.assert_close(first @ first.T, 9 * torch.eye(2), atol=1e-4, rtol=0)


def test_more_prototypes_than_dimensions_do_not_fit() -> None:
    with pytest.raises(UserError, match=r"method\.prototypes\.count=5 is above model\.latent=4"):
        prototypes(count=5).initial(DIM, Streams(0))


def test_clusters_take_the_prototype_that_they_lie_towards() -> None:
    assert labels(prototypes().labels_of(bank(FOUR))) == {"ann": 0, "ben": 1, "cid": 0, "dee": 1}
    swapped = bank(FOUR, 3.0 * torch.eye(DIM)[:2].flip(0))
    assert labels(prototypes().labels_of(swapped)) == {"ann": 1, "ben": 0, "cid": 1, "dee": 0}


def test_clusters_are_balanced() -> None:
    many = {f"p{place}": LEFT if place < 7 else RIGHT for place in range(8)}
    found = prototypes().labels_of(bank(many))
    values = [int(found[f"{LABEL}{person_id(person)}"]) for person in many]
    assert sorted(values) == [0] * 4 + [1] * 4


def test_labels_keep_their_meaning_while_people_move_a_little() -> None:
    once = labels(prototypes().labels_of(bank(FOUR)))
    moved = {person: [x * 0.8 - 0.05 for x in mean] for person, mean in reversed(FOUR.items())}
    assert labels(prototypes().labels_of(bank(moved))) == once


def test_fewer_people_than_prototypes_have_no_labels() -> None:
    assert prototypes().labels_of(bank({"ann": LEFT})) == {}
    assert prototypes().labels_of({"prototypes": torch.eye(DIM)[:2]}) == {}


@pytest.mark.parametrize("kind", ["nearest", "category"])
def test_the_server_labels_nobody_where_it_is_not_asked_to(kind: str) -> None:
    categories = ("left", "right") if kind == "category" else None
    assert prototypes(labels=kind, categories=categories).labels_of(bank(FOUR)) == {}


def test_a_label_is_looked_up_by_the_person_s_number() -> None:
    settings, state = prototypes(), bank(FOUR)
    state.update(settings.labels_of(state))
    assert settings.label(state, random_person("ben", 3, 0)) == 1
    assert settings.label(state, random_person("ann", 3, 0)) == 0
    assert settings.label(state, random_person("uma", 3, 0)) is None
    assert settings.label({}, random_person("ann", 3, 0)) is None


def test_true_categories_are_an_upper_bound_that_must_be_complete() -> None:
    settings = prototypes(labels="category", categories=("right", "left"))
    assert settings.label({}, random_person("ann", 3, 0, group="left")) == 1
    assert settings.label({}, random_person("ann", 3, 0, group="right")) == 0
    with pytest.raises(UserError, match=r"method\.prototypes\.categories: 'lefd' is not among them.*'left'"):
        settings.label({}, random_person("ann", 3, 0, group="lefd"))
    for wrong in (None, ("left",), ("left", "right", "middle")):
        with pytest.raises(UserError, match=r"labels=category needs one category for each of 2 prototypes"):
            prototypes(labels="category", categories=wrong)


def test_the_loss_is_pull_and_orthogonality() -> None:
    settings = prototypes(pull=2.0)
    generator = torch.Generator().manual_seed(0)
    z, anchors = torch.randn(5, DIM, generator=generator), torch.randn(2, DIM, generator=generator)
    people = {"ann": (slice(0, 2), 1), "ben": (slice(2, 3), 0), "cid": (slice(3, 5), None)}
    nearest = (z[3:] @ anchors.T).argmax(1).tolist()
    pull = prototype_pull(z, anchors, torch.tensor([1, 1, 0, *nearest])).mean()
    expected = 2.0 * pull + 0.5 * orthogonality(anchors, 3.0)
    torch.testing.assert_close(settings.loss(z, anchors, people, 0.0), expected)


def test_there_is_no_pull_in_the_first_rounds() -> None:
    settings = prototypes(warmup=3)
    z, anchors = torch.ones(1, DIM), torch.eye(DIM)[:2]
    alone = 0.5 * orthogonality(anchors, 3.0)
    assert torch.equal(settings.loss(z, anchors, {"ann": (slice(0, 1), 0)}, 2.9), alone)
    assert float(settings.loss(z, anchors, {"ann": (slice(0, 1), 0)}, 3.0)) > float(alone)
