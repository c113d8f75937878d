"""The settings of the language experiment: one small GPT-2, and how its types begin and are told."""

from __future__ import annotations

from collections.abc import Mapping

BASE = "{base}"
"""What stands for the folder of the base model in overrides (``base``)."""

LANGUAGE_SEEDS = (11, 12, 13, 14, 15, 16)
FURTHER_SEEDS = LANGUAGE_SEEDS[3:]
FURTHER = ("dpo_16", "cluster_16", "em_16")
"""Arms that have all seeds; the others have the further ones. Fixed before any of these was run (README)."""
DISTILLED_ARMS = ("em_16", "em_430")
"""Arms whose mixture is distilled into one adapter when a run is scored."""

_COMMON = (
    "model=gpt2_lora",
    f"model.model={BASE}",
    "model.target_modules=[c_attn,c_fc,c_proj]",
    "model.rank=8",
    "model.alpha=16",
    "data.form=pair",
    "data.responses=2",
    "federation=fedavg",
    "federation/sampler=fixed",
    "federation.sampler.size=12",
    "federation.rounds=24",
    "federation.evaluate_every=1000",
    "federation.checkpoint_every=1000",
    "method/fair=none",
    "method.batch=8",
    "method.likelihood=0.2",
    "method.folds.validation=0",
    "method.evaluation.judgments=4",
    "method.local.optimizer=adam",
    "method.local.lr=0.005",
    "method.local.steps=4",
)
_FEW = ("data.train_judgments=16", "method.evaluation.known=16")
_MANY = ("data.train_judgments=430", "method.evaluation.known=64")
_CLUSTERS = ("method.start.iterations=4",)
# Clusters tell types while policies know too little to do so.
_PROBED = (*_CLUSTERS, "method.start.rounds=12")
_EM = ("method.least_share=0.1", "method.assignment.temper=0.5")

LANGUAGE: Mapping[str, tuple[str, tuple[str, ...]]] = {
    name: (label, (*_COMMON, *own))
    for name, label, own in (
        ("dpo_16", "one DPO for all", ("method=dpo", *_FEW)),
        ("cluster_16", "Cluster-DPO", ("method=cluster_dpo", *_CLUSTERS, *_FEW)),
        ("em_16", "EM-DPO", ("method=emdpo", *_EM, *_PROBED, "method.folds.assess=null", *_FEW)),
        (
            "em_430",
            "EM-DPO, 430 judgments",
            ("method=emdpo", *_EM, *_PROBED, "method.folds.assess=24", *_MANY),
        ),
        ("dpo_430", "one DPO for all, 430 judgments", ("method=dpo", *_MANY)),
        ("cluster_430", "Cluster-DPO, 430 judgments", ("method=cluster_dpo", *_CLUSTERS, *_MANY)),
        (
            "insample_16",
            "EM-DPO, in-sample E-step",
            ("method=emdpo_in_sample", *_EM, *_PROBED, "method.folds.assess=null", *_FEW),
        ),
        (
            "random_16",
            "EM-DPO, random start",
            ("method=emdpo", "method/start=random", *_EM, "method.folds.assess=null", *_FEW),
        ),
    )
}
"""Arms: label and overrides."""


def seeds_of(arm: str) -> tuple[int, ...]:
    """Return the seeds of an arm."""
    return LANGUAGE_SEEDS if arm in FURTHER else FURTHER_SEEDS
