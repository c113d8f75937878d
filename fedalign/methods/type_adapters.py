"""Types as LoRA adapters of one language model: a type's utility is the implicit reward of DPO."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedalign.contribution import State
from fedalign.data.rankings import RankingShard
from fedalign.methods.local_training import trainable
from fedalign.methods.policy_writer import PolicyWriter, rows_of
from fedalign.methods.text_lengths import Lengths
from fedalign.methods.type_model import TypeModel, Utilities
from fedalign.models.language_model import LanguageModelSpec, ValuedPolicy
from fedalign.models.policy import ConditionalPolicy
from fedalign.models.text import ResponseBatch, TextCodec
from fedalign.rng import Streams

_ROWS = 64
"""Texts in a forward pass without gradients."""


@dataclass(frozen=True)
class _Texts:
    """A shard's responses as tokens: R rows, one for each response that there is.

    Parameters
    ----------
    tokens : ResponseBatch
    row : int64 Tensor, shape (N, S)
        Where each response of each judgment is; -1 where there is none.
    reference : float32 Tensor, shape (R,)
        The frozen model's log-probability of each.
    """

    tokens: ResponseBatch
    row: Tensor
    reference: Tensor


class AdapterTypes(TypeModel):
    """A frozen language model with one adapter at a time.

    The utility of a response is ``beta * (log pi_k(y|x) - log pi_ref(y|x))``, summed over its tokens, the one that ends
    it included (Rafailov et al. 2023, Eq. 5). What the frozen model finds of a shard's texts is computed once.

    Parameters
    ----------
    spec : LanguageModelSpec
    beta : float
        Strength of the pull to the frozen model.
    lengths : Lengths

    Attributes
    ----------
    policy : ConditionalPolicy
        The language model with the loaded adapter.
    writer : PolicyWriter
    codec : TextCodec
    beta : float
    """

    def __init__(self, spec: LanguageModelSpec, beta: float, lengths: Lengths) -> None:
        self._spec, self.beta, self.lengths = spec, beta, lengths
        self.network = self._build(Streams(0))
        self.policy: ConditionalPolicy = self.network.policy
        self.codec = TextCodec(spec.model, "model")
        lengths.check(self.policy.max_tokens)
        self.writer = PolicyWriter(self.policy, self.codec, lengths.prompt, lengths.response)
        self._texts: weakref.WeakKeyDictionary[RankingShard, _Texts] = weakref.WeakKeyDictionary()

    def fresh(self, streams: Streams) -> State:
        """Return a fresh adapter, which changes nothing: one of its factors is drawn, the other is 0."""
        return {name: p.detach().cpu() for name, p in trainable(self._build(streams)).items()}

    def trained(self) -> State:
        """Return copies of the adapter's tensors, on the CPU."""
        return {name: tensor.cpu() for name, tensor in super().trained().items()}

    def utilities(self, shard: RankingShard, index: Tensor) -> Utilities:
        """Return the implicit rewards of the loaded adapter."""
        if not len(index):
            return Utilities(torch.zeros(0, shard.tiers.shape[1]), torch.zeros(0))
        texts = self._encoded(shard)
        rows = texts.row[index]
        wanted = rows[rows >= 0]
        found, lengths = self._log_probabilities(texts.tokens, wanted)
        values = found.new_zeros(rows.shape)
        values[rows >= 0] = self.beta * (found - texts.reference[wanted].to(found.device))
        # The best response is the first of its tier; its likelihood is what keeps a policy's text alive.
        best = torch.zeros_like(found).scatter(0, self._places(rows, shard.tiers[index]), 1.0).bool()
        return Utilities(values.cpu(), (found / lengths)[best].cpu())

    def _build(self, streams: Streams) -> ValuedPolicy:
        with streams.torch_default("type"):
            network = self._spec.build()
        network.head.requires_grad_(False)
        return network

    def _places(self, rows: Tensor, tiers: Tensor) -> Tensor:
        """Return where the best response of each judgment is among those that are there, shape (n,)."""
        there = rows >= 0
        number = there.flatten().long().cumsum(0).view(rows.shape) - 1
        best = tiers.masked_fill(~there, rows.shape[1] + 1).argmin(1)
        return number.gather(1, best[:, None])[:, 0].to(self.policy.device)

    def _log_probabilities(self, tokens: ResponseBatch, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log-probability of texts, shape (n,), and how many tokens each response has."""
        if torch.is_grad_enabled():
            part = _moved(rows_of(tokens, rows), self.policy.device)
            return self.writer.log_probability(part, None), part.response_mask.sum(1)
        found = [self._log_probabilities_of(part) for part in self._parts(tokens, rows)]
        return torch.cat([values for values, _ in found]), torch.cat([lengths for _, lengths in found])

    def _log_probabilities_of(self, part: ResponseBatch) -> tuple[Tensor, Tensor]:
        return self.writer.log_probability(part, None), part.response_mask.sum(1)

    def _parts(self, tokens: ResponseBatch, rows: Tensor) -> Iterator[ResponseBatch]:
        for part in torch.split(rows, _ROWS):
            yield _moved(rows_of(tokens, part), self.policy.device)

    def _encoded(self, shard: RankingShard) -> _Texts:
        if shard not in self._texts:
            self._texts[shard] = self._encode(shard)
        return self._texts[shard]

    @torch.no_grad()
    def _encode(self, shard: RankingShard) -> _Texts:
        """Return a shard's texts, always worked out in the same batches, which reach its last bits."""
        row = torch.full(shard.tiers.shape, -1)
        prompts: list[str] = []
        responses: list[str] = []
        for judgment, menu in enumerate(shard.responses):
            row[judgment, : len(menu)] = torch.arange(len(responses), len(responses) + len(menu))
            prompts += [shard.prompts[judgment]] * len(menu)
            responses += menu
        tokens = _encode_texts(self.codec, prompts, responses, self.lengths)
        everything = torch.arange(len(responses))
        parts = [self.writer.reference_log_probability(part).cpu() for part in self._parts(tokens, everything)]
        return _Texts(tokens, row, torch.cat(parts) if parts else torch.zeros(0))


def _encode_texts(
    codec: TextCodec, prompts: Sequence[str], responses: Sequence[str], lengths: Lengths
) -> ResponseBatch:
    if not responses:
        empty = torch.zeros(0, 1, dtype=torch.int64)
        return ResponseBatch(empty, empty, empty)
    return codec.continuations(prompts, responses, lengths.prompt, lengths.response)


def _moved(tokens: ResponseBatch, device: torch.device) -> ResponseBatch:
    return ResponseBatch(tokens.ids.to(device), tokens.attention_mask.to(device), tokens.response_mask.to(device))
