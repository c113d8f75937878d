"""A policy that writes: texts sampled under a latent, how likely they are, and how far it is from its reference."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedalign.models.generation import generate
from fedalign.models.policy import ConditionalPolicy
from fedalign.models.text import ResponseBatch, TextCodec
from fedalign.objectives.dpo import sequence_log_probability


@dataclass(frozen=True)
class Written:
    """B responses that a policy wrote.

    Parameters
    ----------
    tokens : ResponseBatch
        Prompts, padded on the left, with the very tokens that were drawn: a response that was cut off does not end.
    texts : list of str, length B
    """

    tokens: ResponseBatch
    texts: list[str]


class PolicyWriter:
    """A policy and its tokenizer.

    Parameters
    ----------
    policy : ConditionalPolicy
    codec : TextCodec
    max_prompt_tokens, max_new_tokens : int
    """

    def __init__(
        self, policy: ConditionalPolicy, codec: TextCodec, max_prompt_tokens: int, max_new_tokens: int
    ) -> None:
        self.policy, self._codec = policy, codec
        self._max_prompt_tokens, self._max_new_tokens = max_prompt_tokens, max_new_tokens

    def write(
        self,
        prompts: Sequence[str],
        z: Tensor | None,
        temperature: float,
        generator: torch.Generator,
        reference: bool = False,
        max_new_tokens: int | None = None,
    ) -> Written:
        """Continue every prompt.

        Parameters
        ----------
        prompts : sequence of str, length B
        z : float tensor, shape (B, latent), or None
        temperature : float
            0 takes the likeliest token.
        generator : torch.Generator
        reference : bool
            Whether the frozen model writes instead; it takes no z.
        max_new_tokens : int, optional
            Instead of what the writer was made with.
        """
        ids, mask = (t.to(self.policy.device) for t in self._codec.prompts(prompts, self._max_prompt_tokens))
        told = None if z is None or reference else z.to(self.policy.device)
        model = self.policy.transformer.without_adapter() if reference else contextlib.nullcontext()
        with model:
            new = generate(self.policy, ids, mask, told, max_new_tokens or self._max_new_tokens, temperature, generator)
        seen = until_the_end(new, self.policy.end_tokens)
        tokens = ResponseBatch(
            torch.cat([ids, new], 1), torch.cat([mask, seen], 1), torch.cat([torch.zeros_like(mask), seen], 1)
        )
        return Written(tokens, self._codec.decode(new))

    def log_probability(self, tokens: ResponseBatch, z: Tensor | None) -> Tensor:
        """Return the policy's log-probability of every response, shape (B,)."""
        told = None if z is None else z.to(self.policy.device)
        logits = self.policy(tokens.ids, tokens.attention_mask, told)
        return sequence_log_probability(logits, tokens.ids, tokens.response_mask)

    def reference_log_probability(self, tokens: ResponseBatch) -> Tensor:
        """Return the frozen model's log-probability of every response, shape (B,); it carries no gradient."""
        logits = self.policy.reference(tokens.ids, tokens.attention_mask)
        return sequence_log_probability(logits, tokens.ids, tokens.response_mask)

    @torch.no_grad()
    def divergence(self, tokens: ResponseBatch, z: Tensor | None) -> Tensor:
        """Return how far the policy is from the frozen model along every response, shape (B,), in nats.

        The sum over the response's tokens of the divergence KL(policy || reference) of the next token. Over responses
        that the policy drew at temperature 1 its mean is the divergence of whole responses.
        """
        told = None if z is None else z.to(self.policy.device)
        policy = self.policy(tokens.ids, tokens.attention_mask, told)[:, :-1].float().log_softmax(2)
        reference = self.policy.reference(tokens.ids, tokens.attention_mask)[:, :-1].float().log_softmax(2)
        each = (policy.exp() * (policy - reference)).sum(2)
        total: Tensor = (each * tokens.response_mask[:, 1:]).sum(1)
        return total


def rows_of(tokens: ResponseBatch, index: Tensor) -> ResponseBatch:
    """Return the texts at ``index``, int64 of shape (N,), without columns that are padding in all of them."""
    mask = tokens.attention_mask[index]
    used = mask.any(0).nonzero()[:, 0]
    span = slice(int(used[0]), int(used[-1]) + 1)
    return ResponseBatch(tokens.ids[index][:, span], mask[:, span], tokens.response_mask[index][:, span])


def until_the_end(new: Tensor, ends: Sequence[int]) -> Tensor:
    """Return 1 for every token up to the first that ends a text, and for that one; int64 of the same shape."""
    is_end = torch.isin(new, torch.tensor(ends, dtype=new.dtype, device=new.device)).long()
    return (is_end.cumsum(1) == is_end).long()
