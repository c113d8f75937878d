"""The arms that EM-DPO is compared with: what each changes of its settings, what it costs, and what it trains."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import pytest
import torch

from fedalign.config import conf_directory, parse, resolve
from fedalign.contribution import Contribution, State
from fedalign.data.rankings import RankingShard
from fedalign.methods.base import Phase, Setting
from fedalign.methods.em import MASS, EMPhase
from fedalign.methods.emdpo import EMDPO
from fedalign.methods.type_model import PRIOR, count, named
from fedalign.rng import Streams
from tests.configs import configured

from .type_worlds import random_shard

DIMENSION = 4
ARMS: dict[str, dict[str, Any]] = {
    "dpo": {"types": 1, "assignment": "Together", "start": "RandomStart", "cross_fit": False},
    "emdpo_in_sample": {"types": 3, "assignment": "Posterior", "start": "ProbeStart", "cross_fit": False},
    "cluster_dpo": {"types": 3, "assignment": "Clusters", "start": "ProbeStart", "cross_fit": False},
    "ifca_dpo": {"types": 3, "assignment": "Hardest", "start": "RandomStart", "cross_fit": False},
    "fedem_dpo": {"types": 3, "assignment": "PerJudgment", "start": "RandomStart", "cross_fit": False},
    "oracle_types_dpo": {"types": 3, "assignment": "KnownTypes", "start": "RandomStart", "cross_fit": False},
    "group_robust_dpo": {"types": 1, "assignment": "Together", "start": "RandomStart", "cross_fit": True},
    "emdpo_chosen": {"types": 4, "assignment": "Posterior", "start": "ProbeStart", "cross_fit": True},
}
"""What makes each arm."""

COMPUTE = ("local", "batch", "weight", "beta", "likelihood", "lengths", "evaluation", "prior_rate", "least_mass")
SETTING = ("data", "partition", "federation", "model", "encoder")
"""What arms must share for a comparison of them to mean anything: settings of the method, and other parts of a run."""

TRAINED = {"ifca_dpo": 1, "oracle_types_dpo": 1, "fedem_dpo": 3}
"""Types that a client of the world below trains in a round."""

SMALL = ("model=linear_utility", "method/fair=none", "method.folds.validation=0", "method.local.steps=1")


@functools.cache
def resolved(name: str) -> dict[str, Any]:
    """Return an arm's configuration."""
    return resolve([f"method={name}"])


@functools.cache
def arm(name: str) -> EMDPO:
    """Return an arm's method."""
    method = parse(resolved(name)).method
    assert isinstance(method, EMDPO)
    return method


def phases(name: str) -> list[Phase[RankingShard]]:
    """Return an arm's phases on linear types."""
    config = configured(f"method={name}", *SMALL)
    return list(config.method.phases(Setting(4, DIMENSION, config.model, config.encoder)))


def em(name: str) -> EMPhase:
    """Return an arm's main phase."""
    found = phases(name)[-1]
    assert isinstance(found, EMPhase)
    return found


def reply(phase: EMPhase, client: RankingShard) -> tuple[State, Contribution]:
    """Return three clearly different types, or as many of them as there are, and a client's answer to them."""
    state = phase.initial(Streams(0, "em"), {})
    for k in range(count(state)):
        state |= named({"score.weight": 3.0 * torch.eye(3, DIMENSION)[k : k + 1]}, k)
    return state, phase.local(state, client, Streams(0, "em", 1, client.client), {})


@pytest.fixture(scope="module")
def client() -> RankingShard:
    """Return one annotator, of criticism."""
    both = random_shard(0, 24, features=DIMENSION)
    return dataclasses.replace(both, people=("p",), types=("criticism",), owner=torch.zeros(24, dtype=torch.int64))


@pytest.mark.parametrize("name", ARMS)
def test_an_arm_is_what_it_says(name: str) -> None:
    method, expected = arm(name), ARMS[name]
    assert method.name == name
    assert method.types == expected["types"]
    assert type(method.assignment).__name__ == expected["assignment"]
    assert type(method.start).__name__ == expected["start"]
    assert method.folds.cross_fit == expected["cross_fit"]


@pytest.mark.parametrize("name", ARMS)
def test_arms_train_as_em_dpo_does(name: str) -> None:
    ours, theirs = arm(name), arm("emdpo")
    assert all(getattr(ours, field) == getattr(theirs, field) for field in COMPUTE)
    assert all(
        resolved(name)[group] == resolved("emdpo")[group]
        for group in ("data", "partition", "federation", "model", "encoder")
    )


def test_types_told_in_sample_are_the_one_difference_of_their_arm() -> None:
    ours, theirs = arm("emdpo_in_sample"), arm("emdpo")
    folds = dataclasses.replace(theirs.folds, cross_fit=False)
    assert ours == dataclasses.replace(theirs, name="emdpo_in_sample", folds=folds)


@pytest.mark.parametrize("name", ["oracle_types_dpo", "group_robust_dpo"])
def test_arms_that_are_told_true_types_say_that_they_are_upper_bounds(name: str) -> None:
    first = (conf_directory() / "method" / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# UPPER BOUND")


@pytest.mark.parametrize("name", TRAINED)
def test_a_client_trains_as_many_types_as_its_arm_says(name: str, client: RankingShard) -> None:
    _, sent = reply(em(name), client)
    assert sum(key.startswith("delta/") for key in sent.tensors) == TRAINED[name]


def test_ifca_trains_the_type_that_judgments_are_likeliest_under(client: RankingShard) -> None:
    phase = em("ifca_dpo")
    state, sent = reply(phase, client)
    likely = phase.log_likelihoods(state, client, client.train).sum(1)
    assert sent.tensors[MASS].tolist() == torch.nn.functional.one_hot(likely.argmax(), 3).tolist()


def test_the_oracle_trains_the_true_type(client: RankingShard) -> None:
    _, sent = reply(em("oracle_types_dpo"), client)
    assert sent.tensors[MASS].tolist() == [0, 1, 0]
    assert [key for key in sent.tensors if key.startswith("delta/")] == ["delta/types.1.score.weight"]


def test_fedem_weighs_judgments_one_by_one(client: RankingShard) -> None:
    """Against EM on one person's mixture weights, by hand."""
    phase = em("fedem_dpo")
    state, sent = reply(phase, client)
    likely = phase.log_likelihoods(state, client, client.train).double().exp()
    weights = torch.full((3,), 1 / 3, dtype=torch.float64)
    for _ in range(5):
        joint = weights[:, None] * likely
        weights = (joint / joint.sum(0)).mean(1)
    joint = weights[:, None] * likely
    assert torch.allclose(sent.tensors[MASS].double(), (joint / joint.sum(0)).mean(1), atol=1e-5)


def test_dpo_is_one_policy_that_begins_as_its_model_does(client: RankingShard) -> None:
    (found,) = phases("dpo")
    assert isinstance(found, EMPhase)
    state = found.initial(Streams(0, "em"), {})
    fresh = found.model.fresh(Streams(0, "em").at(client="type 0"))
    assert torch.equal(state["types.0.score.weight"], fresh["score.weight"])
    assert state[PRIOR].tolist() == [1.0]
    _, sent = reply(found, client)
    assert sent.tensors[MASS].tolist() == [1.0]


def test_clusters_train_their_own_types_in_every_round() -> None:
    start, found = phases("cluster_dpo")
    assert (start.name, found.name) == ("start", "em")
    assert isinstance(found, EMPhase)
    assert found.method.assignment.needs_clusters


@pytest.mark.parametrize("name", ["oracle_types_dpo", "cluster_dpo", "ifca_dpo", "fedem_dpo"])
def test_types_of_baselines_are_never_begun_anew(name: str) -> None:
    assert arm(name).collapse.action == "warn"
