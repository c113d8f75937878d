"""Supervised fine-tuning: a language model learns to continue prompts as users did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedalign.contribution import Contribution, State
from fedalign.data.corpus import SFT, CorpusShard, Example
from fedalign.methods.base import Artefacts, Setting
from fedalign.methods.corpus import CorpusPhase, Stage
from fedalign.methods.text_evaluation import TextScorer, reward_scores
from fedalign.methods.text_units import RowLosses
from fedalign.metrics.record import MetricSum, encode
from fedalign.models.text import ResponseBatch
from fedalign.objectives.dpo import sequence_log_probability
from fedalign.rng import Streams

if TYPE_CHECKING:
    from fedalign.methods.dprlhf import DPRLHF


@dataclass(frozen=True)
class SftTraining(Stage):
    """Settings of supervised fine-tuning; the ``sft`` block of the method."""


class SftPhase(CorpusPhase):
    """Federated fine-tuning by the likelihood of users' responses.

    The loss of a text is the mean over its own tokens, so that it does not depend on others' lengths.
    """

    name = SFT
    stage = SFT

    def __init__(self, method: DPRLHF, settings: SftTraining, setting: Setting) -> None:
        super().__init__(settings, "method.sft", method.lengths, setting)
        self.network.head.requires_grad_(False)
        self.check_rows(1)
        self.scored_by(method.reward, method.evaluation.judge)
        self._scorer = TextScorer(method.evaluation, self.network.policy, self.codec, method.lengths)
        self.bounded_metrics = self._scorer.bounded_metrics
        self._scores = None if method.reward is None else reward_scores(method.reward)
        # A fresh adapter changes nothing: the pretrained model.
        self._pretrained = self.fresh(Streams(0)).policy

    def initial(self, streams: Streams, artefacts: Artefacts) -> State:
        """Return an adapter that changes nothing."""
        return self.start(streams, artefacts, [])

    def row_losses(self, state: State) -> RowLosses:
        """Return the negative log-likelihood of each response, in nats a token."""

        def losses(examples: Sequence[Example], seeds: Sequence[int]) -> Tensor:
            batch = self._tokens(examples)
            return -self._log_likelihood(batch) / batch.response_mask.sum(1).clamp(min=1)

        return losses

    @torch.no_grad()
    def evaluate(self, state: State, shard: CorpusShard, streams: Streams) -> Contribution:
        """Return how likely the test responses are, and how good what the model writes itself."""
        self.load(state)
        examples = self._scorer.chosen(shard)
        if not examples:
            return Contribution()
        sums = [each for part in self._scorer.parts(examples) for each in self._foretold(part)]
        more, moments = self._scorer.evaluate(examples, shard.client, streams.seed, self._scores, self._pretrained)
        return Contribution(moments, encode([*sums, *more]))

    def _foretold(self, examples: Sequence[Example]) -> list[MetricSum]:
        """Return the negative log-likelihood of responses in the data, in nats a token."""
        batch = self._tokens(examples)
        nll, tokens = -self._log_likelihood(batch), batch.response_mask.sum(1)
        return [
            MetricSum("unseen/test_nll", example.group, float(each), float(length))
            for example, each, length in zip(examples, nll, tokens, strict=True)
        ]

    def _tokens(self, examples: Sequence[Example]) -> ResponseBatch:
        prompts, responses = [e.prompt for e in examples], [e.response for e in examples]
        batch = self.codec.continuations(prompts, responses, self.lengths.prompt, self.lengths.response)
        device = self.network.policy.device
        return ResponseBatch(batch.ids.to(device), batch.attention_mask.to(device), batch.response_mask.to(device))

    def _log_likelihood(self, batch: ResponseBatch) -> Tensor:
        logits = self.network.policy(batch.ids, batch.attention_mask, None)
        return sequence_log_probability(logits, batch.ids, batch.response_mask)
