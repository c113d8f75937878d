"""What writes under stated preferences: the contract, and experts that are merged by a control model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedalign.methods.policy_writer import until_the_end
from fedalign.methods.stated_preference import Preferences
from fedalign.methods.text_lengths import Lengths
from fedalign.models.control import Told
from fedalign.models.merged_generation import Merger, OnToken, generate_merged
from fedalign.models.mixing import Spoken
from fedalign.models.text import ResponseBatch, TextCodec


@dataclass(frozen=True)
class StatedText:
    """B responses to prompts under preferences, in columns of fixed width; S is the width of a response.

    Parameters
    ----------
    tokens : ResponseBatch
    texts : list of str, length B
    told : Told or None
        What a control model was told, where there is one.
    log_weights : float32 tensor, shape (B, S, n), or None
        Of experts at each token.
    spoken : Spoken or None
        What experts found of each token.
    """

    tokens: ResponseBatch
    texts: list[str]
    told: Told | None = None
    log_weights: Tensor | None = None
    spoken: Spoken | None = None


class StatedWriter(ABC):
    """Something that continues prompts under preferences."""

    @abstractmethod
    def write(
        self, prompts: Sequence[str], vectors: Tensor, draws: Tensor | None, temperature: float = 1.0
    ) -> StatedText:
        """Continue every prompt.

        Parameters
        ----------
        prompts : sequence of str, length B
        vectors : float32 tensor, shape (B, n)
            What is wanted, see :class:`fedalign.methods.stated_preference.Preferences`.
        draws : float tensor, shape (B, S), or None
            Uniform random numbers, a row for each text; None takes the likeliest tokens.
        temperature : float
            Positive.
        """


class MergedWriter(StatedWriter):
    """Experts, merged token by token.

    Parameters
    ----------
    merger : Merger
    preferences : Preferences
    fallback : float32 tensor, shape (n,)
        Weights for those who state nothing.
    codec : TextCodec
    lengths : Lengths
    """

    def __init__(
        self, merger: Merger, preferences: Preferences, fallback: Tensor, codec: TextCodec, lengths: Lengths
    ) -> None:
        self.merger, self.codec, self.lengths = merger, codec, lengths
        self._preferences, self._fallback = preferences, fallback

    def biased(self, bias: Tensor | None) -> MergedWriter:
        """Return the same with something added to the control model's scores, float of shape (n,), or None."""
        merger = replace(self.merger, bias=bias)
        return MergedWriter(merger, self._preferences, self._fallback, self.codec, self.lengths)

    def told(self, vectors: Tensor) -> Told:
        """Return what the control model is told."""
        codec = self.codec if self.merger.control.in_words else None
        return self._preferences.told(vectors, self._fallback, codec, self.merger.experts.device)

    def write(
        self, prompts: Sequence[str], vectors: Tensor, draws: Tensor | None, temperature: float = 1.0
    ) -> StatedText:
        """Continue every prompt."""
        return self.write_told(prompts, self.told(vectors), draws, temperature)

    def write_told(
        self,
        prompts: Sequence[str],
        told: Told,
        draws: Tensor | None,
        temperature: float = 1.0,
        on_token: OnToken | None = None,
        whole: bool = False,
    ) -> StatedText:
        """Continue every prompt; what is told may hold fixed weights.

        Parameters
        ----------
        prompts, draws, temperature
            See :meth:`write`.
        told : Told
        on_token, whole
            See :func:`fedalign.models.merged_generation.generate_merged`.
        """
        experts = self.merger.experts
        ids, mask = (t.to(experts.device) for t in self.codec.openings(prompts, self.lengths.prompt))
        longest = self.lengths.response
        moved = None if draws is None else draws.to(experts.device)
        found = generate_merged(
            self.merger, told, ids, mask, longest, moved, temperature, on_token, whole, full_length=True
        )
        seen = until_the_end(found.tokens, experts.end_tokens)
        tokens = ResponseBatch(
            torch.cat([ids, found.tokens], 1), torch.cat([mask, seen], 1), torch.cat([torch.zeros_like(mask), seen], 1)
        )
        return StatedText(tokens, self.codec.decode(found.tokens), told, found.log_weights, found.spoken)
