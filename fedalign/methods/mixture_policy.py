"""A mixture of whole policies: a type is drawn for every text, and its policy writes all of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fedalign.contribution import State
from fedalign.methods.policy_writer import Written
from fedalign.methods.text_policies import TextPolicy, Writing, type_policies
from fedalign.methods.type_adapters import AdapterTypes
from fedalign.models.text import ResponseBatch


class MixturePolicy(TextPolicy):
    """``pi_w(y|x) = sum_k w_k pi_k(y|x)`` over whole texts: there alone regret is linear in w.

    Parameters
    ----------
    model : AdapterTypes
        The workspace.
    state : State
        With all types.
    weights : Tensor, shape (K,)
        On the simplex.
    """

    def __init__(self, model: AdapterTypes, state: State, weights: Tensor) -> None:
        self._policies = type_policies(model, state)
        self._weights, self._pad = weights.double(), model.policy.pad_token

    def draw(self, texts: int, generator: torch.Generator) -> Tensor:
        """Return who writes each text, int64 of shape (texts,)."""
        return torch.multinomial(self._weights, texts, replacement=True, generator=generator)

    def write(self, prompts: Sequence[str], writing: Writing, generator: torch.Generator) -> Written:
        """Continue every prompt; types are drawn first, then each type that was drawn writes its texts together."""
        types = self.draw(len(prompts), generator)
        rows, parts = [], []
        for number in torch.unique(types).tolist():
            own = (types == number).nonzero()[:, 0]
            rows.append(own)
            parts.append(self._policies[number].write([prompts[i] for i in own.tolist()], writing, generator))
        return in_order(parts, torch.cat(rows), self._pad)

    @torch.no_grad()
    def log_probability(self, tokens: ResponseBatch) -> Tensor:
        """Return the mixture's log-probability of every response, shape (B,)."""
        each = torch.stack([policy.log_probability(tokens).double() for policy in self._policies])
        return torch.logsumexp(each + self._weights.to(each).log()[:, None], 0)


def in_order(parts: Sequence[Written], rows: Tensor, pad: int) -> Written:
    """Return texts that were written in parts as one batch.

    Parameters
    ----------
    parts : sequence of Written
        N texts in all.
    rows : int64 Tensor, shape (N,)
        Where each of them belongs.
    pad : int
        The token that stands where there is none.
    """
    starts = [_opening(part.tokens) for part in parts]
    before = max(starts)
    after = max(part.tokens.ids.shape[1] - start for part, start in zip(parts, starts, strict=True))
    order = rows.argsort()
    columns = []
    for name, fill in (("ids", pad), ("attention_mask", 0), ("response_mask", 0)):
        widened = []
        for part, start in zip(parts, starts, strict=True):
            tensor: Tensor = getattr(part.tokens, name)
            margins = before - start, after - (tensor.shape[1] - start)
            widened.append(F.pad(tensor, margins, value=fill))
        columns.append(torch.cat(widened)[order.to(widened[0].device)])
    texts = [text for part in parts for text in part.texts]
    return Written(ResponseBatch(*columns), [texts[i] for i in order.tolist()])


def _opening(tokens: ResponseBatch) -> int:
    """Return how many columns prompts take up; every response has a first token."""
    return int(tokens.response_mask[0].argmax())
