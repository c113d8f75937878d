"""How likely a language model finds each of a question's options as its response; the question is read once for all."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor

from fedalign.models.policy import ConditionalPolicy
from fedalign.models.text import TextCodec
from fedalign.objectives.dpo import sequence_log_probability


class OptionReader:
    """Questions with their options as tokens: Q prompts, P responses in all.

    Parameters
    ----------
    codec : TextCodec
    texts : sequence of (str, sequence of str), length Q
        A prompt, and what stands for each option.
    max_prompt_tokens, max_new_tokens : int
        A longer prompt loses its beginning, a longer response its end.
    length_normalised : bool
        Whether a response's log-probability is divided by its number of tokens, the one that ends it included.
    """

    def __init__(
        self,
        codec: TextCodec,
        texts: Sequence[tuple[str, Sequence[str]]],
        max_prompt_tokens: int,
        max_new_tokens: int,
        length_normalised: bool,
    ) -> None:
        self._offsets = torch.tensor([0, *(len(responses) for _, responses in texts)]).cumsum(0)
        pairs = [(prompt, response) for prompt, responses in texts for response in responses]
        prompts, responses = [prompt for prompt, _ in pairs], [response for _, response in pairs]
        both = codec.continuations(prompts, responses, max_prompt_tokens, max_new_tokens)
        # A question's prompt is the same for all of its options.
        first = self._offsets[:-1]
        self._prompts = both.ids[first, :max_prompt_tokens], both.attention_mask[first, :max_prompt_tokens]
        self._responses = both.ids[:, max_prompt_tokens:], both.response_mask[:, max_prompt_tokens:]
        self._length_normalised = length_normalised

    def read(self, policy: ConditionalPolicy, questions: Tensor, reference: bool) -> tuple[Tensor, Tensor]:
        """Return the log-probability of every option of some questions as a response.

        Parameters
        ----------
        policy : ConditionalPolicy
            Takes no z.
        questions : int64 Tensor, shape (N,)
        reference : bool
            Whether the frozen model is asked instead.

        Returns
        -------
        scores : float32 Tensor, shape (n,)
            In nats, or nats a token; on the CPU.
        rows : int64 Tensor, shape (n,)
            Which of the P responses they are of.
        """
        device = policy.device
        sizes = self._offsets.diff()[questions]
        owner = torch.repeat_interleave(torch.arange(len(questions)), sizes)
        rows = torch.arange(len(owner)) + (self._offsets[questions] - sizes.cumsum(0) + sizes)[owner]
        asked, seen = (t.to(device) for t in _trimmed(*(t[questions] for t in self._prompts)))
        answers, mask = (t.to(device) for t in _trimmed(*(t[rows] for t in self._responses)))
        with policy.transformer.without_adapter() if reference else contextlib.nullcontext():
            opening, cache = policy.advance(asked, seen, None, None)
            owner = owner.to(device)
            cache.reorder_cache(owner)
            logits, _ = policy.advance(answers, torch.cat([seen[owner], mask], 1), None, cache)
        # The first token of a response is foretold by the prompt's last.
        logits = torch.cat([opening[owner, -1:], logits], 1)
        before = torch.zeros_like(answers[:, :1])
        scores = sequence_log_probability(logits, torch.cat([before, answers], 1), torch.cat([before, mask], 1))
        return (scores / mask.sum(1) if self._length_normalised else scores).cpu(), rows


def _trimmed(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Return texts without columns that are padding in all of them; padding is on one side."""
    used = mask.bool().any(0)
    return ids[:, used], mask[:, used]
