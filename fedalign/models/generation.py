"""Texts from a policy: batched greedy decoding and sampling with a key-value cache."""

from __future__ import annotations

import torch
from torch import Tensor

from fedalign.errors import UserError
from fedalign.models.policy import ConditionalPolicy


@torch.no_grad()
def generate(
    policy: ConditionalPolicy,
    prompt_ids: Tensor,
    attention_mask: Tensor,
    z: Tensor | None,
    max_new_tokens: int,
    temperature: float,
    generator: torch.Generator | None,
    use_cache: bool = True,
    draws: Tensor | None = None,
) -> Tensor:
    """Continue every prompt until it ends.

    The policy is in evaluation mode meanwhile. All random numbers are drawn before the first token, row by row, so
    that a row's text does not depend on the rows after it, nor on when others end.

    Parameters
    ----------
    policy : ConditionalPolicy
    prompt_ids : int64 tensor, shape (B, P)
        Padded on the left.
    attention_mask : int64 tensor, shape (B, P)
        1 for tokens, 0 for padding.
    z : float tensor, shape (B, latent), or None
        One latent a row.
    max_new_tokens : int
    temperature : float
        Divides the logits; 0 takes the likeliest token and draws nothing.
    generator : torch.Generator or None
        On the CPU, wherever the policy is; None where ``draws`` are given, or none are needed.
    use_cache : bool
        Whether keys and values of tokens are kept. Without, every token costs a pass over the whole text; the tokens
        are the same.
    draws : float tensor, shape (B, max_new_tokens), optional
        Uniform random numbers in place of the generator's: a row's text then depends on its own prompt and row alone.

    Returns
    -------
    int64 tensor, shape (B, at most max_new_tokens)
        New tokens with the one that ends the text, then padding.

    Raises
    ------
    UserError
        If prompts and new tokens together are longer than the model can read.
    ValueError
        If prompts are padded on the right, or empty.
    """
    _check(policy, attention_mask, max_new_tokens)
    if temperature == 0:
        draws = None
    elif draws is None:
        draws = torch.rand(len(prompt_ids), max_new_tokens, generator=generator, dtype=torch.float64)
    if draws is not None:
        draws = draws.to(policy.device)
    # Module by module: in training, only some parts of a policy are in training mode.
    modes = {module: module.training for module in policy.modules()}
    policy.eval()
    try:
        return _decode(policy, prompt_ids, attention_mask, z, max_new_tokens, temperature, draws, use_cache)
    finally:
        for module, mode in modes.items():
            module.training = mode


def _decode(
    policy: ConditionalPolicy,
    ids: Tensor,
    mask: Tensor,
    z: Tensor | None,
    max_new_tokens: int,
    temperature: float,
    draws: Tensor | None,
    use_cache: bool,
) -> Tensor:
    ends = torch.tensor(policy.end_tokens, dtype=torch.int64, device=ids.device)
    ended = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    cache, tokens = None, []
    for step in range(max_new_tokens):
        logits, cache = policy.advance(ids, mask, z, cache, use_cache, last_only=True)
        chosen = choose(logits[:, -1], temperature, None if draws is None else draws[:, step])
        chosen = chosen.masked_fill(ended, policy.pad_token)
        tokens.append(chosen)
        ended |= torch.isin(chosen, ends)
        if ended.all():
            break
        ids = chosen[:, None] if use_cache else torch.cat([ids, chosen[:, None]], 1)
        # Rows that have ended go on unseen; nothing of what they compute is kept.
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
    return torch.stack(tokens, 1)


def choose(logits: Tensor, temperature: float, draws: Tensor | None) -> Tensor:
    """Return one token a row, shape (B,), by inverting the cumulative distribution at ``draws``, or the likeliest."""
    if draws is None:
        return logits.argmax(dim=1)
    cumulative = (logits.double() / temperature).softmax(dim=1).cumsum(dim=1)
    # right=True skips tokens of probability 0; scaling by the last value absorbs what rounding took from 1.
    found = torch.searchsorted(cumulative, (draws * cumulative[:, -1])[:, None], right=True)[:, 0]
    return found.clamp(max=logits.shape[1] - 1)


def _check(policy: ConditionalPolicy, mask: Tensor, max_new_tokens: int) -> None:
    if not bool(mask[:, -1].all()):
        raise ValueError("prompts must not be empty and must be padded on the left")
    longest = int(mask.sum(1).max()) + max_new_tokens
    if policy.max_tokens is not None and longest > policy.max_tokens:
        raise UserError(
            f"max_new_tokens={max_new_tokens}: with the longest prompt that is {longest} tokens, and the model "
            f"reads {policy.max_tokens}; lower it or shorten the prompts"
        )
