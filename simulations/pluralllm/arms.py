"""The arms of the PluralLLM experiment, each as overrides of the run configuration."""

from __future__ import annotations

from dataclasses import dataclass

TRAINING = (
    "Nigeria",
    "Egypt",
    "India (Current national sample)",
    "Germany",
    "United States",
    "Canada",
    "Argentina",
    "Australia",
)


@dataclass(frozen=True)
class Arm:
    """One line of the table.

    Parameters
    ----------
    name : str
        Also the folder of its runs.
    label : str
    overrides : tuple of str
    members : tuple of tuple of str
        Overrides of the runs that are averaged within a seed; one empty tuple is a single run.
    reference : str or None
        The centralised arm whose gain over uniform its convergence is measured against.
    """

    name: str
    label: str
    overrides: tuple[str, ...]
    members: tuple[tuple[str, ...], ...] = ((),)
    reference: str | None = None


def common(data: str, rounds: int) -> list[str]:
    """Return what all arms share: the data, the countries, the encoder, the network and the rounds."""
    return [
        f"data.path={data}",
        "data=global_opinions",
        "encoder=minilm",
        "partition=pluralllm",
        "model=gpo",
        f"federation.rounds={rounds}",
        "federation.checkpoint_every=1000",
        "method.evaluation.draws=3",
        "method.evaluation.train=false",
    ]


def _alone(country: str) -> tuple[str, ...]:
    """Return the federation of one country, which is local training."""
    # Hydra's grammar wants names with brackets or spaces quoted.
    return (f"partition.train=['{country}']",)


# Chosen on six countries that are neither trained on nor reported.
_LR = "method.local.lr=0.0003"

FAIR = (
    Arm("uniform", "uniform", ("method=uniform",)),
    Arm("question_mean", "mean of the training groups", ("method=question_mean",)),
    Arm("local", "local only", ("method.prior=none", _LR), tuple(_alone(country) for country in TRAINING)),
    Arm(
        "centralised",
        "centralised GPO",
        ("method.prior=none", _LR, "partition=pluralllm_pooled"),
        reference="centralised",
    ),
    Arm("federated", "federated GPO (PluralLLM)", ("method.prior=none", _LR), reference="centralised"),
    Arm(
        "centralised_prior",
        "centralised GPO + question prior",
        ("method.prior=federated", _LR, "partition=pluralllm_pooled"),
        reference="centralised",
    ),
    Arm(
        "federated_prior",
        "federated GPO + question prior (fedalign)",
        ("method.prior=federated", _LR),
        reference="centralised",
    ),
)

# The released code's settings. Sentence vectors are brought to the scale of a language model's hidden states, which
# is what that code embeds with; the learning rate was chosen for those.
_FAITHFUL = (
    "encoder=minilm",
    "model.input_scale=features",
    "method.evaluation.draws=3",
    "method.evaluation.train=false",
    "federation.evaluate_every=5",
)

FAITHFUL = (
    Arm(
        "faithful_centralised",
        "released settings, centralised (100 steps)",
        ("experiment=pluralllm_faithful_centralised", *_FAITHFUL),
        reference="faithful_centralised",
    ),
    Arm(
        "faithful_federated",
        "released settings, federated (600 steps)",
        ("experiment=pluralllm_faithful", *_FAITHFUL),
        reference="faithful_centralised",
    ),
)


def overrides(arm: Arm, data: str, rounds: int) -> list[str]:
    """Return an arm's overrides; the released settings bring their own rounds and partition."""
    if arm in FAITHFUL:
        return [f"data.path={data}", "federation.checkpoint_every=1000", *arm.overrides]
    shared = [
        o for o in common(data, rounds) if o.partition("=")[0] not in {a.partition("=")[0] for a in arm.overrides}
    ]
    return [*shared, *arm.overrides]
