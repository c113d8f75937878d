"""The tables of the experiments on EM-DPO, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping

from fedalign.report.statistics import Estimate, mean_interval, paired_difference
from simulations.emdpo.arms import (
    EXPERIMENTS,
    FEDERATED_JUDGMENTS,
    FORM_LABELS,
    GAPS,
    JUDGMENTS,
    OBSERVED,
    REAL,
    TYPES,
    VARIANTS,
)
from simulations.emdpo.exact import alike, divergence, middle_first, won
from simulations.emdpo.language_tables import regret, regret_among_equals, types_told, uneven, written
from simulations.emdpo.markdown import table
from simulations.emdpo.plots import gain
from simulations.emdpo.real import differences
from simulations.emdpo.record import Results, values_of
from simulations.privacy.tables import cell

TYPED, BAYES = "test/type_accuracy", "bayes_accuracy"
LIKELIHOOD = "test/log_likelihood"

NOTE_TOY: Mapping[str, tuple[float, ...]] = {
    "pair": (0.667, 0.789, 0.895, 0.968, 0.993),
    "best": (0.772, 0.848, 0.926, 0.988, 1.0),
    "full": (0.817, 0.904, 0.969, 0.994, 1.0),
}
NOTE_FEDERATED: Mapping[str, tuple[float, float]] = {
    "soft": (0.886, 0.966),
    "equal": (0.523, 0.523),
    "hard": (0.886, 0.968),
    "steps_1": (0.893, 0.968),
    "noise": (0.892, 0.964),
    "steps_20": (0.883, 0.966),
    "everybody": (0.892, 0.966),
}
NOTE_ORACLE = (0.897, 0.966)


def tables(found: Mapping[str, Results]) -> str:
    """Return all tables, a section each."""
    sections = {
        "Type accuracy in the toy, by judgments of a user": toy(found["toy"]),
        "Type accuracy in federation, pairs, by judgments of a client": federated(found["federated"]),
        "Type accuracy under central noise, one guarantee for each client": private(found["private"]),
        "Two opposite halves against indifference, b = 3, exact": exact(),
        "Gain of two types over one on new annotators, in nats a judgment": identifiability(found["identifiability"]),
        **{
            f"{label}: held-out log-likelihood, in nats a judgment": real(found["real"], source)
            for source, (label, _) in REAL.items()
        },
        "Language model: how types are told, and held-out pairs": types_told(found["language"]),
        "Language model: true utility of what policies write": written(found["language"]),
        "Language model: regret of what serves everybody, in true utility": regret(found["language"]),
    }
    if uneven(found["language"]):
        title = "Language model: the same differences, references of arms with as many judgments"
        sections[title] = regret_among_equals(found["language"])
    return "\n".join(f"**{title}**\n\n{body}" for title, body in sections.items())


def toy(found: Results) -> str:
    """Return the toy: of each form the note's row, ours, who knows the true utilities, and how far we are from that."""
    rows = []
    for form, label in FORM_LABELS.items():
        arms = [f"{form}_{m}" for m in JUDGMENTS]
        rows.append((f"{label}, the note's", [f"{value:.3f}" for value in NOTE_TOY[form]]))
        rows.append((f"{label}, ours", [_mean(found, arm, TYPED) for arm in arms]))
        rows.append((f"{label}, utilities known", [_mean(found, arm, BAYES) for arm in arms]))
        rows.append((f"{label}, ours − known", [_distance(found, arm) for arm in arms]))
    return table(["", *(f"m={m}" for m in JUDGMENTS)], rows)


def federated(found: Results) -> str:
    """Return a row a variant: for each number of judgments the note's mean, ours (lowest), and ours − oracle."""
    header = ["variant"]
    for m in FEDERATED_JUDGMENTS:
        header += [f"m={m}, the note's", "ours (lowest)", "ours − oracle"]
    rows = []
    for name, (label, _) in VARIANTS.items():
        cells = []
        for place, m in enumerate(FEDERATED_JUDGMENTS):
            arm = f"{name}_{m}"
            own = values_of(found, arm, TYPED)
            least = f" ({min(own.values()):.3f})" if own else ""
            note = f"{NOTE_FEDERATED[name][place]:.3f}" if name in NOTE_FEDERATED else "–"
            cells += [note, _mean(found, arm, TYPED) + least, _distance(found, arm)]
        rows.append((label + _short(found, name), cells))
    cells = []
    for place, m in enumerate(FEDERATED_JUDGMENTS):
        own = values_of(found, f"soft_{m}", BAYES)
        least = f" ({min(own.values()):.3f})" if own else ""
        cells += [f"{NOTE_ORACLE[place]:.3f}", _mean(found, f"soft_{m}", BAYES) + least, "–"]
    rows.append(("oracle: utilities known", cells))
    return table(header, rows)


def private(found: Results) -> str:
    """Return type accuracy by epsilon."""
    arms = EXPERIMENTS["private"].arms
    names = {"types told": "told/type_accuracy", "largest type": "told/largest_type_share"}
    rows = [
        (
            f"{arm.label}, {len(found.get(arm.name, {}))} seeds",
            [
                *(_mean(found, arm.name, name) for name in names.values()),
                _apart(found, arm.name) if arm.name != "eps_none" else "–",
            ],
        )
        for arm in arms
    ]
    rows.append(("utilities known", [_mean(found, "eps_none", BAYES), "–", "–"]))
    return table(["", *names, "types told − no guarantee"], rows)


def exact() -> str:
    """Return probabilities that tell the two populations apart, and one that does not."""
    rows = [
        (label, [f"{probability(0.0):.3f}", f"{probability(3.0):.3f}"])
        for label, probability in (
            ("the first item wins over the middle one", won),
            ("the middle item is the best of three", middle_first),
            ("one annotator answers that pair alike twice", alike),
        )
    ]
    return table(["probability that", "indifferent", "opposite halves"], rows)


def identifiability(found: Results) -> str:
    """Return a row for what is seen of an annotator, exact and measured."""
    rows = []
    for seen, (label, form, judgments) in OBSERVED.items():
        rows.append((f"{label}, exact", [f"{divergence(form, judgments, gap):.4f}" for gap in (0, *GAPS)]))
        gains = [list(gain(found, seen, gap).values()) for gap in (0, *GAPS)]
        rows.append((f"{label}, measured", [cell(mean_interval(own) if own else None, "+.4f") for own in gains]))
    return table(["", "b=0", *(f"b={gap}" for gap in GAPS)], rows)


def real(found: Results, source: str) -> str:
    """Return a row a number of types; differences are to one type."""
    rows = []
    for types in TYPES:
        arm = f"{source}_k{types}"
        own = differences(found, arm, f"{source}_k1") if types > 1 else None
        pair = paired_difference(values_of(found, arm, LIKELIHOOD), values_of(found, f"{source}_k1", LIKELIHOOD))
        rows.append(
            (
                f"K={types}",
                [
                    _mean(found, arm, "train/log_likelihood", ".4f"),
                    _mean(found, arm, LIKELIHOOD, ".4f"),
                    cell(pair, "+.4f") if types > 1 else "–",
                    "–" if own is None else f"{own.mean:+.4f} [{own.low:+.4f}, {own.high:+.4f}]",
                    _mean(found, arm, "test/accuracy"),
                    _mean(found, arm, "test/largest_type_share"),
                    _mean(found, arm, "alike_correlation", ".2f"),
                    _mean(found, arm, "alike_spread", ".2f"),
                ],
            )
        )
    rows.append(
        (
            "chance",
            ["–", _mean(found, f"{source}_k1", "test/log_likelihood_chance", ".4f"), *["–"] * 2, "0.500", *["–"] * 3],
        )
    )
    header = ["", "validation", "held-out", "− K=1, over seeds", "− K=1, over annotators"]
    header += ["accuracy", "largest type", "correlation of types", "spread"]
    return table(header, rows)


def _mean(found: Results, arm: str, name: str, form: str = ".3f") -> str:
    values = list(values_of(found, arm, name).values())
    return cell(mean_interval(values), form, spread=form == ".4f") if values else "–"


def _distance(found: Results, arm: str) -> str:
    pair: Estimate | None = paired_difference(values_of(found, arm, TYPED), values_of(found, arm, BAYES))
    return cell(pair, "+.3f")


def _apart(found: Results, arm: str) -> str:
    """Return how many types a guarantee costs, paired by seed."""
    told = "told/type_accuracy"
    pair = paired_difference(values_of(found, arm, told), values_of(found, "eps_none", told))
    return "–" if pair is None else cell(pair, "+.3f")


def _short(found: Results, name: str) -> str:
    """Return what to say where a variant has fewer seeds than there are."""
    wanted = len(EXPERIMENTS["federated"].seeds)
    seeds = [len(found.get(f"{name}_{m}", {})) for m in FEDERATED_JUDGMENTS]
    return "" if min(seeds) == wanted else f" (seeds: {seeds[0]} and {seeds[1]})"
