"""Metrics of generated texts: variety, repetition, overlap with references, wins, and means with their intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from scipy import stats
from torch import Tensor

ROUGE = ("rouge1", "rouge2", "rougeL")
"""The kinds of overlap that ``rouge`` counts: words, word pairs, longest common subsequence."""


class Interval(NamedTuple):
    """A mean, and the half-width of its confidence interval; None for a single value, which says nothing of spread."""

    mean: float
    half_width: float | None


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Return the share of different ones among all runs of n words (Li et al. 2016, arXiv 1510.03055).

    Of several texts it falls as they repeat each other or themselves, and with their number: compare equal numbers of
    texts of like length. It cannot be added up over clients; the mean over texts of ``distinct_n([text], n)`` can.

    Parameters
    ----------
    texts : sequence of str
        Words are what white space separates; no run goes over the end of a text.
    n : int

    Returns
    -------
    float
        1 where no text has n words. The paper divides by words, not by runs; for n > 1 its values are a little lower.
    """
    runs = [run for text in texts for run in _runs(text.split(), n)]
    return len(set(runs)) / len(runs) if runs else 1.0


def repetition(text: str, n: int = 3) -> float:
    """Return the share of a text's runs of n words that have come before in it.

    It is seq-rep-n of Welleck et al. (arXiv 1908.04319); 0 for a text of fewer than n words.
    """
    return 1.0 - distinct_n([text], n)


def empty_share(texts: Sequence[str]) -> float:
    """Return the share of texts that hold nothing but white space.

    Raises
    ------
    ValueError
        If there are no texts.
    """
    if not texts:
        raise ValueError("no texts to take a share of")
    return sum(not text.strip() for text in texts) / len(texts)


def rouge(references: Sequence[str], texts: Sequence[str], stem: bool = True) -> Mapping[str, Tensor]:
    """Return the F1 of each text's overlap with its reference (Lin 2004), by the package rouge-score.

    Words are runs of the letters a to z and digits, in lower case: a text in another script overlaps with nothing.

    Parameters
    ----------
    references, texts : sequences of str, each of length N
    stem : bool
        Whether words of more than three letters are compared by their Porter stems.

    Returns
    -------
    mapping from each of ``ROUGE`` to float64 tensor, shape (N,)
        In [0, 1]; 0 where either side has no words.

    Raises
    ------
    ValueError
        If there are not as many references as texts.
    """
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(list(ROUGE), use_stemmer=stem)
    scores = [scorer.score(reference, text) for reference, text in zip(references, texts, strict=True)]
    return {kind: torch.tensor([score[kind].fmeasure for score in scores], dtype=torch.float64) for kind in ROUGE}


def win(first: Tensor, second: Tensor) -> Tensor:
    """Return 1 where the first of two scores is higher, 0 where the second is, and 1/2 where they are equal.

    Parameters
    ----------
    first, second : Tensor, shape (N,)

    Returns
    -------
    float64 Tensor, shape (N,)

    Raises
    ------
    ValueError
        If the shapes differ or a score is NaN: an undefined score is an error here, never a loss.
    """
    if first.shape != second.shape:
        raise ValueError(f"{tuple(first.shape)} scores, but {tuple(second.shape)} to compare them to")
    if bool(first.isnan().any()) or bool(second.isnan().any()):
        raise ValueError("scores must not be NaN")
    return (first > second).double() + 0.5 * (first == second).double()


def mean_interval(total: float, squares: float, n: float, level: float = 0.95) -> Interval:
    """Return a mean with Student's interval from sums that clients can add up.

    The values must be independent, so a value belongs to a prompt: take the mean over the responses to one prompt
    first. The interval is about other prompts like these with this policy; other seeds of training are another matter.
    It knows nothing of noise that was added to the sums.

    Parameters
    ----------
    total, squares : float
        Sum of the values, and sum of their squares.
    n : float
        Their number.
    level : float
        Confidence level, in (0, 1).

    Raises
    ------
    ValueError
        If there are no values.
    """
    if n < 1:
        raise ValueError("no values to take the mean of")
    mean = total / n
    if n < 2:
        return Interval(mean, None)
    # Rounding can leave equal values a little below zero.
    variance = max(squares - total * mean, 0.0) / (n - 1)
    return Interval(mean, float(stats.t.ppf(0.5 + level / 2, n - 1)) * math.sqrt(variance / n))


def _runs(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """Return all runs of n neighbouring words."""
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
