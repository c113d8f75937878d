"""The arms of the group-reward experiment, each as overrides of the run configuration."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedalign.data.schema import Survey

MAJORITY = ("group-01", "group-03", "group-05", "group-07")
MINORITY = ("group-02", "group-06")
UNSEEN = ("group-09", "group-04")
"""One more of the majority and one more of the minority: their answers are never used."""
TUNING_SEEDS = (100, 0, 1, 8, 10, 11, 13)
"""Of worlds that settings were chosen on."""
SEEDS = (17, 24, 26)
"""Of the reported worlds: the first from 14 on in which the answers that are best on average serve the minority less
than two thirds as well as the majority (see ``minority_share``). That is known from the data alone; no arm had been run
in them."""


@dataclass(frozen=True)
class Arm:
    """One line of the table.

    Parameters
    ----------
    name : str
        Also the folder of its runs.
    label : str
    overrides : tuple of str
    """

    name: str
    label: str
    overrides: tuple[str, ...]


REFERENCE = Arm("reference", "reference (not trained)", ("method.policy.rounds=0", "federation.rounds=0"))
MEAN = Arm("mean", "mean", ("method/aggregation=mean",))
ADAPTIVE = Arm("adaptive", "adaptive alpha", ("method/aggregation=adaptive",))
PUBLISHED = Arm(
    "published",
    "adaptive alpha as published",
    ("method/aggregation=adaptive", "method.aggregation.scaling=published"),
)
ARMS = (
    REFERENCE,
    MEAN,
    ADAPTIVE,
    PUBLISHED,
    Arm("min", "min", ("method/aggregation=min",)),
    Arm("max", "max", ("method/aggregation=max",)),
)


def common(model: str) -> tuple[str, ...]:
    """Return what all arms share: the world, the groups, the predictor, and the policy's model and training."""
    return (
        "method=plural_rlhf",
        f"method.policy.model.model={model}",
        # Two blocs of groups that want opposite things; groups of even number are of the second.
        "data.groups=10",
        "data.blocs=2",
        "data.questions=160",
        "data.group_effect=2.5",
        "data.question_effect=0.3",
        "data.missing_fraction=0.1",
        f"partition.train=[{','.join((*MAJORITY, *MINORITY))}]",
        f"partition.unseen=[{','.join(UNSEEN)}]",
        "partition.holdout=last",
        "partition.test_fraction=0.25",
        "method.held_out=0.25",
        "method.predictor.local.lr=0.003",
        "method.predictor.local.steps=12",
        "method.predictor.evaluation.draws=1",
        "method.policy.prompt='{question}'",
        "method.policy.kl=0.1",
        "method.policy.training.lr=0.005",
        "method.policy.rounds=20",
        "federation.rounds=40",
        "federation.evaluate_every=20",
        "federation.checkpoint_every=1000",
    )


def overrides(arm: Arm, model: str) -> tuple[str, ...]:
    """Return an arm's overrides; its own replace the shared ones of the same key."""
    own = {one.partition("=")[0] for one in arm.overrides}
    return (*(one for one in common(model) if one.partition("=")[0] not in own), *arm.overrides)


def minority_share(survey: Survey, kl: float) -> float:
    """Return how well the answers that are best on average serve the minority, over how well they serve the majority.

    Best on average, at a penalty ``kl`` for leaving uniform answers, is ``softmax(mean share / kl)``; it serves a group
    by the share of it that gives the answer.
    """
    served: dict[str, list[float]] = {group: [] for group in (*MAJORITY, *MINORITY)}
    for question in survey.questions:
        own = {group: survey.answers[group][question] for group in served if question in survey.answers[group]}
        if len(own) < 2:
            continue
        best = np.exp(np.mean(list(own.values()), axis=0) / kl)
        for group, shares in own.items():
            served[group].append(float(shares @ best / best.sum()))
    means = {group: np.mean(values) for group, values in served.items()}
    return float(np.mean([means[g] for g in MINORITY]) / np.mean([means[g] for g in MAJORITY]))
