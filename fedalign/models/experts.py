"""Frozen experts over one vocabulary: how likely each that is asked finds the next token of each text."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedalign.models.mixture import truncate


@dataclass(frozen=True)
class Pairs:
    """Which experts speak of which texts, P pairs; an expert that no text needs costs nothing.

    Parameters
    ----------
    text, expert : int64 tensor, shape (P,)
        Sorted by text, then by expert.
    """

    text: Tensor
    expert: Tensor

    @classmethod
    def of(cls, active: Tensor) -> Pairs:
        """Return the pairs of a bool tensor, shape (B, n)."""
        text, expert = active.nonzero(as_tuple=True)
        return cls(text, expert)


class Experts(ABC):
    """n frozen language models that read and write the same tokens.

    Attributes
    ----------
    names : tuple of str, length n
    """

    names: tuple[str, ...]

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where inputs must be."""

    @property
    @abstractmethod
    def vocabulary(self) -> int:
        """V, the number of tokens."""

    @property
    @abstractmethod
    def end_tokens(self) -> tuple[int, ...]:
        """Tokens that end a text; may be empty."""

    @property
    @abstractmethod
    def pad_token(self) -> int:
        """The token that stands where there is none."""

    @property
    @abstractmethod
    def max_tokens(self) -> int | None:
        """Longest text in tokens; None if nothing says."""

    @abstractmethod
    def advance(
        self,
        pairs: Pairs,
        input_ids: Tensor,
        attention_mask: Tensor,
        cache: Any,
        keep_cache: bool = True,
        last_only: bool = False,
    ) -> tuple[Tensor, Any]:
        """Return what each pair's expert finds of the tokens that follow; without gradients.

        Parameters
        ----------
        pairs : Pairs
            The same in all calls of one text.
        input_ids : int64 tensor, shape (B, new)
            Tokens that the cache does not hold yet.
        attention_mask : int64 tensor, shape (B, past + new)
            Over all tokens so far; 0 for padding, on either side.
        cache : Any
            What the call before returned; None at the start.
        keep_cache : bool
            Whether to make one.
        last_only : bool
            Whether the token after the last is all that is asked about.

        Returns
        -------
        log_probs : float32 tensor, shape (P, new, V) or (P, 1, V)
        cache : Any
        """

    def base(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return what a model that favours no expert finds of the tokens that follow; without gradients.

        Where experts are made of one model, that model; by default their even mixture.

        Parameters
        ----------
        input_ids, attention_mask : int64 tensor, shape (B, T)

        Returns
        -------
        float32 tensor, shape (B, T, V)
            Log-probabilities.
        """
        count = len(self.names)
        everyone = torch.ones(len(input_ids), count, dtype=torch.bool, device=input_ids.device)
        found, _ = self.advance(Pairs.of(everyone), input_ids, attention_mask, None, keep_cache=False)
        return found.view(len(input_ids), count, *found.shape[1:]).logsumexp(1) - math.log(count)


class TopTokens(Experts):
    """Experts of which only the likeliest tokens are known, as from a service that gives no more.

    Parameters
    ----------
    experts : Experts
    top : int
        Tokens that are known.
    floor : float
        Probability that the others share with all, see :func:`fedalign.models.mixture.truncate`.
    """

    def __init__(self, experts: Experts, top: int, floor: float) -> None:
        self.names, self._experts, self._top, self._floor = experts.names, experts, top, floor

    @property
    def device(self) -> torch.device:
        """Where inputs must be."""
        return self._experts.device

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""
        return self._experts.vocabulary

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """Tokens that end a text."""
        return self._experts.end_tokens

    @property
    def pad_token(self) -> int:
        """The token that stands where there is none."""
        return self._experts.pad_token

    @property
    def max_tokens(self) -> int | None:
        """Longest text in tokens."""
        return self._experts.max_tokens

    def advance(
        self,
        pairs: Pairs,
        input_ids: Tensor,
        attention_mask: Tensor,
        cache: Any,
        keep_cache: bool = True,
        last_only: bool = False,
    ) -> tuple[Tensor, Any]:
        """Return what is left of the experts' distributions."""
        found, cache = self._experts.advance(pairs, input_ids, attention_mask, cache, keep_cache, last_only)
        return truncate(found, self._top, self._floor), cache
