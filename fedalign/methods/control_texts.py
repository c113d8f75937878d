"""Responses as a control model learns from them: written or read once by experts, then weighed without them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from fedalign.data.corpus import Example
from fedalign.methods.control_batches import ControlBatch
from fedalign.methods.reference_texts import ReferenceTexts
from fedalign.methods.stated_preference import SideRewards, combined
from fedalign.methods.stated_writer import MergedWriter, StatedText
from fedalign.models.control import Told, log_weights
from fedalign.models.experts import Pairs
from fedalign.models.mixing import Spoken, spoken_of
from fedalign.models.text import ResponseBatch

_CLIENTS = 1024
"""Clients whose judgments a node keeps as experts found them: a few kilobytes for each pair."""

Judged = tuple[ControlBatch, ControlBatch]
"""Preferred and other responses of pairs, in one order."""


class ControlTexts:
    """What learning asks for, at the parameters that the control model has when it asks.

    Parameters
    ----------
    writer : MergedWriter
        Its control model is the one that learns.
    batch : int
        Texts that experts read at once.
    rewards : SideRewards or None
        None where nothing says what texts are worth.
    references : ReferenceTexts
    """

    def __init__(
        self, writer: MergedWriter, batch: int, rewards: SideRewards | None, references: ReferenceTexts
    ) -> None:
        self.lengths = writer.lengths
        self._writer, self._batch = writer, batch
        self._rewards, self._references = rewards, references
        self._judged: OrderedDict[str, tuple[tuple[Example, ...], Judged]] = OrderedDict()

    def forget(self) -> None:
        """Forget what experts found: they are others."""
        self._judged.clear()

    def judged(self, client: str, examples: Sequence[Example], vectors: Tensor) -> Judged:
        """Return a client's pairs as experts find them, who are asked once for as long as they are the same.

        Parameters
        ----------
        client : str
        examples : sequence of Example, length B
            Each with a rejected response.
        vectors : float32 tensor, shape (B, n)
        """
        known = self._judged.get(client)
        if known is None or known[0] != tuple(examples):
            prompts = [example.prompt for example in examples]
            sides = [e.response for e in examples], [e.rejected or "" for e in examples]
            chosen, rejected = (self.written(prompts, texts, vectors) for texts in sides)
            known = tuple(examples), (chosen, rejected)
            # Whole distributions are too large to be kept from round to round.
            if not self._writer.merger.mixing.needs_whole:
                self._judged[client] = known
        if client in self._judged:
            self._judged.move_to_end(client)
        while len(self._judged) > _CLIENTS:
            self._judged.popitem(last=False)
        return known[1]

    def drawn(
        self, prompts: Sequence[str], vectors: Tensor, draws: Tensor, temperature: float, bias: Tensor | None
    ) -> ControlBatch:
        """Return what the merged experts write, with what each of them found of it.

        Parameters
        ----------
        prompts : sequence of str, length B
        vectors : float32 tensor, shape (B, n)
        draws : float tensor, shape (B, S)
        temperature : float
        bias : float tensor, shape (n,), or None
            What the client adds to the control model's scores.
        """
        writer = self._writer.biased(None if bias is None else bias.detach())
        whole = writer.merger.mixing.needs_whole
        text = writer.write_told(prompts, writer.told(vectors), draws, temperature, whole=whole)
        assert text.told is not None and text.spoken is not None and text.log_weights is not None
        return self._kept(text, text.told, text.spoken, text.log_weights)

    @torch.no_grad()
    def written(self, prompts: Sequence[str], responses: Sequence[str], vectors: Tensor) -> ControlBatch:
        """Return responses that there are, with what each wanted expert finds of them."""
        experts, whole = self._writer.merger.experts, self._writer.merger.mixing.needs_whole
        tokens = self._writer.codec.continuations(prompts, responses, self.lengths.prompt, self.lengths.response)
        device, start = experts.device, self.lengths.prompt
        told = self._writer.told(vectors)
        pieces = []
        for rows in torch.split(torch.arange(len(prompts)), self._batch):
            ids, mask = tokens.ids[rows].to(device), tokens.attention_mask[rows].to(device)
            pairs = Pairs.of(told.active[rows.to(device)])
            found, _ = experts.advance(pairs, ids, mask, None, keep_cache=False)
            shape = len(rows), len(experts.names)
            pieces.append(spoken_of(pairs, found[:, start - 1 : -1], ids[:, start:], shape, whole))
        moved = ResponseBatch(tokens.ids.to(device), tokens.attention_mask.to(device), tokens.response_mask.to(device))
        return self._kept(StatedText(moved, list(responses)), told, Spoken.joined(pieces), None)

    def log_probabilities(self, batch: ControlBatch, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return how likely the mixture finds each token, and the values before them; no expert is asked.

        Returns
        -------
        log_probs : float32 tensor, shape (B, S)
            0 beyond the response.
        values : float32 tensor, shape (B, S)
        """
        tokens, start, merger = batch.tokens, self.lengths.prompt, self._writer.merger
        scores, values, _ = merger.control.advance(batch.told, tokens.ids, tokens.attention_mask, None, False)
        weights = log_weights(scores[:, start - 1 : -1], batch.told, bias)
        found = merger.mixing.log_probability(weights, batch.spoken)
        return found.where(batch.mask > 0, 0.0), values[:, start - 1 : -1]

    def worth(self, prompts: Sequence[str], texts: Sequence[str], vectors: Tensor) -> Tensor:
        """Return the reward of responses under preferences, in [0, 1], float32 of shape (B,)."""
        assert self._rewards is not None
        reference = self._references.measured(self._rewards, prompts)
        return combined(self._rewards.sides(self._rewards.measured(prompts, texts), reference), vectors)

    def _kept(self, text: StatedText, told: Told, spoken: Spoken, weights: Tensor | None) -> ControlBatch:
        mask = text.tokens.response_mask[:, self.lengths.prompt :].float()
        even = log_weights(torch.zeros_like(spoken.chosen), told.even())
        found = [
            self._writer.merger.mixing.log_probability(each, spoken).where(mask > 0, 0.0)
            for each in (even, even if weights is None else weights)
        ]
        return ControlBatch(text.tokens, text.texts, told, spoken, mask, found[0], found[1])
