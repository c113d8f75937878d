"""The arms of the experiment of private alignment, each as overrides of the run configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

EPSILONS = (1, 2, 4, 8)
LEVELS = (*(f"eps{epsilon}" for epsilon in EPSILONS), "none")
"""Of privacy, from the strictest."""
DELTA = 1e-5
TUNING_SEED = 101

# Chosen on the tuning seed (README).
_TRAINING = (
    "model.rank=1",
    "model.freeze_a=true",
    "federation/server_optimizer=fedadam",
    "federation.server_optimizer.lr=0.005",
    "federation.server_optimizer.tau=1e-6",
    "method.sft.rounds=15",
    "federation.rounds=40",
)
_CLIP = 0.25
# Of 1,995 users of a silo and a stage: 64 a step, as many as the arms without a guarantee take.
_RATE = 0.032
_BATCH = 64

_SILOS = ("partition=silos", "partition.clients=2", "federation/sampler=full")
_USERS = ("partition=users", "federation/sampler=poisson", f"federation.sampler.rate={_RATE}")


@dataclass(frozen=True)
class Arm:
    """One line of a table.

    Parameters
    ----------
    name : str
        Also the folder of its runs.
    label : str
    epsilon : float or None
        The budget of a user for the whole run; None without noise.
    overrides : tuple of str
    baseline : str or None
        The arm that a secondary one is compared with; None for the arms of the first table.
    """

    name: str
    label: str
    epsilon: float | None
    overrides: tuple[str, ...]
    baseline: str | None = None


def _guarantee(group: str, epsilon: float) -> tuple[str, ...]:
    return (f"privacy={group}", f"privacy.epsilon={epsilon}", f"privacy.delta={DELTA}", "privacy/randomness=seeded")


# Users' gradients are clipped and noised on the silos, so that the noise protects towards the server too.
_DP_SGD = ("privacy.local.grad_sample=hooks", f"privacy.local.rate={_RATE}", f"privacy.local.clip={_CLIP}")


def _local(epsilon: float) -> tuple[str, ...]:
    return (*_SILOS, *_guarantee("local_user", epsilon), *_DP_SGD)


def _central(epsilon: float) -> tuple[str, ...]:
    return (*_USERS, *_guarantee("central", epsilon), f"privacy.clip.bound={_CLIP}")


MAIN = (
    *(Arm(f"eps{epsilon}", f"epsilon {epsilon}", epsilon, _local(epsilon)) for epsilon in EPSILONS),
    Arm("none", "none", None, (*_SILOS, "privacy=none")),
)
SECONDARY = (
    Arm(
        "clip",
        "clipped, no noise",
        None,
        (*_SILOS, "privacy=local_user", "privacy.epsilon=null", "privacy.noise_multiplier=0", *_DP_SGD),
        "none",
    ),
    Arm(
        "rloo_eps4",
        "epsilon 4, RLOO (two responses a prompt)",
        4,
        (*_local(4), "method/algorithm@method.rl.algorithm=rloo", "method.rl.algorithm.completions=2"),
        "eps4",
    ),
    Arm("both_factors_eps4", "epsilon 4, both factors trained", 4, (*_local(4), "model.freeze_a=false"), "eps4"),
    Arm("central_eps8", "epsilon 8, trusted server, a client a user", 8, _central(8), "eps8"),
    Arm("central_none", "none, a client a user", None, (*_USERS, "privacy=none"), "none"),
)
ARMS = (*MAIN, *SECONDARY)


def common(model: str, data: str) -> tuple[str, ...]:
    """Return what all arms share: the model, the reviews, the stages and the scoring.

    Parameters
    ----------
    model : str
        Folder or hub name of a causal language model.
    data : str
        Folder with IMDb's ``train.jsonl.gz`` and ``test.jsonl.gz``.
    """
    return (
        "method=dprlhf",
        "method/reward=vader",
        f"model.model={model}",
        "data=imdb",
        f"data.path={data}",
        # The data do not say who wrote a review: each is a user, the paper's unit.
        "data.reviews_per_user=1",
        "method.lengths.prompt=10",
        "method.lengths.response=16",
        # A round is one gradient step: what Adam there is stands on the server, behind the noise.
        *(f"method.{stage}.{setting}" for stage in ("sft", "rl") for setting in _ONE_STEP),
        *_TRAINING,
        "method.evaluation.prompts=256",
        f"method.evaluation.judge={judge(data)}",
        "federation.evaluate_every=20",
        "federation.checkpoint_every=1000",
    )


_ONE_STEP = (f"batch={_BATCH}", "user_examples=1", "local.steps=1", "local.optimizer=sgd", "local.lr=1.0")


def judge(data: str) -> str:
    """Return the judge, fitted to the labels of the test reviews and held out of training, in Hydra's grammar."""
    settings = {
        "_target_": "fedalign.methods.fitted_sentiment.FittedSentiment",
        "path": f"'{Path(data) / 'test.jsonl.gz'}'",
        "positive": 1,
        "output": "log_odds",
        "scored": "response",
        "words": "null",
        "max_texts": "null",
    }
    return "{" + ", ".join(f"{key}: {value}" for key, value in settings.items()) + "}"


def overrides(arm: Arm, model: str, data: str) -> tuple[str, ...]:
    """Return an arm's overrides; its own replace the shared ones of the same key."""
    own = {_key(one) for one in arm.overrides}
    return (*(one for one in common(model, data) if _key(one) not in own), *arm.overrides)


def _key(override: str) -> str:
    return override.partition("=")[0]
