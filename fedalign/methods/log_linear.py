"""A log-linear merge of types: one policy whose next token follows all types at once, without any training."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fedalign.contribution import State
from fedalign.methods.policy_writer import Written
from fedalign.methods.text_policies import TextPolicy, Writing
from fedalign.methods.type_adapters import AdapterTypes
from fedalign.methods.type_model import count, type_of
from fedalign.models.policy import ConditionalPolicy
from fedalign.models.text import ResponseBatch

_ROUNDING = 1e-6
"""What weights that were rounded to float32 may miss 1 by."""


class MergedNetwork(ConditionalPolicy):
    """A policy of next tokens proportional to ``ref^(1 - sum w) * prod_k pi_k^w_k``.

    For whole responses this is the KL-regularised optimum of the rewards' weighted sum (the merge of MPO, Wang et al.
    2025, arXiv 2502.18699); here every token is normalised by itself, as a policy must be that writes from left to
    right. A token takes a pass through the base for every type that has a weight, and one more where weights do not sum
    to 1.

    Parameters
    ----------
    model : AdapterTypes
        The workspace; it holds any of the adapters after a call.
    state : State
        With all types.
    weights : Tensor, shape (K,)
    """

    def __init__(self, model: AdapterTypes, state: State, weights: Tensor) -> None:
        # Not the parent's: there is nothing to build, the base and its adapter are the workspace's.
        nn.Module.__init__(self)
        self.latent, self._prefix, self.projection = 0, 0, None
        self.transformer = model.policy.transformer
        self._model = model
        self._parts: list[tuple[State | None, float]] = [
            (type_of(state, number), float(weights[number])) for number in range(count(state)) if weights[number] != 0
        ]
        rest = 1.0 - float(weights.double().sum())
        if abs(rest) > _ROUNDING:
            self._parts.append((None, rest))

    def advance(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        z: Tensor | None,
        cache: Any,
        keep_cache: bool = True,
        last_only: bool = False,
    ) -> tuple[Tensor, Any]:
        """Return merged logits at the new tokens, and the caches of all that are merged."""
        caches = [None] * len(self._parts) if cache is None else cache
        merged, kept = torch.zeros((), device=input_ids.device), []
        for (parameters, weight), past in zip(self._parts, caches, strict=True):
            with self._loaded(parameters):
                logits, own = self._model.policy.advance(input_ids, attention_mask, z, past, keep_cache, last_only)
            # Without normalising each: the product's own normaliser takes up theirs.
            merged = merged + weight * logits.float()
            kept.append(own)
        return merged, kept if keep_cache else None

    def _loaded(self, parameters: State | None) -> contextlib.AbstractContextManager[None]:
        """Return a context in which the workspace is a type, or for None the reference."""
        if parameters is None:
            return self.transformer.without_adapter()
        self._model.load(parameters)
        return contextlib.nullcontext()


class LogLinearPolicy(TextPolicy):
    """Writes with, and scores by, a :class:`MergedNetwork`.

    Parameters
    ----------
    model : AdapterTypes
    state : State
        With all types.
    weights : Tensor, shape (K,)
    """

    def __init__(self, model: AdapterTypes, state: State, weights: Tensor) -> None:
        self._writer = copy.copy(model.writer)
        self._writer.policy = MergedNetwork(model, state, weights)

    @torch.no_grad()
    def write(self, prompts: Sequence[str], writing: Writing, generator: torch.Generator) -> Written:
        """Continue every prompt."""
        return self._writer.write(prompts, None, writing.temperature, generator, max_new_tokens=writing.max_new_tokens)

    @torch.no_grad()
    def log_probability(self, tokens: ResponseBatch) -> Tensor:
        """Return the log-probability of every response, shape (B,), normalised token by token."""
        return self._writer.log_probability(tokens, None)
