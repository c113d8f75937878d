"""Texts from merged experts: one batched decoding with caches of all experts and of the control model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fedalign.errors import UserError
from fedalign.models.control import Control, Told, log_weights
from fedalign.models.experts import Experts, Pairs
from fedalign.models.generation import choose
from fedalign.models.mixing import Mixing, Spoken, spoken_of

OnToken = Callable[[Tensor, Tensor, Tensor], None]
"""Is given each step's tokens (B,), weights (B, n), and which texts had ended before it (B,)."""


@dataclass(frozen=True)
class Merger:
    """What writes together.

    Parameters
    ----------
    experts : Experts
    control : Control
    mixing : Mixing
    bias : float tensor, shape (n,), or None
        What is added to the control model's scores.
    """

    experts: Experts
    control: Control
    mixing: Mixing
    bias: Tensor | None = None


@dataclass(frozen=True)
class MergedText:
    """B continuations, S tokens at most.

    Parameters
    ----------
    tokens : int64 tensor, shape (B, S)
        New tokens with the one that ends the text, then padding.
    log_weights : float32 tensor, shape (B, S, n)
        Of experts at each token, as it was drawn.
    spoken : Spoken
        What each expert found of each token.
    """

    tokens: Tensor
    log_weights: Tensor
    spoken: Spoken


@torch.no_grad()
def generate_merged(
    merger: Merger,
    told: Told,
    prompt_ids: Tensor,
    attention_mask: Tensor,
    max_new_tokens: int,
    draws: Tensor | None,
    temperature: float = 1.0,
    on_token: OnToken | None = None,
    whole: bool = False,
    full_length: bool = False,
) -> MergedText:
    """Continue every prompt until it ends.

    Parameters
    ----------
    merger : Merger
        Its control model is in evaluation mode meanwhile.
    told : Told
        Of B texts.
    prompt_ids, attention_mask : int64 tensor, shape (B, P)
        Padded on the left; no prompt is empty.
    max_new_tokens : int
    draws : float tensor, shape (B, max_new_tokens), or None
        Uniform random numbers: a row's text depends on its own prompt, preference and row alone. None takes the
        likeliest tokens.
    temperature : float
        Divides every expert's logits before they are merged, so that n numbers a token suffice to train; positive.
    on_token : callable, optional
        See ``OnToken``; called before the next token is worked out.
    whole : bool
        Whether to keep the experts' distributions.
    full_length : bool
        Whether columns are padded to ``max_new_tokens``, so that their width does not depend on the texts.

    Raises
    ------
    UserError
        If prompts and new tokens together are longer than the experts or the control model read.
    """
    _check(merger, told, attention_mask, max_new_tokens)
    experts, control = merger.experts, merger.control
    pairs = Pairs.of(told.active)
    training, ids, mask = control.training, prompt_ids, attention_mask
    ends = torch.tensor(experts.end_tokens, dtype=torch.int64, device=ids.device)
    ended = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    expert_cache = control_cache = None
    steps: list[tuple[Tensor, Tensor, Spoken]] = []
    control.eval()
    try:
        for step in range(max_new_tokens):
            found, expert_cache = experts.advance(pairs, ids, mask, expert_cache, last_only=True)
            if temperature != 1.0:
                found = (found / temperature).log_softmax(2)
            scores, _, control_cache = control.advance(told, ids, mask, control_cache)
            weights = log_weights(scores[:, -1:], told, merger.bias)[:, 0]
            mixed = merger.mixing.next_token(weights, found[:, -1], pairs)
            token = choose(mixed, 1.0, None if draws is None else draws[:, step]).masked_fill(ended, experts.pad_token)
            spoken = spoken_of(pairs, found[:, -1:], token[:, None], (len(ids), len(experts.names)), whole)
            steps.append((token, weights, spoken))
            if on_token is not None:
                on_token(token, weights, ended.clone())
            ended |= torch.isin(token, ends)
            if bool(ended.all()):
                break
            ids, mask = token[:, None], torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
    finally:
        control.train(training)
    width = max_new_tokens if full_length else len(steps)
    return _padded([step[1] for step in steps], Spoken.columns([step[2] for step in steps]), width, experts.pad_token)


def _padded(weights: list[Tensor], spoken: Spoken, width: int, pad: int) -> MergedText:
    """Return what was written, with columns after the last step: padding, of which experts say nothing."""
    log_weights = torch.stack(weights, 1)
    missing = width - len(weights)
    if missing:
        log_weights = torch.cat([log_weights, log_weights[:, -1:].expand(-1, missing, -1)], 1)
        spoken = spoken.padded(missing, pad)
    return MergedText(spoken.tokens, log_weights, spoken)


def _check(merger: Merger, told: Told, mask: Tensor, max_new_tokens: int) -> None:
    if not bool(mask[:, -1].all()):
        raise ValueError("prompts must not be empty and must be padded on the left")
    longest = int(mask.sum(1).max()) + max_new_tokens
    opening = int(told.opening[1].sum(1).max()) if merger.control.in_words else 0
    for name, limit, more in (
        ("experts read", merger.experts.max_tokens, 0),
        ("control model reads", merger.control.max_tokens, opening),
    ):
        if limit is not None and longest + more > limit:
            raise UserError(
                f"max_new_tokens={max_new_tokens}: with the longest prompt that is {longest + more} tokens, and the "
                f"{name} {limit}; lower it or shorten the prompts"
            )
