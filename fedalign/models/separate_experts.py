"""Experts with weights of their own, and experts of which only probabilities are to be had."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedalign.errors import UserError
from fedalign.models.causal import CausalModel
from fedalign.models.experts import Experts, Pairs
from fedalign.objectives.expert_mixture import truncate
from fedalign.pretrained import Dtype, load_tokenizer

_KEY = "method.experts.models"
_SLACK = 1e-3
"""By how much probabilities may miss 1 upwards before they are taken for something else."""


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
"""From token ids and attention mask (R, T) to probabilities (R, V) of what follows the last token, which is none of
padding; or to the likeliest of them."""


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

    def _gathered(self, pairs: Pairs, places: int, of: Callable[[int, Tensor], Tensor]) -> Tensor:
        """Return log-probabilities in the order of the pairs, asking ``of(expert, texts)`` once for each expert."""
        shape = len(pairs.text), places, self._vocabulary
        found = torch.zeros(shape, dtype=torch.float32, device=self._device)
        for expert in range(len(self.names)):
            rows = (pairs.expert == expert).nonzero()[:, 0]
            if len(rows):
                found[rows] = of(expert, pairs.text[rows])
        return found


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
        self._models = [_model(*one, dtype, device) for one in zip(folders, names, strict=True)]
        _check_vocabularies(self._models, folders, names)
        first = self._models[0]
        self._device, self._vocabulary, self._pad_token = first.device, first.vocabulary, first.pad_token
        self._end_tokens = tuple(dict.fromkeys(token for model in self._models for token in model.end_tokens))
        self._max_tokens = min(
            (model.max_tokens for model in self._models if model.max_tokens is not None), default=None
        )

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
        """Return log-probabilities from a pass of each expert that is asked; the cache holds one of each."""
        caches: dict[int, Any] = {}

        def of(expert: int, texts: Tensor) -> Tensor:
            past = None if cache is None else cache[expert]
            rows = input_ids[texts], attention_mask[texts]
            logits, caches[expert] = self._models[expert].advance(*rows, past, keep_cache, last_only)
            return logits.log_softmax(2)

        found = self._gathered(pairs, 1 if last_only else input_ids.shape[1], of)
        return found, caches if keep_cache else None


class CallableExperts(_OneByOne):
    """n black boxes: functions from texts to probabilities of the next token, as from services.

    Probabilities are normalised to a sum of 1. Where some tokens are unknown or impossible, all share ``floor``, see
    :func:`fedalign.objectives.expert_mixture.truncate`, so that log-probabilities are finite.

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
        if len(functions) != len(names):
            raise ValueError(f"{len(functions)} functions have {len(names)} names")
        self.names, self._functions = tuple(names), tuple(functions)
        self._device, self._vocabulary, self._max_tokens = torch.device(device), vocabulary, max_tokens
        self._end_tokens, self._pad_token = end_tokens, pad_token
        self._top, self._floor = vocabulary if top is None else min(top, vocabulary), floor

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
        """Return log-probabilities from one call a prefix and expert; the cache is all token ids so far.

        Nobody is asked what follows padding: there, all tokens are found equally likely.

        Raises
        ------
        ValueError
            If what an expert returns are not probabilities.
        """
        ids = input_ids if cache is None else torch.cat([cache, input_ids], 1)
        length = ids.shape[1]
        ends = range(length if last_only else length - input_ids.shape[1] + 1, length + 1)

        def of(expert: int, texts: Tensor) -> Tensor:
            found = ids.new_zeros((len(texts), len(ends), self._vocabulary), dtype=torch.float32)
            found -= torch.tensor(float(self._vocabulary)).log()
            for place, end in enumerate(ends):
                there = attention_mask[texts, end - 1].bool()
                if bool(there.any()):
                    asked = texts[there]
                    found[there, place] = self._ask(expert, ids[asked, :end], attention_mask[asked, :end])
            return found

        return self._gathered(pairs, len(ends), of), ids if keep_cache else None

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
        floored = truncate(exact, self._top, self._floor)
        known = self._top == self._vocabulary and exact.isfinite().all(1, keepdim=True)
        return torch.where(torch.as_tensor(known, device=self._device), exact, floored).float()


def _spread(given: TopProbabilities, rows: int, vocabulary: int) -> Tensor:
    """Return the likeliest tokens' probabilities over the vocabulary, 0 elsewhere."""
    tokens, shape = given.tokens.long(), tuple(given.probabilities.shape)
    if tuple(tokens.shape) != shape or len(shape) != 2 or len(tokens) != rows:
        raise ValueError(f"tokens {tuple(tokens.shape)} and probabilities {shape} should both be ({rows}, k)")
    if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocabulary:
        raise ValueError(f"tokens should be in [0, {vocabulary})")
    if bool((tokens.sort(1).values.diff(dim=1) == 0).any()):
        raise ValueError("a token is given twice")
    values = given.probabilities.double()
    return values.new_zeros(rows, vocabulary).scatter(1, tokens, values)


def _checked(probabilities: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return probabilities as float64, if that is what they are."""
    if tuple(probabilities.shape) != shape:
        raise ValueError(f"probabilities should have shape {shape}, not {tuple(probabilities.shape)}")
    found = probabilities.double()
    if not bool(found.isfinite().all()) or bool((found < 0).any()):
        raise ValueError("probabilities should be finite and not negative")
    sums = found.sum(1)
    if not bool(((sums > 0) & (sums <= 1 + _SLACK)).all()):
        raise ValueError(f"probabilities should sum to 1 at most and to more than 0, not to {_odd(sums):.4g}")
    return found


def _odd(sums: Tensor) -> float:
    """Return the sum that is furthest from 1."""
    return float(sums[(sums - 1).abs().argmax()])


def _model(folder: Path, name: str, dtype: Dtype, device: str) -> CausalModel:
    try:
        return CausalModel(folder, dtype, device)
    except UserError as error:
        raise UserError(f"{_KEY}.{name}{str(error).removeprefix('model')}") from None


def _check_vocabularies(models: Sequence[CausalModel], folders: Sequence[Path], names: Sequence[str]) -> None:
    words = [load_tokenizer(folder, f"{_KEY}.{name}").get_vocab() for folder, name in zip(folders, names, strict=True)]
    first = sorted(words[0].items(), key=lambda item: item[1])
    for model, folder, name, own in zip(models, folders, names, words, strict=True):
        differs = ""
        if len(own) != len(first):
            differs = f"its tokenizer has {len(own)} tokens, that of {names[0]} {len(first)}"
        elif own != words[0]:
            mine = sorted(own.items(), key=lambda item: item[1])
            here, there = next((a, b) for a, b in zip(mine, first, strict=True) if a != b)
            differs = f"its token {here[1]} is {here[0]!r}, token {there[1]} of {names[0]} is {there[0]!r}"
        elif model.vocabulary != models[0].vocabulary:
            differs = f"its logits are over {model.vocabulary} tokens, those of {names[0]} over {models[0].vocabulary}"
        if differs:
            raise UserError(
                f"{_KEY}.{name}={folder}: {differs}; experts must share one vocabulary; choose models of one family"
            )
