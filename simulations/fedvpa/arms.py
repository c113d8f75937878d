"""The settings and arms of the FedVPA-GP experiment, each as overrides of the run configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

ROUNDS = 50
LOCAL_STEPS = 5
EPISODES = 4
"""Episodes of a client's gradient step; the centralised arm takes as many for each client of a round."""
SHOWN = 16
"""Judgments of a person that a predictor sees at most."""

CONFLICT, STRICT, MIXED, CROWD = "conflict", "hh_strict", "hh_mixed", "llmfao"


@dataclass(frozen=True)
class Setting:
    """A data set and who holds it: one table of the results.

    Parameters
    ----------
    name : str
        Also the folder of its runs.
    label : str
    family : str
        What arms may be restricted to, and what tuned values are given for.
    overrides : tuple of str
        The data and the partition, without the data's path.
    clients, cohort : int
        How many people train, and how many of them in a round.
    groups : tuple of str
        The true groups, where there are some with tastes of their own.
    own_texts : bool
        Whether every seed has texts of its own, which are then encoded anew.
    """

    name: str
    label: str
    family: str
    overrides: tuple[str, ...]
    clients: int
    cohort: int
    groups: tuple[str, ...] = ()
    own_texts: bool = False


@dataclass(frozen=True)
class Arm:
    """One line of the tables.

    Parameters
    ----------
    name : str
        Also the folder of its runs.
    label : str
    overrides : tuple of str
        ``{groups}`` stands for the setting's groups, and ``{episodes}`` for the episodes of a whole cohort's step.
    note : str
        What the reader must know to compare it.
    only : tuple of str
        Families of settings in which it makes sense; empty for all.
    federated : bool
        Whether it has rounds of federated training, and with them the common rounds and cohort.
    """

    name: str
    label: str
    overrides: tuple[str, ...]
    note: str = ""
    only: tuple[str, ...] = ()
    federated: bool = True


def _dialogues(partition: str, label: str, clients: int, cohort: int) -> Setting:
    """Return HH-RLHF on so many clients."""
    return Setting(
        name=f"hh_{partition}_{clients}",
        label=f"HH-RLHF, {label}, {clients} clients",
        family=STRICT if partition == "strict" else MIXED,
        overrides=(
            "data=hh_rlhf",
            f"partition={partition}",
            f"partition.clients={clients}",
            f"partition.unseen={max(2, clients // 10)}",
        ),
        clients=clients,
        cohort=cohort,
        groups=("helpful-base", "harmless-base"),
    )


SETTINGS = (
    Setting(
        name="conflict",
        label="conflict world, 100 clients with 16 judgments each",
        family=CONFLICT,
        overrides=(
            "data=synthetic_pairs",
            "data.annotators=120",
            "data.noise=0.1",
            "partition=by_annotator",
            "partition.unseen=20",
        ),
        clients=100,
        cohort=20,
        groups=("praise", "criticism"),
        own_texts=True,
    ),
    *(_dialogues("strict", "one category a client", n, cohort) for n, cohort in ((10, 5), (50, 10), (100, 10))),
    *(
        _dialogues("mixed", "both categories on every client", n, cohort)
        for n, cohort in ((10, 5), (50, 10), (100, 10))
    ),
    Setting(
        name="llmfao",
        label="LLMFAO, 54 crowd workers",
        family=CROWD,
        overrides=(
            "data=llmfao",
            "partition=by_annotator",
            "partition.small=drop",
            "partition.unseen=15",
            "partition.clients=54",
        ),
        clients=54,
        cohort=10,
    ),
)

ARMS = (
    Arm("length_rule", "length rule", ("method=length_rule",), "nothing is learnt", federated=False),
    Arm(
        "local_bt",
        "local BT",
        ("method=local_bt", f"method.adapt.steps={ROUNDS * LOCAL_STEPS}"),
        "no federation; as many steps for each person as the federated arms take in all",
        federated=False,
    ),
    Arm("fedavg_bt", "FedAvg BT", ("method=fedavg_bt",), "one reward model for all"),
    Arm(
        "fedavg_bt_finetuned",
        "FedAvg BT + fine-tuning",
        ("method=fedavg_bt_finetuned",),
        "further steps on each person's own judgments before predicting",
    ),
    Arm("fedem", "FedEM, 2 heads", ("method=fedem",), "a head's mean is weighted by responsibility"),
    Arm(
        "fedem_paper",
        "FedEM, 2 heads, the paper's mean",
        ("method=fedem", "method.assignment.shares=uniform"),
        "equal weights in a head's mean",
        only=(CONFLICT,),
    ),
    Arm("fedbiscuit", "FedBiscuit, 2 clusters", ("method=fedbiscuit", "method.heads=2"), "balanced clusters"),
    Arm("pal", "PAL, K=2", ("method=pal",), "personal weights of two heads"),
    Arm("fedvpl", "FedVPL", ("method=fedvpl",), "N(0, I), the published set encoder"),
    Arm(
        "fedvpl_evidence",
        "FedVPL + evidence",
        ("method=fedvpl_evidence",),
        "the posterior mean starts from the decoder's features of the judged pairs",
    ),
    Arm("mixture", "+ mixture prior", ("method=fedvpa", "method.prototypes=null"), "bank of posteriors, no prototypes"),
    Arm("orthogonal", "+ orthogonal loss", ("method=fedvpa", "method.divergence.form=standard"), "prototypes, N(0, I)"),
    Arm("full", "full FedVPA-GP", ("method=fedvpa",), "mixture prior and prototypes"),
    Arm("full_sums", "full, sum-only prior", ("method=fedvpa_sums",), "works under secure aggregation"),
    Arm("as_published", "as published", ("method=fedvpa_published",), "the paper's losses and decoder"),
    Arm(
        "centralised",
        "centralised VPL",
        (
            "method=fedvpl_evidence",
            "partition.pooled=true",
            "federation.sampler.fraction=1",
            "method.episodes.count={episodes}",
        ),
        "all judgments in one place; as many judgments a step as a cohort",
    ),
    Arm(
        "oracle_group",
        "oracle group models",
        ("method=oracle_group", "method.assignment.groups=[{groups}]"),
        "upper bound: told the true groups",
        only=(CONFLICT, STRICT),
    ),
    Arm(
        "category",
        "full, true categories",
        ("method=fedvpa", "method.prototypes.labels=category", "method.prototypes.categories=[{groups}]"),
        "upper bound: prototypes labelled by the true groups",
        only=(CONFLICT,),
    ),
)

MAIN = "full"
"""The arm that every other one is compared with."""
CURVES = ("fedvpl", "fedvpl_evidence", "full")
"""Arms whose KL and active units are also followed over rounds, for one seed of the first setting."""

# Chosen for FedAvg BT on a split of the training judgments; no held-out judgment was looked at.
_DIALOGUES = ("method.local.steps=10", "model.body.dropout=0.5")

TUNED: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    family: {"*": _DIALOGUES, "local_bt": ("method.adapt.steps=500", "model.body.dropout=0.5")}
    for family in (STRICT, MIXED)
}
"""Overrides by family or name of a setting, then by arm or ``*`` for all that are federated; the later one counts."""


def setting_named(name: str) -> Setting:
    """Return a setting by its name."""
    return {setting.name: setting for setting in SETTINGS}[name]


def arms_of(setting: Setting) -> tuple[Arm, ...]:
    """Return the arms that make sense in a setting."""
    return tuple(arm for arm in ARMS if not arm.only or setting.family in arm.only)


def overrides(setting: Setting, arm: Arm, path: str | None) -> tuple[str, ...]:
    """Return all overrides of an arm in a setting but the seed and the output.

    Parameters
    ----------
    setting : Setting
    arm : Arm
    path : str or None
        The data's file or folder; None for data that fedalign draws itself.
    """
    common = ["encoder=minilm", f"method.evaluation.context={SHOWN}", "method.evaluation.train=false"]
    if arm.federated:
        common += [
            f"federation.rounds={ROUNDS}",
            f"federation.sampler.fraction={setting.cohort / setting.clients:g}",
            # Once before the first round, and after the last.
            "federation.evaluate_every=1000",
            "federation.checkpoint_every=1000",
        ]
    values = {"groups": ", ".join(setting.groups), "episodes": EPISODES * setting.cohort}
    own = [override.format(**values) for override in arm.overrides]
    data = [] if path is None else [f"data.path='{path}'"]
    return _merged([*setting.overrides, *data, *common, *own, *_tuned(setting, arm)])


def _tuned(setting: Setting, arm: Arm) -> list[str]:
    found: list[str] = []
    for place in (setting.family, setting.name):
        table = TUNED.get(place, {})
        found += table.get("*", ()) if arm.federated else ()
        found += table.get(arm.name, ())
    return found


def _merged(given: list[str]) -> tuple[str, ...]:
    """Return the overrides with the last value of every key, since Hydra refuses two choices of one group."""
    return tuple({override.partition("=")[0]: override for override in given}.values())
