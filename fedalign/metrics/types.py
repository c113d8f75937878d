"""How well learnt types are those that annotators truly are of, from counts that clients can add up.

Learnt types have no names, and only the server sees enough people to tell which true type each stands for. So clients
count people by true type, learnt type and confidence; no client needs to know which true types others hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from fedalign.contribution import State

ASSIGNED = "assigned/"
"""What names of the sums begin with."""

BINS = 10
"""Number of bins of confidence, of equal width."""

_TYPE = f"{ASSIGNED}type/"
_UNKNOWN = f"{ASSIGNED}unknown"
_CONFIDENCE = f"{ASSIGNED}confidence"
_ENTROPY = f"{ASSIGNED}entropy"


@dataclass(frozen=True)
class Matching:
    """Which learnt type stands for each true type, one to one.

    Parameters
    ----------
    learnt : tuple of (int or None), length T
        None for a true type that is left over where there are more true types than learnt ones.
    accuracy : float
        Share of people whose learnt type stands for their true type; 0 without anybody.
    """

    learnt: tuple[int | None, ...]
    accuracy: float


def match_types(confusion: Tensor) -> Matching:
    """Return the matching under which most people are assigned rightly (Kuhn 1955).

    Parameters
    ----------
    confusion : Tensor, shape (T, K)
        People of each true type (rows) assigned to each learnt type.
    """
    rows, columns = linear_sum_assignment(confusion.double().numpy(), maximize=True)
    learnt: list[int | None] = [None] * len(confusion)
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        learnt[row] = column
    people = float(confusion.sum())
    right = sum(float(confusion[row, column]) for row, column in enumerate(learnt) if column is not None)
    return Matching(tuple(learnt), right / people if people else 0.0)


def adjusted_rand(confusion: Tensor) -> float:
    """Return the adjusted Rand index of learnt and true types (Hubert and Arabie 1985): 1 the same, 0 by chance.

    Parameters
    ----------
    confusion : Tensor, shape (T, K)

    Returns
    -------
    float
        0 when there are people of fewer than two true types.
    """
    counts = confusion.double()
    true, learnt = counts.sum(1), counts.sum(0)
    if int((true > 0).sum()) < 2:
        return 0.0
    together, by_type, by_learnt, pairs = map(_pairs, (counts, true, learnt, counts.sum()))
    expected = by_type * by_learnt / pairs
    most = (by_type + by_learnt) / 2
    # Nobody shares a true type and nobody a learnt one: the same partition.
    return (together - expected) / (most - expected) if most > expected else 1.0


def largest_share(counts: Tensor) -> float:
    """Return the share of people in the learnt type that has most, from counts of shape (K,); 0 without anybody."""
    people = float(counts.sum())
    return float(counts.max()) / people if people else 0.0


def assignment_entropy(posteriors: Tensor) -> Tensor:
    """Return the entropy of each person's posterior over types, in nats.

    Parameters
    ----------
    posteriors : Tensor, shape (K, P)

    Returns
    -------
    float64 Tensor, shape (P,)
    """
    entropy: Tensor = torch.special.entr(posteriors.double()).sum(0)
    return entropy


def calibration_error(right: Tensor, confidence: Tensor, people: Tensor) -> float:
    """Return the expected calibration error (Guo et al. 2017, arXiv 1706.04599, Eq. 3) from sums by bin of confidence.

    Parameters
    ----------
    right : Tensor, shape (bins,)
        People assigned rightly.
    confidence : Tensor, shape (bins,)
        Sum of the probabilities of the types that people are assigned to.
    people : Tensor, shape (bins,)

    Returns
    -------
    float
        0 without anybody.
    """
    total = float(people.sum())
    return float((right.double() - confidence.double()).abs().sum()) / total if total else 0.0


def assignment_sums(posteriors: Tensor, types: Sequence[str | None]) -> State:
    """Return what one client tells of its annotators' posteriors, to be added over clients.

    Parameters
    ----------
    posteriors : Tensor, shape (K, P)
        Columns sum to 1.
    types : sequence of (str or None), length P
        True types; None where they are not known.

    Returns
    -------
    State
        Under names that begin with ``assigned/``: counts of people by bin of confidence and learnt type, (bins, K), for
        each true type and for the unknown; the summed confidence of people of known type, (bins,); the summed
        entropy of all, (1,).

    Raises
    ------
    ValueError
        If there is not one type for each column.
    """
    if posteriors.shape[1] != len(types):
        raise ValueError(f"{posteriors.shape[1]} posteriors, but {len(types)} types")
    learnt, bins = len(posteriors), torch.zeros(BINS, dtype=torch.float64)
    sums: State = {_CONFIDENCE: bins, _ENTROPY: assignment_entropy(posteriors).sum().reshape(1)}
    confidences, chosen = posteriors.double().max(0)
    for kind, confidence, number in zip(types, confidences.tolist(), chosen.tolist(), strict=True):
        name = _UNKNOWN if kind is None else _TYPE + kind
        at = min(int(confidence * BINS), BINS - 1)
        sums.setdefault(name, torch.zeros(BINS, learnt, dtype=torch.float64))[at, number] += 1
        if kind is not None:
            bins[at] += confidence
    return sums


def assignment_metrics(sums: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the measures of the summed tensors of :func:`assignment_sums`; other names are passed over.

    Returns
    -------
    dict
        ``assignment_entropy`` (mean, nats) and ``largest_type_share`` of all people; ``type_accuracy``,
        ``adjusted_rand`` and ``calibration_error`` of people whose true type is known, if there are any. Nothing
        without anybody.
    """
    known = {name: counts.double() for name, counts in sorted(sums.items()) if name.startswith(_TYPE)}
    counted = [*known.values(), *(sums[name].double() for name in (_UNKNOWN,) if name in sums)]
    if not counted:
        return {}
    everybody = torch.stack(counted).sum(0)
    found = {
        "assignment_entropy": float(sums[_ENTROPY].sum()) / float(everybody.sum()),
        "largest_type_share": largest_share(everybody.sum(0)),
    }
    return found | (_known_metrics(torch.stack([*known.values()]), sums[_CONFIDENCE]) if known else {})


def _known_metrics(counts: Tensor, confidence: Tensor) -> dict[str, float]:
    """Return measures of people of known type, from counts of shape (T, bins, K)."""
    confusion = counts.sum(1)
    matching = match_types(confusion)
    right = torch.zeros(counts.shape[1], dtype=torch.float64)
    for row, column in enumerate(matching.learnt):
        if column is not None:
            right += counts[row, :, column]
    return {
        "type_accuracy": matching.accuracy,
        "adjusted_rand": adjusted_rand(confusion),
        "calibration_error": calibration_error(right, confidence, counts.sum((0, 2))),
    }


def _pairs(counts: Tensor) -> float:
    """Return how many pairs of people there are within each count, summed."""
    return float((counts * (counts - 1) / 2).sum())


__all__ = [
    "ASSIGNED",
    "BINS",
    "Matching",
    "adjusted_rand",
    "assignment_entropy",
    "assignment_metrics",
    "assignment_sums",
    "calibration_error",
    "largest_share",
    "match_types",
]
