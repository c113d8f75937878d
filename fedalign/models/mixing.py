"""How experts' distributions become one: linearly in probabilities, or log-linearly."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fedalign.models.experts import Pairs
from fedalign.models.mixture import linear_log_probability, log_linear_log_probability


@dataclass(frozen=True)
class Spoken:
    """What experts found of tokens that were drawn: all that training needs of them.

    Parameters
    ----------
    chosen : float32 tensor, shape (B, S, n)
        Each expert's log-probability of the token; 0 for experts that were not asked.
    whole : float32 tensor, shape (B, S, n, V), or None
        Their distributions, where the mixture needs these.
    tokens : int64 tensor, shape (B, S)
    """

    chosen: Tensor
    whole: Tensor | None
    tokens: Tensor

    def rows(self, index: Tensor) -> Spoken:
        """Return the texts at ``index``, int64 of shape (N,)."""
        whole = None if self.whole is None else self.whole[index]
        return Spoken(self.chosen[index], whole, self.tokens[index])

    def padded(self, columns: int, pad: int) -> Spoken:
        """Return as many columns more, of a padding token that no expert was asked about."""
        chosen, tokens = F.pad(self.chosen, (0, 0, 0, columns)), F.pad(self.tokens, (0, columns), value=pad)
        return Spoken(chosen, None if self.whole is None else F.pad(self.whole, (0, 0, 0, 0, 0, columns)), tokens)

    @staticmethod
    def columns(parts: Sequence[Spoken]) -> Spoken:
        """Return texts whose tokens came in parts, at least one."""
        whole = [part.whole for part in parts if part.whole is not None]
        chosen, tokens = (torch.cat([getattr(part, name) for part in parts], 1) for name in ("chosen", "tokens"))
        return Spoken(chosen, torch.cat(whole, 1) if whole else None, tokens)

    @staticmethod
    def joined(parts: Sequence[Spoken]) -> Spoken:
        """Return texts that experts were asked about in parts, at least one."""
        whole = [part.whole for part in parts if part.whole is not None]
        chosen, tokens = (torch.cat([getattr(part, name) for part in parts]) for name in ("chosen", "tokens"))
        return Spoken(chosen, torch.cat(whole) if whole else None, tokens)


class Mixing(ABC):
    """The ``mixing`` part of the method; subclasses are frozen dataclasses.

    Attributes
    ----------
    needs_whole : bool
        Whether training needs whole distributions and not one number an expert and token.
    """

    needs_whole: bool

    @abstractmethod
    def next_token(self, log_weights: Tensor, log_probs: Tensor, pairs: Pairs) -> Tensor:
        """Return the distribution of the next token.

        Parameters
        ----------
        log_weights : float tensor, shape (B, n)
            ``-inf`` for experts that have no part.
        log_probs : float tensor, shape (P, V)
        pairs : Pairs

        Returns
        -------
        float tensor, shape (B, V)
            Log-probabilities.
        """

    @abstractmethod
    def log_probability(self, log_weights: Tensor, spoken: Spoken) -> Tensor:
        """Return how likely the mixture finds each token, shape (B, S); weights have shape (B, S, n)."""


@dataclass(frozen=True)
class Linear(Mixing):
    """``sum_i alpha_i p_i``, as published: never sharper than the experts, and trained from n numbers a token."""

    needs_whole = False

    def next_token(self, log_weights: Tensor, log_probs: Tensor, pairs: Pairs) -> Tensor:
        """Return the logarithm of the weighted mean of the experts' probabilities."""
        each = (log_weights[pairs.text, pairs.expert][:, None] + log_probs).exp()
        return each.new_zeros(len(log_weights), each.shape[1]).index_add_(0, pairs.text, each).log()

    def log_probability(self, log_weights: Tensor, spoken: Spoken) -> Tensor:
        """Return it from the experts' log-probabilities of the tokens."""
        return linear_log_probability(log_weights, spoken.chosen)


@dataclass(frozen=True)
class LogLinear(Mixing):
    """``prod_i p_i^alpha_i``, normalised: it can be sharper than any expert, and training keeps distributions."""

    needs_whole = True

    def next_token(self, log_weights: Tensor, log_probs: Tensor, pairs: Pairs) -> Tensor:
        """Return the normalised weighted mean of the experts' log-probabilities."""
        each = log_weights[pairs.text, pairs.expert].exp()[:, None] * log_probs
        return each.new_zeros(len(log_weights), each.shape[1]).index_add_(0, pairs.text, each).log_softmax(1)

    def log_probability(self, log_weights: Tensor, spoken: Spoken) -> Tensor:
        """Return it from the experts' distributions."""
        assert spoken.whole is not None
        return log_linear_log_probability(log_weights, spoken.whole, spoken.tokens)


def spoken_of(pairs: Pairs, log_probs: Tensor, tokens: Tensor, shape: tuple[int, int], whole: bool) -> Spoken:
    """Return what experts found of tokens, dense over experts.

    Parameters
    ----------
    pairs : Pairs
    log_probs : float tensor, shape (P, S, V)
        At the places that foretell the tokens.
    tokens : int64 tensor, shape (B, S)
    shape : (int, int)
        B and n.
    whole : bool
        Whether to keep the distributions.
    """
    picked = log_probs.gather(2, tokens[pairs.text][:, :, None])[..., 0]
    chosen = picked.new_zeros(shape[0], tokens.shape[1], shape[1])
    chosen[pairs.text, :, pairs.expert] = picked
    if not whole:
        return Spoken(chosen, None, tokens)
    dense = log_probs.new_zeros(shape[0], tokens.shape[1], shape[1], log_probs.shape[2])
    dense[pairs.text, :, pairs.expert] = log_probs
    return Spoken(chosen, dense, tokens)
