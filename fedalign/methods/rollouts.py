"""Responses that a policy draws, in columns of fixed width, with what each of them is compared by later."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor

from fedalign.methods.policy_writer import Written, until_the_end
from fedalign.methods.text_lengths import Lengths
from fedalign.models.generation import generate
from fedalign.models.policy import ConditionalPolicy
from fedalign.models.text import ResponseBatch, TextCodec


def write(
    policy: ConditionalPolicy,
    codec: TextCodec,
    lengths: Lengths,
    prompts: Sequence[str],
    draws: Tensor | None,
    temperature: float = 1.0,
    pretrained: bool = False,
) -> Written:
    """Continue every prompt.

    Parameters
    ----------
    policy : ConditionalPolicy
        One that takes no latent.
    codec : TextCodec
    lengths : Lengths
    prompts : sequence of str, length B
    draws : float tensor, shape (B, lengths.response), or None
        Uniform random numbers, a row for each text: with the same row and prompt the text is the same, whatever else
        is in the batch. None takes the likeliest tokens.
    temperature : float
    pretrained : bool
        Whether the model writes without its adapter.
    """
    ids, mask = (t.to(policy.device) for t in codec.openings(prompts, lengths.prompt))
    model = policy.transformer.without_adapter() if pretrained else contextlib.nullcontext()
    with model:
        new = generate(policy, ids, mask, None, lengths.response, temperature, None, draws=draws)
    missing = lengths.response - new.shape[1]
    new = torch.nn.functional.pad(new, (0, missing), value=policy.pad_token)
    seen = until_the_end(new, policy.end_tokens)
    tokens = ResponseBatch(
        torch.cat([ids, new], 1), torch.cat([mask, seen], 1), torch.cat([torch.zeros_like(mask), seen], 1)
    )
    return Written(tokens, codec.decode(new))


def uniform(seeds: Sequence[int], width: int, rows: int = 1) -> Tensor:
    """Return uniform random numbers, float64 of shape (len(seeds) * rows, width), from a generator for each seed."""
    each = [torch.Generator().manual_seed(seed) for seed in seeds]
    return torch.cat([torch.rand(rows, width, generator=own, dtype=torch.float64) for own in each])


def rows_of(tokens: ResponseBatch, index: Tensor) -> ResponseBatch:
    """Return the texts at ``index``, int64 of shape (N,), in columns as wide as before."""
    return ResponseBatch(tokens.ids[index], tokens.attention_mask[index], tokens.response_mask[index])
