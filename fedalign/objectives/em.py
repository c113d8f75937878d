"""Expectation and maximisation over latent types: which type an annotator is of, and how many there are of each.

All in float64: log-likelihoods add up over an annotator's judgments, and small differences between large sums decide.
"""

from __future__ import annotations

import torch
from torch import Tensor


def per_annotator(log_likelihood: Tensor, owner: Tensor, people: int) -> Tensor:
    """Return the log-likelihood of all judgments of each annotator under each type.

    Parameters
    ----------
    log_likelihood : Tensor, shape (K, N)
        Of each judgment, in nats.
    owner : int64 Tensor, shape (N,)
        Whose judgment it is.
    people : int
        Number P of annotators.

    Returns
    -------
    float64 Tensor, shape (K, P)
        0 for an annotator without a judgment.
    """
    sums = log_likelihood.new_zeros(len(log_likelihood), people, dtype=torch.float64)
    return sums.index_add(1, owner, log_likelihood.double())


def responsibilities_of(log_likelihood: Tensor, log_prior: Tensor, temper: float) -> Tensor:
    """Return p(type | judgments) of each annotator: the E-step of EM-DPO (Chidambaram et al., arXiv 2405.15065).

    Parameters
    ----------
    log_likelihood : Tensor, shape (K, P)
        Of all judgments of each annotator, see :func:`per_annotator`.
    log_prior : Tensor, shape (K,)
        Log share of each type; -inf for a type that nobody is of.
    temper : float
        What log-likelihoods are multiplied by; below 1 it holds back posteriors while types are barely trained.

    Returns
    -------
    float64 Tensor, shape (K, P)
        ``softmax_k(log prior_k + temper * l_kp)``; columns sum to 1. Where all types are equally likely, the prior.
    """
    # Less the best type's, so that the prior is not rounded away where sums are large.
    relative = log_likelihood.double() - log_likelihood.double().amax(0)
    return torch.softmax(log_prior.double()[:, None] + temper * relative, 0)


def one_hot_of(log_likelihood: Tensor) -> Tensor:
    """Return the hard assignment of each annotator to its likeliest type, the first of several.

    Parameters
    ----------
    log_likelihood : Tensor, shape (K, P)

    Returns
    -------
    float64 Tensor, shape (K, P)
        1 at the likeliest type, 0 elsewhere.
    """
    best = log_likelihood.argmax(0, keepdim=True)
    return log_likelihood.new_zeros(log_likelihood.shape, dtype=torch.float64).scatter(0, best, 1.0)


def mixture_log_likelihood(log_likelihood: Tensor, log_weights: Tensor) -> Tensor:
    """Return the log-likelihood of each annotator's judgments when the type is not known.

    Parameters
    ----------
    log_likelihood : Tensor, shape (K, P)
    log_weights : Tensor, shape (K,) or (K, P)
        Log share of each type, for all or for each annotator.

    Returns
    -------
    float64 Tensor, shape (P,)
        ``log sum_k w_k exp(l_kp)``.
    """
    weights = log_weights.double().reshape(len(log_weights), -1)
    return torch.logsumexp(weights + log_likelihood.double(), 0)


def effective_types(prior: Tensor) -> float:
    """Return the exponential of the entropy of a prior, shape (K,): K where types are even, 1 where one has all."""
    return float(torch.special.entr(prior.double()).sum().exp())


def per_judgment_responsibilities(
    log_likelihood: Tensor, owner: Tensor, people: int, iterations: int
) -> tuple[Tensor, Tensor]:
    """Return p(component | judgment) under mixture weights of each person (FedEM, arXiv 2108.10252, Eq. 7 and 8).

    Other than in EM-DPO, one person's judgments may come from different components.

    Parameters
    ----------
    log_likelihood : Tensor, shape (K, N)
        Of each judgment, in nats.
    owner : int64 Tensor, shape (N,)
    people : int
        Number P of annotators.
    iterations : int
        Of EM over the weights, which start equal.

    Returns
    -------
    responsibilities : float64 Tensor, shape (K, N)
        Under the weights returned; columns sum to 1.
    weights : float64 Tensor, shape (K, P)
        Mean responsibility of a person's judgments; equal for a person without any.
    """
    types = len(log_likelihood)
    counts = torch.bincount(owner, minlength=people)
    weights = log_likelihood.new_full((types, people), 1.0 / types, dtype=torch.float64)
    found = _posterior(log_likelihood, weights, owner)
    for _ in range(iterations):
        means = per_annotator(found, owner, people) / counts.clamp(min=1)
        weights = torch.where(counts > 0, means, weights)
        found = _posterior(log_likelihood, weights, owner)
    return found, weights


def _posterior(log_likelihood: Tensor, weights: Tensor, owner: Tensor) -> Tensor:
    """Return p(component | judgment), shape (K, N), under its owner's weights, shape (K, P)."""
    return torch.softmax(weights.log()[:, owner] + log_likelihood.double(), 0)
