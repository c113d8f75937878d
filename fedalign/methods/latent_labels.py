"""Which of several responses somebody with a given latent prefers: a selector as the labeller of sampled pairs."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

PairLogits = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Features (N, K, dim) of first and of second responses and latents (N, d), to log odds of the first, shape (N, K)."""


@dataclass(frozen=True)
class Labelled:
    """M pairs, each under one latent.

    Parameters
    ----------
    prompt, preference : int64 tensor, shape (M,)
        Which prompt, and which of its latents.
    chosen, rejected : int64 tensor, shape (M,)
        Which of the prompt's responses.
    """

    prompt: Tensor
    preference: Tensor
    chosen: Tensor
    rejected: Tensor


def label_pairs(features: Tensor, latents: Tensor, logits: PairLogits, margin: float) -> Labelled:
    """Return, for every prompt and latent, the pair of responses on which that latent is the most decided.

    Parameters
    ----------
    features : float tensor, shape (N, k, dim)
        Encoded responses, k >= 2 for each prompt.
    latents : float tensor, shape (N, P, d)
        Preferences to label under.
    logits : callable
        A response's place in a pair carries no weight: both orders are asked and averaged.
    margin : float
        A pair whose log odds are not farther than this from 0 is left out; so is one of equal responses.
    """
    first, second = torch.tensor(list(itertools.combinations(range(features.shape[1]), 2))).T
    one, other = features[:, first], features[:, second]
    found = []
    for place in range(latents.shape[1]):
        z = latents[:, place]
        # (N, pairs of responses)
        odds = (logits(one, other, z) - logits(other, one, z)) / 2
        best = odds.abs().argmax(1, keepdim=True)
        decided = odds.gather(1, best)[:, 0]
        kept = (decided.abs() > margin).nonzero()[:, 0]
        a, b = first[best[kept, 0]], second[best[kept, 0]]
        wins = decided[kept] > 0
        preference = torch.full_like(kept, place)
        found.append(torch.stack([kept, preference, torch.where(wins, a, b), torch.where(wins, b, a)]))
    return Labelled(*torch.cat(found, 1))
