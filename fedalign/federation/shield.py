"""What a client does to its contribution before it leaves: check, bound, and take out what is not to be told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fedalign.contribution import DELTA, WEIGHT, Contribution, StackedContribution, is_finite
from fedalign.federation.messages import Terms
from fedalign.metrics.record import METRIC, MetricSum, decode, encode
from fedalign.privacy.adaptive_clipping import norm_bit
from fedalign.privacy.metric_release import OpenMetrics
from fedalign.privacy.protection import Protection
from fedalign.template import Template, Vector

NORM_BIT = "norm_bit"
EVERYBODY = "all"
"""Stands for the group where metrics are not told by group."""


@dataclass(frozen=True)
class Shielded:
    """A client's contribution to training, bounded.

    Parameters
    ----------
    vector : float64 array, shape (template.size,)
    extras : dict from str to float
        What is added up beside it: the weight, and the norm bit where the bound adapts.
    metrics : dict from str to float
        Metric sums that are told as they are.
    """

    vector: Vector
    extras: dict[str, float]
    metrics: dict[str, float]

    def to_contribution(self, template: Template) -> Contribution:
        """Return what travels where the sum is not secure."""
        return Contribution(template.unflatten(self.vector, torch.float32), {**self.extras, **self.metrics})


def shield(contribution: Contribution, template: Template, privacy: Protection, terms: Terms) -> Shielded:
    """Return a client's contribution to training as the run's guarantee asks for it.

    Raises
    ------
    ValueError
        If the contribution is not one that may be added (:meth:`Template.check`).
    """
    sums = {name: value for name, value in contribution.scalars.items() if name == WEIGHT}
    told = Contribution(contribution.tensors, sums)
    metrics = {}
    if isinstance(privacy.metrics, OpenMetrics):
        metrics = {name: value for name, value in contribution.scalars.items() if name.startswith(METRIC)}
    template.check(Contribution(told.tensors, {**sums, **metrics}))
    if privacy.clip is not None:
        vector, norm = privacy.clip.clip(told, template, terms.bound)
        extras = {WEIGHT: 1.0}
        if privacy.clip.adaptive is not None:
            extras[NORM_BIT] = norm_bit(norm, terms.bound)
        return Shielded(vector, extras, metrics)
    if privacy.local is not None:
        told = _equal_weight(told)
    return Shielded(template.flatten(told), {WEIGHT: told.scalars.get(WEIGHT, 0.0)}, metrics)


def check(contribution: Contribution, template: Template | None) -> Contribution:
    """Return a contribution that no guarantee covers, if it may be added.

    Raises
    ------
    ValueError
        If it may not (:meth:`Template.check`).
    """
    if template is not None:
        template.check(contribution)
    return contribution


def check_stacked(
    stacked: StackedContribution, template: Template | None
) -> tuple[Contribution, list[int], dict[int, Exception]]:
    """Return the total of those clients of a stack who may be added, their places, and why others may not.

    As :func:`check` of each; but that all is finite shows in the total, and only if it is not are the clients looked at
    one by one.
    """
    failures = dict(stacked.failures)
    if template is not None:
        failures |= template.check_stacked(stacked)
    places = [place for place in range(len(stacked)) if place not in failures]
    summed = stacked.total(places)
    if template is None or all(is_finite(tensor) for tensor in summed.tensors.values()):
        return summed, places, failures
    for place in places:
        try:
            template.check(stacked.one(place))
        except ValueError as error:
            failures[place] = error
    places = [place for place in places if place not in failures]
    return stacked.total(places), places, failures


def shield_metrics(contribution: Contribution, names: Sequence[str], private: bool) -> Vector:
    """Return one value a metric, the mean over the client's groups, and whether it has one: shape (2 * names,).

    Parameters
    ----------
    contribution : Contribution
        Of an evaluation.
    names : sequence of str
    private : bool
        Whether values are to be bounded; they are cut to [0, 1] then.
    """
    vector = torch.zeros(2 * len(names), dtype=torch.float64)
    for place, name in enumerate(names):
        own = [item for item in decode(contribution.scalars) if item.name == name and item.n > 0]
        if own:
            value = sum(item.total / item.n for item in own) / len(own)
            vector[2 * place] = min(1.0, max(0.0, value)) if private else value
            vector[2 * place + 1] = 1.0
    return vector.numpy()


def metric_scalars(vector: Vector, names: Sequence[str]) -> dict[str, float]:
    """Return the metric sums of a vector of :func:`shield_metrics`, as a contribution carries them."""
    return encode(
        [MetricSum(name, EVERYBODY, float(vector[2 * i]), float(vector[2 * i + 1])) for i, name in enumerate(names)]
    )


def _equal_weight(contribution: Contribution) -> Contribution:
    """Return the contribution with weight 1, since a weight by numbers of examples tells that number."""
    weight = contribution.scalars.get(WEIGHT, 0.0)
    if not weight:
        return contribution
    tensors = {k: t / weight if k.startswith(DELTA) else t for k, t in contribution.tensors.items()}
    return Contribution(tensors, {WEIGHT: 1.0})
