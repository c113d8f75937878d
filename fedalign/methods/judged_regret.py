"""Regret in human labels: what held-out judgments lose when one policy must serve all types."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fedalign.data.rankings import RankingShard, Role
from fedalign.metrics.record import MetricSum

_REGRET = "/regret"


def judged_regrets(shard: RankingShard, index: Tensor, own: Tensor, types: Tensor, policy: Tensor) -> list[MetricSum]:
    """Return the regret of a policy in a client's held-out judgments, in nats a judgment.

    By annotators' true types where these are known, and by what judgments are reported by elsewhere.

    Parameters
    ----------
    shard : RankingShard
        Of P annotators.
    index : int64 Tensor, shape (n,)
        The judgments.
    own : int64 Tensor, shape (P,)
        The learnt type of each annotator, which its regret is measured from.
    types : Tensor, shape (K, n)
        Log-likelihoods of the judgments under each type, up to a constant of each judgment.
    policy : Tensor, shape (n,)
        The same under the policy.
    """
    owner = shard.owner[index]
    regrets = types.gather(0, own[owner][None])[0] - policy
    population = "unseen" if shard.role is Role.UNSEEN else "test"
    return [
        MetricSum(population + _REGRET, shard.types[person] or shard.groups[row], regret, 1.0)
        for person, row, regret in zip(owner.tolist(), index.tolist(), regrets.tolist(), strict=True)
    ]


def others(sums: Sequence[MetricSum]) -> list[MetricSum]:
    """Return the metrics that are no regret."""
    return [item for item in sums if not item.name.endswith(_REGRET)]


def regret_summary(sums: Sequence[MetricSum]) -> dict[str, float]:
    """Return the mean regret of a judgment, and that of the worst group's judgments, for each population."""
    found = {}
    for name in sorted({item.name for item in sums if item.name.endswith(_REGRET)}):
        own = [item for item in sums if item.name == name]
        found[f"{name}_mean"] = sum(item.total for item in own) / sum(item.n for item in own)
        found[f"{name}_worst"] = max(item.total / item.n for item in own)
    return found
