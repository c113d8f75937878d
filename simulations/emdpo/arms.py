"""The experiments on EM-DPO: each a group of arms, and an arm is overrides of the run configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedalign.data.ranking_forms import Form
from simulations.emdpo.language import DISTILLED_ARMS, LANGUAGE, LANGUAGE_SEEDS, seeds_of
from simulations.emdpo.tuning import GRID, SEARCHED, SOURCES, TUNING_SEED, place_of
from simulations.privacy.arms import replaced

FORMS: Mapping[Form, tuple[str, ...]] = {
    "pair": ("data.form=pair", "data.responses=2"),
    "best": ("data.form=best", "data.responses=3"),
    "full": ("data.form=full", "data.responses=3"),
}
"""What a judgment tells: the better of two, the best of three, or the order of three."""
FORM_LABELS = {"pair": "pairs", "best": "best of 3", "full": "full rank of 3"}
JUDGMENTS = (1, 2, 4, 8, 16)
"""Training judgments of each annotator in the toy."""
GAPS = (1, 3)
"""b: how much one type finds the first item better than the second, and the second than the third."""
TYPES = (1, 2, 3, 4)
"""Numbers of types on real annotators."""


@dataclass(frozen=True)
class Arm:
    """One kind of run.

    Parameters
    ----------
    name : str
        Also the folder of its runs.
    label : str
    overrides : tuple of str
    seeds : tuple of int
        Those of its experiment that it has; all of them where there are none here.
    scores : tuple of str
        Which scores its runs get beside those of the experiment.
    """

    name: str
    label: str
    overrides: tuple[str, ...]
    seeds: tuple[int, ...] = ()
    scores: tuple[str, ...] = ()


@dataclass(frozen=True)
class Experiment:
    """Arms whose runs are scored alike.

    Parameters
    ----------
    name : str
        Also the folder of its arms.
    arms : tuple of Arm
    seeds : tuple of int
    scores : tuple of str
        Which further scores a finished run gets, by their names in ``score``.
    """

    name: str
    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    scores: tuple[str, ...] = ()


# One linear utility a type, and 300 annotators of two types. Length 3: with it somebody who knows the true utilities
# tells types about as well as the note's oracle does (README).
_LINEAR = (
    "method=emdpo",
    "method/fair=none",
    "data=linear_rankings",
    "data.scale=3",
    "data.test_judgments=4",
    "encoder.size=4",
    "model=linear_utility",
    "method.types=2",
    "method/start=random",
    "method.folds.validation=0",
    "method.folds.assess=null",
    "method.evaluation.known=null",
    "method.batch=null",
    "method.local.schedule=constant",
    "method.local.max_grad_norm=null",
    "federation=fedavg",
    "federation.checkpoint_every=1000",
)
# One silo holds everybody. With a single judgment nothing can be halved, so all judgments do both.
_CENTRAL = (
    "partition=annotator_silos",
    "partition.silos=1",
    "partition.min_train=1",
    "method.folds.cross_fit=false",
    "method.least_mass=0.01",
    "method.local.lr=1.0",
    "federation.rounds=60",
    "federation.evaluate_every=60",
)


def _toy() -> tuple[Arm, ...]:
    return tuple(
        Arm(
            f"{form}_{m}",
            f"{FORM_LABELS[form]}, {m} a user",
            (*_LINEAR, *_CENTRAL, *own, f"data.train_judgments={m}"),
        )
        for form, own in FORMS.items()
        for m in JUDGMENTS
    )


_FEDERATED = (
    *_LINEAR,
    "data.form=pair",
    "data.responses=2",
    "partition=annotators",
    "method.folds.cross_fit=false",
    "method.local.lr=0.5",
    "federation/sampler=fraction",
    "federation.sampler.fraction=0.1",
    "federation.rounds=150",
    "federation.evaluate_every=150",
)
VARIANTS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "soft": ("soft, 5 local steps", ()),
    "equal": ("all types start equal", ("method/start=equal", "method.start.demonstration=true")),
    "halves": ("soft, cross-fitted halves", ("method.folds.cross_fit=true",)),
    "hard": ("hard (IFCA)", ("method/assignment=hardest",)),
    "steps_1": ("1 local step", ("method.local.steps=1",)),
    "noise": (
        "noise on the server",
        (
            "privacy=central",
            "privacy/randomness=seeded",
            "privacy.epsilon=null",
            "privacy.noise_multiplier=0.5",
            "privacy.clip.bound=1.0",
        ),
    ),
    "steps_20": ("20 local steps", ("method.local.steps=20",)),
    "everybody": (
        "everybody in every round, 30 rounds",
        ("federation.sampler.fraction=1.0", "federation.rounds=30", "federation.evaluate_every=30"),
    ),
}
"""What the federated toy is varied in: label and overrides."""
FEDERATED_JUDGMENTS = (4, 8)


def _federated() -> tuple[Arm, ...]:
    return tuple(
        Arm(f"{name}_{m}", label, replaced((*_FEDERATED, f"data.train_judgments={m}"), own))
        for name, (label, own) in VARIANTS.items()
        for m in FEDERATED_JUDGMENTS
    )


OBSERVED: Mapping[str, tuple[str, Form, int]] = {
    "pair": ("one pair", "pair", 1),
    "pairs": ("two pairs of one annotator", "pair", 2),
    "best": ("one best of three", "best", 1),
}
"""What is seen of each annotator: label, form, and how many judgments."""


def _identifiability() -> tuple[Arm, ...]:
    """Return arms that fit one and two types to mirrored annotators, and to indifferent ones."""
    arms = []
    for seen, (label, form, judgments) in OBSERVED.items():
        for gap in (0, *GAPS):
            world = ("data.population=mirrored", f"data.scale={gap}")
            if not gap:
                world = ("data.population=indifferent", "data.types=1")
            for types in (1, 2):
                own = (
                    *FORMS[form],
                    *world,
                    f"data.train_judgments={judgments}",
                    "data.annotators=1000",
                    "data.dimension=1",
                    "encoder.size=1",
                    "data.test_judgments=1",
                    f"method.types={types}",
                    f"method.folds.assess={judgments}",
                    "method.assignment.temper=1",
                    "federation.rounds=30",
                    "federation.evaluate_every=30",
                )
                arms.append(Arm(f"{seen}_b{gap}_k{types}", f"{label}, K={types}", replaced((*_LINEAR, *_CENTRAL), own)))
    return tuple(arms)


DATA = "{data}"
"""What stands for the folder of real data in overrides."""
_E2E = ("data=e2e_rankings", f"data.path={DATA}/e2e_rankings/e2e_rankings.jsonl.gz")
REAL: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "e2e": ("E2E NLG", _E2E),
    "quality": ("E2E NLG, the criterion quality alone", (*_E2E, "data.criteria=[quality]")),
    "llmfao": ("LLMFAO", ("data=llmfao_rankings", f"data.path={DATA}/llmfao")),
}
"""Real annotators: label and source."""
_REAL = (
    "method=emdpo",
    "method/fair=none",
    "encoder=minilm",
    "model=linear_utility",
    "model.init_std=0.01",
    "method/start=deltas",
    "method.batch=64",
    "partition=annotator_silos",
    "partition.silos=4",
    "partition.min_train=8",
    "partition.min_test=1",
    "partition.small=drop",
    "method.least_mass=0.01",
    "method.folds.assess=null",
    "method.evaluation.known=null",
    "method.evaluation.judgments=null",
    "method.local.schedule=constant",
    "federation=fedavg",
    "federation.rounds=15",
    "federation.checkpoint_every=1000",
)
CHOSEN: Mapping[str, Mapping[int, tuple[str, ...]]] = {
    **{source: dict.fromkeys(TYPES, ("method.local.lr=100",)) for source in REAL},
    "llmfao": {**dict.fromkeys(TYPES, ("method.local.lr=100",)), 1: ("method.local.lr=30",)},
}
"""Learning rate for each source and number of types, chosen on judgments held out of training (README)."""


def real_overrides(source: str, types: int) -> tuple[str, ...]:
    """Return what all runs on a source with so many types share."""
    return (*_REAL, *REAL[source][1], f"method.types={types}", "federation.evaluate_every=1000")


def _real() -> tuple[Arm, ...]:
    return tuple(
        Arm(f"{source}_k{types}", f"K={types}", (*real_overrides(source, types), *CHOSEN[source][types]))
        for source in REAL
        for types in TYPES
    )


def _tuning() -> tuple[Arm, ...]:
    return tuple(
        Arm(place_of(source, types, number), f"K={types}, {', '.join(point)}", (*real_overrides(source, types), *point))
        for source in SOURCES
        for types in SEARCHED
        for number, point in enumerate(GRID)
    )


def _language() -> tuple[Arm, ...]:
    return tuple(
        Arm(name, label, own, seeds_of(name), ("distilled",) if name in DISTILLED_ARMS else ())
        for name, (label, own) in LANGUAGE.items()
    )


EPSILONS = (1, 2, 4, 8)
_PRIVATE = (
    "method=emdpo",
    "data=linear_rankings",
    "data.scale=3",
    "data.form=pair",
    "data.responses=2",
    "data.train_judgments=8",
    "data.test_judgments=4",
    "data.annotators=600",
    "data.probe_menus=8",
    "encoder.size=4",
    "model=linear_utility",
    "method.types=2",
    "method/fair=none",
    "method.folds.cross_fit=false",
    "method.folds.validation=0",
    "method.folds.assess=null",
    "method.evaluation.known=null",
    "method.batch=null",
    "method.local.schedule=constant",
    "method.local.max_grad_norm=null",
    "method.local.lr=0.5",
    "method.start.dimensions=8",
    "method.start.iterations=3",
    "method.start.restarts=2",
    "method.least_mass=10",
    "federation=fedavg",
    "federation/sampler=poisson",
    "federation.sampler.rate=0.2",
    "federation.rounds=15",
    "federation.evaluate_every=1000",
    "federation.checkpoint_every=1000",
)


def _private() -> tuple[Arm, ...]:
    """Return arms without a guarantee and with one for clients, central noise, at several epsilons."""
    guarded = ("privacy=central", "privacy/randomness=seeded", "privacy/metrics=withheld")
    return (
        Arm("eps_none", "no guarantee", _PRIVATE),
        *(
            Arm(f"eps_{epsilon}", f"epsilon {epsilon}", (*_PRIVATE, *guarded, f"privacy.epsilon={epsilon}"))
            for epsilon in EPSILONS
        ),
    )


EXPERIMENTS: Mapping[str, Experiment] = {
    each.name: each
    for each in (
        Experiment("toy", _toy(), (0, 1, 2, 3), ("bayes",)),
        Experiment("federated", _federated(), (0, 1, 2, 3), ("bayes",)),
        Experiment("identifiability", _identifiability(), (0, 1, 2, 3, 4), ("fresh",)),
        Experiment("tuning", _tuning(), (TUNING_SEED,)),
        Experiment("real", _real(), (0, 1, 2, 3, 4), ("people", "alike")),
        Experiment("private", _private(), (0, 1, 2), ("bayes", "told")),
        Experiment("language", _language(), LANGUAGE_SEEDS, ("policies",)),
    )
}


def overrides(arm: Arm, folders: Mapping[str, str]) -> tuple[str, ...]:
    """Return an arm's overrides with folders put in, by what stands for them."""
    found = arm.overrides
    for place, folder in folders.items():
        found = tuple(one.replace(place, folder) for one in found)
    return found


def chosen(experiment: Experiment, names: Sequence[str] | None) -> tuple[Arm, ...]:
    """Return an experiment's arms, or those of some names."""
    return tuple(arm for arm in experiment.arms if names is None or arm.name in names)
