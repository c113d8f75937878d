"""What an expert is trained by: likelihood of texts that have its side, or comparisons in which such texts won."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fedalign.data.corpus import REWARD, SFT, Example
from fedalign.methods.text_lengths import Lengths
from fedalign.models.policy import ConditionalPolicy
from fedalign.models.text import ResponseBatch, TextCodec
from fedalign.objectives.dpo import dpo_loss, sequence_log_probability


class TextReader:
    """Says how likely a policy finds responses.

    Parameters
    ----------
    policy : ConditionalPolicy
        One that takes no latent.
    codec : TextCodec
    lengths : Lengths
    """

    def __init__(self, policy: ConditionalPolicy, codec: TextCodec, lengths: Lengths) -> None:
        self.policy, self._codec, self._lengths = policy, codec, lengths

    def encode(self, prompts: Sequence[str], responses: Sequence[str]) -> ResponseBatch:
        """Return texts where the policy reads them; the widths of columns do not depend on the texts."""
        found = self._codec.continuations(prompts, responses, self._lengths.prompt, self._lengths.response)
        device = self.policy.device
        return ResponseBatch(found.ids.to(device), found.attention_mask.to(device), found.response_mask.to(device))

    def log_probability(self, tokens: ResponseBatch) -> Tensor:
        """Return the log-probability of every response, shape (B,)."""
        logits = self.policy(tokens.ids, tokens.attention_mask, None)
        return sequence_log_probability(logits, tokens.ids, tokens.response_mask)

    def reference(self, tokens: ResponseBatch) -> Tensor:
        """Return the frozen base's log-probability of every response, shape (B,); it carries no gradient."""
        logits = self.policy.reference(tokens.ids, tokens.attention_mask)
        return sequence_log_probability(logits, tokens.ids, tokens.response_mask)


class ExpertLoss(ABC):
    """The ``loss`` part of experts that are trained; subclasses are frozen dataclasses.

    Attributes
    ----------
    stage : str
        Which part of the clients' data it reads.
    """

    stage: ClassVar[str]

    @abstractmethod
    def rows(self, reader: TextReader, examples: Sequence[Example]) -> Tensor:
        """Return the loss of each example, shape (B,)."""


@dataclass(frozen=True)
class Imitation(ExpertLoss):
    """The negative log-likelihood of a response, in nats a token."""

    stage = SFT

    def rows(self, reader: TextReader, examples: Sequence[Example]) -> Tensor:
        """Return the loss of each example."""
        tokens = reader.encode([e.prompt for e in examples], [e.response for e in examples])
        return -reader.log_probability(tokens) / tokens.response_mask.sum(1).clamp(min=1)


@dataclass(frozen=True)
class Preference(ExpertLoss):
    """DPO against the frozen base (Rafailov et al. 2023), on comparisons.

    Parameters
    ----------
    beta : float
        Strength of the pull to the base.
    """

    stage = REWARD

    beta: Annotated[float, Field(gt=0)]

    def rows(self, reader: TextReader, examples: Sequence[Example]) -> Tensor:
        """Return the loss of each example; all have a rejected text, as all examples of the stage do."""
        prompts = [example.prompt for example in examples]
        rejected = [example.rejected or "" for example in examples]
        tokens = reader.encode(prompts * 2, [*(example.response for example in examples), *rejected])
        own, base = reader.log_probability(tokens), reader.reference(tokens)
        (chosen, other), (base_chosen, base_other) = torch.chunk(own, 2), torch.chunk(base, 2)
        return dpo_loss(chosen, other, base_chosen, base_other, self.beta)[0]
