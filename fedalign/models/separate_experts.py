"""Experts with weights of their own, and experts of which only probabilities are to be had."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedalign.errors import UserError
from fedalign.models.causal import CausalModel
from fedalign.models.experts import Experts, Pairs
from fedalign.models.mixture import truncate
from fedalign.pretrained import Dtype, load_tokenizer

_KEY = "method.experts.models"


@dataclass(frozen=True)
class TopProbabilities:
    """The likeliest next tokens of R texts, where a service gives no more.

    Parameters
    ----------
    tokens : int64 tensor, shape (R, k)
        Distinct in a row.
    probabilities : float tensor, shape (R, k)
    """

    tokens: Tensor
    probabilities: Tensor


NextToken = Callable[[Tensor, Tensor], Tensor | TopProbabilities]
"""From token ids and attention mask (R, T) to probabilities (R, V) of what follows the last token, never padding."""


class _OneByOne(Experts):
    """Experts that are run one after another, each on the texts that need it."""

    _device: torch.device
    _vocabulary: int
    _end_tokens: tuple[int, ...]
    _pad_token: int
    _max_tokens: int | None

    @property
    def device(self) -> torch.device:
        """Where inputs must be."""
        return self._device

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""
        return self._vocabulary

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """Tokens that end a text."""
        return self._end_tokens

    @property
    def pad_token(self) -> int:
        """The token that stands where there is none."""
        return self._pad_token

    @property
    def max_tokens(self) -> int | None:
        """Longest text in tokens."""
        return self._max_tokens

    @torch.no_grad()
    def advance(
        self,
        pairs: Pairs,
        input_ids: Tensor,
        attention_mask: Tensor,
        cache: Any,
        keep_cache: bool = True,
        last_only: bool = False,
    ) -> tuple[Tensor, Any]:
        """Return log-probabilities in the order of the pairs; the cache holds one of each expert that was asked."""
        found = torch.zeros(len(pairs.text), 1 if last_only else input_ids.shape[1], self.vocabulary).to(self.device)
        caches: dict[int, Any] = {}
        for expert in range(len(self.names)):
            rows = (pairs.expert == expert).nonzero()[:, 0]
            if len(rows):
                texts, past = pairs.text[rows], None if cache is None else cache[expert]
                inputs = input_ids[texts], attention_mask[texts], past, keep_cache, last_only
                found[rows], caches[expert] = self._one(expert, *inputs)
        return found, caches if keep_cache else None

    @abstractmethod
    def _one(
        self, expert: int, ids: Tensor, mask: Tensor, cache: Any, keep_cache: bool, last_only: bool
    ) -> tuple[Tensor, Any]:
        """Return what one expert finds of its own texts, shape (R, new, V) or (R, 1, V), and its cache."""


class SeparateExperts(_OneByOne):
    """n causal models that share nothing but their tokens; one that no text asks for is not run.

    A text ends at whatever ends a text for any of them, and is no longer than the shortest reads.

    Parameters
    ----------
    folders : sequence of Path, length n
    names : sequence of str, length n
    dtype : "float32", "bfloat16" or "float16"
    device : str

    Raises
    ------
    UserError
        If a model cannot be loaded, or they do not read and write the same tokens.
    """

    def __init__(self, folders: Sequence[Path], names: Sequence[str], dtype: Dtype, device: str) -> None:
        self.names = tuple(names)
        self._models: list[CausalModel] = []
        for folder, name in zip(folders, names, strict=True):
            try:
                self._models.append(CausalModel(folder, dtype, device))
            except UserError as error:
                raise UserError(f"{_KEY}.{name}{str(error).removeprefix('model')}") from None
        _check_vocabularies(self._models, folders, names)
        first = self._models[0]
        self._device, self._vocabulary, self._pad_token = first.device, first.vocabulary, first.pad_token
        self._end_tokens = tuple(dict.fromkeys(token for model in self._models for token in model.end_tokens))
        self._max_tokens = min((one.max_tokens for one in self._models if one.max_tokens is not None), default=None)

    def _one(
        self, expert: int, ids: Tensor, mask: Tensor, cache: Any, keep_cache: bool, last_only: bool
    ) -> tuple[Tensor, Any]:
        logits, cache = self._models[expert].advance(ids, mask, cache, keep_cache, last_only)
        return logits.log_softmax(2), cache


class CallableExperts(_OneByOne):
    """n black boxes: functions from texts to probabilities of the next token, as from services.

    Probabilities are normalised to a sum of 1. Where some tokens are unknown or impossible, all share ``floor``, see
    :func:`fedalign.models.mixture.truncate`, so that log-probabilities are finite. Nobody is asked what
    follows padding: there, all tokens are found equally likely. A ``ValueError`` names the function that returns no
    probabilities.

    Parameters
    ----------
    functions : sequence of NextToken, length n
    names : sequence of str, length n
    vocabulary : int
    end_tokens : tuple of int
    pad_token : int
    max_tokens : int or None
    top : int or None
        Use the likeliest tokens alone; None uses all that a function gives.
    floor : float
        In (0, 1).
    device : str
        Where texts come from and log-probabilities go.
    """

    def __init__(
        self,
        functions: Sequence[NextToken],
        names: Sequence[str],
        vocabulary: int,
        end_tokens: tuple[int, ...],
        pad_token: int,
        max_tokens: int | None,
        top: int | None,
        floor: float,
        device: str = "cpu",
    ) -> None:
        self.names, self._functions = tuple(names), [one for one, _ in zip(functions, names, strict=True)]
        self._device, self._vocabulary, self._max_tokens = torch.device(device), vocabulary, max_tokens
        self._end_tokens, self._pad_token = end_tokens, pad_token
        self._top, self._floor = vocabulary if top is None else min(top, vocabulary), floor

    def _one(
        self, expert: int, ids: Tensor, mask: Tensor, cache: Any, keep_cache: bool, last_only: bool
    ) -> tuple[Tensor, Any]:
        asked = 1 if last_only else ids.shape[1]
        ids = ids if cache is None else torch.cat([cache, ids], 1)
        ends = range(ids.shape[1] - asked + 1, ids.shape[1] + 1)
        found = torch.full((len(ids), asked, self._vocabulary), -math.log(self._vocabulary)).to(ids.device)
        for place, end in enumerate(ends):
            there = mask[:, end - 1].bool()
            if bool(there.any()):
                found[there, place] = self._ask(expert, ids[there, :end], mask[there, :end])
        return found, ids if keep_cache else None

    def _ask(self, expert: int, ids: Tensor, mask: Tensor) -> Tensor:
        """Return log-probabilities, shape (R, V)."""
        given = self._functions[expert](ids, mask)
        try:
            if isinstance(given, TopProbabilities):
                given = _spread(given, len(ids), self._vocabulary)
            probabilities = _checked(given, (len(ids), self._vocabulary)).to(self._device)
        except ValueError as error:
            raise ValueError(f"expert {self.names[expert]}: {error}") from None
        exact = (probabilities / probabilities.sum(1, keepdim=True)).log()
        whole = exact.isfinite().all(1, keepdim=True) & (self._top == self._vocabulary)
        return exact.where(whole, truncate(exact, self._top, self._floor)).float()


def _spread(given: TopProbabilities, rows: int, vocabulary: int) -> Tensor:
    """Return the likeliest tokens' probabilities over the vocabulary, 0 elsewhere."""
    tokens, shape = given.tokens.long(), tuple(given.probabilities.shape)
    if tuple(tokens.shape) != shape or shape != (rows, *shape[1:2]):
        raise ValueError(f"tokens {tuple(tokens.shape)} and probabilities {shape} should both be ({rows}, k)")
    if bool(((tokens < 0) | (tokens >= vocabulary)).any()) or bool((tokens.sort(1).values.diff(dim=1) == 0).any()):
        raise ValueError(f"tokens should be in [0, {vocabulary}), each once")
    return given.probabilities.new_zeros(rows, vocabulary).scatter(1, tokens, given.probabilities)


def _checked(probabilities: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return probabilities as float64, if that is what they are."""
    if tuple(probabilities.shape) != shape:
        raise ValueError(f"probabilities should have shape {shape}, not {tuple(probabilities.shape)}")
    found = probabilities.double()
    if not bool((found.isfinite() & (found >= 0)).all()):
        raise ValueError("probabilities should be finite and not negative")
    for total in found.sum(1).tolist():
        if not 0 < total <= 1 + 1e-3:
            raise ValueError(f"probabilities should sum to more than 0 and at most 1, not to {total:.4g}")
    return found


def _check_vocabularies(models: Sequence[CausalModel], folders: Sequence[Path], names: Sequence[str]) -> None:
    first: list[tuple[str, int]] = []
    for model, folder, name in zip(models, folders, names, strict=True):
        own = sorted(load_tokenizer(folder, f"{_KEY}.{name}").get_vocab().items(), key=lambda item: int(item[1]))
        first, differs = first or own, ""
        if len(own) != len(first):
            differs = f"its tokenizer has {len(own)} tokens, that of {names[0]} {len(first)}"
        elif own != first:
            mine, other = next(both for both in zip(own, first, strict=True) if both[0] != both[1])
            differs = f"its token {mine[1]} is {mine[0]!r}, token {other[1]} of {names[0]} is {other[0]!r}"
        elif model.vocabulary != models[0].vocabulary:
            differs = f"its logits are over {model.vocabulary} tokens, those of {names[0]} over {models[0].vocabulary}"
        if differs:
            fix = "experts must share one vocabulary; choose models of one family"
            raise UserError(f"{_KEY}.{name}={folder}: {differs}; {fix}")
