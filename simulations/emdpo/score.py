"""Scores of finished runs that the runs do not have themselves, from their models and their worlds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from fedalign.contribution import Contribution, total
from fedalign.data.linear_rankings import LinearRankings, type_name
from fedalign.methods.type_model import PRIOR, all_utilities
from fedalign.metrics.types import assignment_metrics, assignment_sums
from fedalign.objectives.em import mixture_log_likelihood, per_annotator
from fedalign.objectives.plackett_luce import ranking_log_likelihood
from fedalign.rng import Streams
from simulations.emdpo.finished import opened
from simulations.emdpo.policies import distilled, policies

ANOTHER_WORLD = 1000
"""What is added to a run's seed for annotators whom it never saw."""


def bayes(path: Path) -> dict[str, float]:
    """Return how many annotators' types somebody who knew the true utilities would tell from the same judgments."""
    run = opened(path)
    assert isinstance(run.config.data, LinearRankings)
    weights = torch.tensor(run.config.data.weights(Streams(run.config.seed)), dtype=torch.float64)
    names = [type_name(k) for k in range(len(weights))]
    right = people = 0
    for shard in run.shards():
        known, _ = run.phase.divided(shard, run.config.seed)
        utilities = torch.einsum("nsd,kd->kns", shard.features[known].double(), weights)
        likely = ranking_log_likelihood(utilities, run.phase.orders(shard).rows(known))
        told = per_annotator(likely, shard.owner[known], len(shard.people)).argmax(0)
        right += sum(names[k] == kind for k, kind in zip(told.tolist(), shard.types, strict=True))
        people += len(shard.people)
    return {"bayes_accuracy": right / people}


def told(path: Path) -> dict[str, float]:
    """Return how many annotators' types a run tells from its judgments, for runs that tell no metrics themselves."""
    run = opened(path)
    sums = total(
        Contribution(assignment_sums(run.phase.shares_of(run.state, shard, known, run.config.seed), shard.types))
        for shard in run.shards()
        for known in [run.phase.divided(shard, run.config.seed)[0]]
    )
    found = assignment_metrics(sums.tensors)
    return {f"told/{name}": found[name] for name in ("type_accuracy", "largest_type_share")}


def fresh(path: Path) -> dict[str, float]:
    """Return the log-likelihood of a new population's judgments, of whom nothing is known, per judgment.

    All judgments of one annotator are likely together, under the prior: judgments alone cannot say who made them.
    """
    run = opened(path, ANOTHER_WORLD)
    total = judgments = 0.0
    for shard in run.shards():
        found = run.phase.log_likelihoods(run.state, shard, shard.train)
        sums = per_annotator(found, shard.owner[shard.train], len(shard.people))
        total += float(mixture_log_likelihood(sums, run.state[PRIOR].double().log()).sum())
        judgments += len(shard.train)
    return {"fresh_log_likelihood": total / judgments}


def people(path: Path) -> dict[str, float]:
    """Return every training annotator's summed log-likelihood of held-out judgments, and how many there are.

    Under names ``total/<annotator>`` and ``n/<annotator>``; summed up they are the run's own ``test/log_likelihood``.
    """
    run, found = opened(path), {}
    for shard in run.shards():
        known, target = run.phase.divided(shard, run.config.seed)
        shares = run.phase.shares_of(run.state, shard, known, run.config.seed)
        owner = shard.owner[target]
        likely = mixture_log_likelihood(
            run.phase.log_likelihoods(run.state, shard, target), shares.log()[:, owner]
        ).double()
        for number, name in enumerate(shard.people):
            own: Tensor = owner == number
            found[f"total/{name}"] = float(likely[own].sum())
            found[f"n/{name}"] = float(own.sum())
    return found


def alike(path: Path) -> dict[str, float]:
    """Return how alike types are on held-out menus: in what they prefer, and in how firmly they do.

    Utilities are taken less their menu's mean. ``alike_correlation`` is the mean correlation of two types, and
    ``alike_spread`` the least root mean square over the largest: types of equal taste of which one answers at random
    would have a high correlation or a low spread, or both.
    """
    run = opened(path)
    centred = []
    for shard in run.shards():
        found = all_utilities(run.phase.model, run.state, shard, shard.test).double()
        there = (shard.tiers[shard.test] >= 0).expand_as(found)
        mean = (found * there).sum(-1, keepdim=True) / there.sum(-1, keepdim=True)
        centred.append((found - mean)[there].reshape(len(found), -1))
    values = torch.cat(centred, 1)
    if len(values) == 1:
        return {}
    products = values @ values.T
    sizes = products.diag().sqrt()
    apart = ~torch.eye(len(values), dtype=torch.bool)
    return {
        "alike_correlation": float((products / sizes[:, None] / sizes)[apart].mean()),
        "alike_spread": float(sizes.min() / sizes.max()),
    }


SCORES: Mapping[str, Callable[[Path], dict[str, float]]] = {
    "bayes": bayes,
    "told": told,
    "fresh": fresh,
    "people": people,
    "alike": alike,
    "policies": policies,
    "distilled": distilled,
}
