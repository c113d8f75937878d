"""The tables of the language experiment: how types are told, and what everybody loses by true utility."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence, Sized

import torch

from fedalign.objectives.regret import minmax_weights
from fedalign.report.statistics import mean_interval, paired_difference
from simulations.emdpo.language import LANGUAGE
from simulations.emdpo.markdown import table
from simulations.emdpo.policies import BASE, DISTILLED, MERGED
from simulations.emdpo.record import Results, SeedResult, values_of
from simulations.privacy.tables import cell

HINDSIGHT = "hindsight"
"""The mixture whose worst regret in true utility is least: what weights cannot beat, and need true types to find."""
MIXED: Mapping[str, tuple[str, str]] = {
    "one DPO for all": ("dpo_16", "shares"),
    "Cluster-DPO, mixed by shares": ("cluster_16", "shares"),
    "Cluster-DPO + MMRA": ("cluster_16", "mmra"),
    "EM-DPO, mixed by shares": ("em_16", "shares"),
    "EM-DPO + MaxMin": ("em_16", "maxmin"),
    "EM-DPO + MMRA": ("em_16", "mmra"),
    "EM-DPO + MMRA, regret as a share": ("em_16", "mmra_normalised"),
    "EM-DPO, log-linear merge at MMRA's weights": ("em_16", MERGED),
    "EM-DPO, distilled at MMRA's weights": ("em_16", DISTILLED),
    "EM-DPO, best mixture in hindsight": ("em_16", HINDSIGHT),
    "EM-DPO, random start + MMRA": ("random_16", "mmra"),
    "EM-DPO, in-sample E-step + MMRA": ("insample_16", "mmra"),
    "one DPO for all, 430": ("dpo_430", "shares"),
    "Cluster-DPO, mixed by shares, 430": ("cluster_430", "shares"),
    "EM-DPO, mixed by shares, 430": ("em_430", "shares"),
    "EM-DPO + MMRA, 430 judgments": ("em_430", "mmra"),
    "EM-DPO + MMRA, regret as a share, 430": ("em_430", "mmra_normalised"),
    "EM-DPO, log-linear merge at MMRA's weights, 430": ("em_430", MERGED),
    "EM-DPO, distilled at MMRA's weights, 430": ("em_430", DISTILLED),
    "EM-DPO, best mixture in hindsight, 430": ("em_430", HINDSIGHT),
    "base model": ("dpo_16", BASE),
}
"""What serves everybody: label, arm, and a mixture of its types or the name of a single network."""
COMPARED: tuple[tuple[str, str], ...] = (
    ("EM-DPO + MMRA", "one DPO for all"),
    ("EM-DPO + MMRA", "Cluster-DPO, mixed by shares"),
    ("EM-DPO + MMRA", "EM-DPO, mixed by shares"),
    ("EM-DPO + MMRA, regret as a share", "one DPO for all"),
    ("EM-DPO + MMRA, regret as a share", "Cluster-DPO, mixed by shares"),
    ("EM-DPO, distilled at MMRA's weights", "EM-DPO, log-linear merge at MMRA's weights"),
    ("EM-DPO + MMRA, 430 judgments", "one DPO for all, 430"),
    ("EM-DPO + MMRA, 430 judgments", "Cluster-DPO, mixed by shares, 430"),
    ("EM-DPO + MMRA, 430 judgments", "EM-DPO, mixed by shares, 430"),
    ("EM-DPO + MMRA, regret as a share, 430", "one DPO for all, 430"),
    ("EM-DPO + MMRA, regret as a share, 430", "Cluster-DPO, mixed by shares, 430"),
)
EQUALS: Mapping[str, tuple[str, ...]] = {
    ending: (f"dpo{ending}", f"cluster{ending}", f"em{ending}") for ending in ("_16", "_430")
}
"""Arms with as many judgments that every seed has, by how their names end."""
WORST, MEAN, ANNOTATORS = "worst type", "mean over types", "mean over annotators"

_TYPED = (
    ("start/type_accuracy", "types at the start"),
    ("test/type_accuracy", "types told"),
    ("test/largest_type_share", "largest type"),
    ("test/adjusted_rand", "adjusted Rand"),
    ("test/accuracy", "accuracy"),
    ("test/margin", "margin"),
)
_REPLICATION = (
    ("a replication, random start, in-sample (0.5B)", ("–", "0.42", "–")),
    ("the same, cross-fitted", ("–", "0.53", "–")),
    ("the same, start from clusters", ("0.60", "–", "54–58 of 60")),
)
"""An independent replication that did not find types (notes, 1.9); its last figure is of the end of training."""


def types_told(found: Results) -> str:
    """Return a row an arm: how annotators' types were told, and what types predict of held-out pairs."""
    rows: list[tuple[str, Sequence[str]]] = [
        (f"{label}, {_seeds(found[name])}", [_mean(values_of(found, name, score)) for score, _ in _TYPED])
        for name, (label, _) in LANGUAGE.items()
        if name in found
    ]
    rows += [(label, [*figures, *["–"] * (len(_TYPED) - len(figures))]) for label, figures in _REPLICATION]
    return table(["", *(title for _, title in _TYPED)], rows)


def written(found: Results) -> str:
    """Return a row an arm: what each true type has of the policy that suits it best, and what texts are like."""
    rows = [
        _written(label, _scored(found, arm), "shares") for arm, (label, _) in LANGUAGE.items() if _scored(found, arm)
    ]
    if _scored(found, "dpo_16"):
        rows.append(_written("base model", _scored(found, "dpo_16"), BASE))
    return table(["", *(f"best for {name}" for name in _types(found)), "junk", "perplexity"], rows)


def _written(label: str, seeds: Mapping[int, SeedResult], mixture: str) -> tuple[str, list[str]]:
    """Return a row; junk and perplexity are means over the policies of a mixture."""
    scores = {seed: result.scores for seed, result in seeds.items()}
    names = _shares(next(iter(scores.values())))
    best = [{s: best_of(own, name, policies_of(own, mixture)) for s, own in scores.items()} for name in names]
    junk, likely = (
        {s: mixed(own, policies_of(own, mixture), what) for s, own in scores.items()}
        for what in ("mean/junk", "perplexity")
    )
    return f"{label}, {_seeds(seeds)}", [*map(_mean, best), _mean(junk), _mean(likely, ".1f")]


Regrets = Mapping[int, Mapping[str, float]]
"""By seed: what each type loses, the worst, and the means."""


def regret(found: Results) -> str:
    """Return a row a policy for everybody, then differences paired by seed."""
    columns = (*_types(found), WORST, MEAN, ANNOTATORS)
    own = {label: regrets(found, arm, mixture) for label, (arm, mixture) in MIXED.items()}
    rows = [
        (f"{label}, {_seeds(seeds)}", [_mean({s: one[name] for s, one in seeds.items()}) for name in columns])
        for label, seeds in own.items()
        if seeds
    ]
    return table(["", *columns], [*rows, *_differences(own, columns)])


def regret_among_equals(found: Results) -> str:
    """Return the differences where a type's reference is the best policy of arms with as many judgments alone."""
    columns = (*_types(found), WORST, MEAN, ANNOTATORS)
    return table(["", *columns], _differences(_among_equals(found), columns))


def uneven(found: Results) -> bool:
    """Return whether that makes any difference: an arm beside those has a policy that is the best of its seed."""
    return any(own != regrets(found, *MIXED[label]) for label, own in _among_equals(found).items())


def _among_equals(found: Results) -> dict[str, Regrets]:
    return {
        label: regrets(found, arm, mixture, next(arms for ending, arms in EQUALS.items() if arm.endswith(ending)))
        for label, (arm, mixture) in MIXED.items()
    }


def _differences(own: Mapping[str, Regrets], columns: Sequence[str]) -> list[tuple[str, Sequence[str]]]:
    """Return a row a comparison that has been run, paired by seed."""
    rows: list[tuple[str, Sequence[str]]] = []
    for ours, theirs in COMPARED:
        shared = set(own[ours]) & set(own[theirs])
        if shared:
            pairs = [
                paired_difference(*({s: one[name] for s, one in own[label].items()} for label in (ours, theirs)))
                for name in columns
            ]
            rows.append((f"{ours} − {theirs}, {_seeds(shared)}", [cell(pair, "+.2f") for pair in pairs]))
    return rows


def regrets(
    found: Results, arm: str, mixture: str, among: Collection[str] | None = None
) -> dict[int, dict[str, float]]:
    """Return by seed what each type of annotators loses under a policy, the worst, and the means.

    A type's regret is the best utility that any policy of any arm of that seed and base model, or of the arms ``among``
    them, has for it, less what it has here. Seeds in which the single network was not scored are left out.
    """
    lost = {}
    for seed, result in _scored(found, arm).items():
        shares, scores = _shares(result.scores), result.scores
        if mixture != HINDSIGHT and not _has(scores, mixture):
            continue
        best = {name: reference(found, arm, seed, name, among) for name in shares}
        weights = hindsight(scores, best) if mixture == HINDSIGHT else policies_of(scores, mixture)
        own = {name: value - mixed(scores, weights, "utility", name) for name, value in best.items()}
        lost[seed] = {
            **own,
            WORST: max(own.values()),
            MEAN: sum(own.values()) / len(own),
            ANNOTATORS: sum(shares[name] * value for name, value in own.items()),
        }
    return lost


def hindsight(scores: Mapping[str, float], best: Mapping[str, float]) -> dict[str, float]:
    """Return the weights of a run's policies under which the worst type's true regret is least."""
    policies = list(policies_of(scores, "shares"))
    lost = [[value - scores[f"utility/{k}/{name}"] for k in policies] for name, value in best.items()]
    return dict(zip(policies, minmax_weights(torch.tensor(lost))[0].tolist(), strict=True))


def reference(found: Results, arm: str, seed: int, name: str, among: Collection[str] | None = None) -> float:
    """Return the best utility that any policy of a seed has for a type of annotators.

    Of those that begin at the base model of ``arm``, and, where that is said, belong to the arms ``among`` them.
    """
    peers = [
        other
        for other in found
        if seed in _scored(found, other) and base_of(found, other, seed) == base_of(found, arm, seed)
    ]
    return max(best_of(found[other][seed].scores, name) for other in peers if among is None or other in among)


def base_of(found: Results, arm: str, seed: int) -> float | None:
    """Return what tells the base model of a run from others: the perplexity of its own texts, to four digits."""
    perplexity = found[arm][seed].scores.get(f"perplexity/{BASE}")
    return None if perplexity is None else round(perplexity, 4)


def best_of(scores: Mapping[str, float], name: str, among: Collection[str] | None = None) -> float:
    """Return the best utility that a run's policies, or some of them, have for a type of annotators."""
    own = {key: value for key, value in scores.items() if key.startswith("utility/") and key.endswith(f"/{name}")}
    return max(value for key, value in own.items() if among is None or key.split("/")[1] in among)


def policies_of(scores: Mapping[str, float], mixture: str) -> dict[str, float]:
    """Return the weights of a mixture's policies; what is no mixture is a single network of that name."""
    opening = f"weight/{mixture}/"
    return {k.removeprefix(opening): v for k, v in scores.items() if k.startswith(opening)} or {mixture: 1.0}


def _has(scores: Mapping[str, float], mixture: str) -> bool:
    """Return whether a run has the utilities of all of a mixture's policies, or of the single network."""
    return all(any(key.startswith(f"utility/{k}/") for key in scores) for k in policies_of(scores, mixture))


def mixed(scores: Mapping[str, float], weights: Mapping[str, float], what: str, name: str | None = None) -> float:
    """Return the weighted mean of a score over policies, exact where a policy is drawn for every text.

    Scores are called ``<what>/<policy>`` or ``<what>/<policy>/<name>``.
    """
    ending = "" if name is None else f"/{name}"
    return sum(weight * scores[f"{what}/{k}{ending}"] for k, weight in weights.items())


def _shares(scores: Mapping[str, float]) -> dict[str, float]:
    return {key.removeprefix("share/"): value for key, value in scores.items() if key.startswith("share/")}


def _scored(found: Results, arm: str) -> dict[int, SeedResult]:
    """Return an arm's seeds whose policies were scored."""
    return {seed: result for seed, result in found.get(arm, {}).items() if _shares(result.scores)}


def _types(found: Results) -> tuple[str, ...]:
    everybody = [result for arm in found for result in _scored(found, arm).values()]
    return tuple(_shares(everybody[0].scores)) if everybody else ()


def _seeds(seeds: Sized) -> str:
    return f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''}"


def _mean(values: Mapping[int, float], form: str = ".2f") -> str:
    return cell(mean_interval(list(values.values())), form) if values else "–"
