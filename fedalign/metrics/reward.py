"""Reward metrics as sums: how often the preferred response scores higher, and how far stated odds can be trusted."""

from __future__ import annotations

import torch
from torch import Tensor


def pair_accuracy(logits: Tensor, tie: Tensor) -> tuple[float, int]:
    """Return the sum of correct pairs and the number of pairs that count.

    Parameters
    ----------
    logits : Tensor, shape (N,)
        Log-odds that the chosen response is the better one. Above 0 is correct; exactly 0, as a model that ignores
        its input gives, is worth a half, like a coin.
    tie : bool Tensor, shape (N,)
        Pairs without a preference; nobody can be right about them, so they are left out of both numbers.

    Returns
    -------
    (float, int)
        Both 0 when all pairs are ties.

    Raises
    ------
    ValueError
        If a logit is NaN: an undefined prediction is an error here, never a wrong one.
    """
    if bool(torch.isnan(logits).any()):
        raise ValueError("logits must not be NaN")
    decided = logits[~tie]
    correct = (decided > 0).sum() + 0.5 * (decided == 0).sum()
    return float(correct), len(decided)


def calibration_sums(probabilities: Tensor, outcomes: Tensor, bins: int) -> Tensor:
    """Return what the calibration error is made of, summed within bins of equal width, so that clients can add it up.

    Parameters
    ----------
    probabilities : Tensor, shape (N,)
        Stated probability of an event, within [0, 1]; 1 falls in the last bin. For pairs the event must not be "the
        chosen response is better", which always happens: take "the first is better" in an order drawn at random.
    outcomes : Tensor, shape (N,)
        1 where it happened, 0 where not.
    bins : int

    Returns
    -------
    float64 Tensor, shape (3, bins)
        Number of predictions, sum of their probabilities, sum of their outcomes.

    Raises
    ------
    ValueError
        If a probability is outside [0, 1] or NaN, or the shapes differ.
    """
    stated, happened = probabilities.double(), outcomes.double()
    if stated.shape != happened.shape:
        raise ValueError(f"{tuple(stated.shape)} probabilities, but {tuple(happened.shape)} outcomes")
    if not bool(((stated >= 0) & (stated <= 1)).all()):
        raise ValueError("probabilities must lie within [0, 1]")
    index = (stated * bins).long().clamp_max(bins - 1)
    sums = torch.zeros(3, bins, dtype=torch.float64, device=stated.device)
    return sums.index_add(1, index, torch.stack([torch.ones_like(stated), stated, happened]))


def calibration_error(sums: Tensor) -> float:
    """Return the expected calibration error (Guo et al. 2017, arXiv 1706.04599, eq. 5) from ``calibration_sums``.

    It is the mean over predictions of |mean probability - share of events| in the prediction's bin; 0 when there is
    no prediction.
    """
    count, stated, happened = sums
    total = float(count.sum())
    return float((stated - happened).abs().sum()) / total if total else 0.0


def expected_calibration_error(probabilities: Tensor, outcomes: Tensor, bins: int) -> float:
    """Return the expected calibration error of predictions that are all in one place; see ``calibration_sums``."""
    return calibration_error(calibration_sums(probabilities, outcomes, bins))
