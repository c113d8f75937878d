"""One model that is told the preference in words: as it is, or fine-tuned on the texts that experts learn from.

What merging is compared with: the published baseline is a model that is prompted as it is, and one that was trained on
the same texts, each under a prompt that tells its side, could win where the words are understood.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from fedalign.contribution import Contribution, State
from fedalign.data.corpus import SFT, CorpusShard, Example
from fedalign.errors import UserError
from fedalign.methods.base import Artefacts, Phase, Setting
from fedalign.methods.corpus import CorpusPhase, Stage
from fedalign.methods.expert_adapters import language_model
from fedalign.methods.expert_loss import Imitation, TextReader
from fedalign.methods.merging import FixedPhase, Merging
from fedalign.methods.rollouts import write
from fedalign.methods.stated_preference import Preferences
from fedalign.methods.stated_writer import StatedText, StatedWriter
from fedalign.methods.text_units import RowLosses
from fedalign.methods.told_prompts import KEY, Teller
from fedalign.metrics.record import MetricSum, encode
from fedalign.models.policy import ConditionalPolicy
from fedalign.models.text import ResponseBatch
from fedalign.rng import Streams

if TYPE_CHECKING:
    from fedalign.methods.pcm import PCM

_PREFIX = "prompted/"


@dataclass(frozen=True)
class PromptedTraining(Stage):
    """Settings of the fine-tuning; the ``training`` block of what is prompted."""


@dataclass(frozen=True)
class Prompted(Merging):
    """The run's model writes, told the preference before each prompt; experts only write what it is compared with.

    Parameters
    ----------
    statement : int
        Longest statement, in tokens; prompts have ``method.lengths.prompt`` besides.
    training : PromptedTraining or None
        None prompts the model as it is.
    """

    statement: Annotated[int, Field(ge=1)]
    training: PromptedTraining | None

    def phases(self, method: PCM, setting: Setting) -> Sequence[Phase[Any]]:
        """Return the phase that fine-tunes the model, if any, and the one that has it write."""
        training = None if self.training is None else PromptedTrainingPhase(method, self, self.training, setting)
        writing = PromptedPhase(method, self, training, setting)
        return [writing] if training is None else [training, writing]


class PromptedTrainingPhase(CorpusPhase):
    """Fine-tunes one adapter on all demonstrations that state something, each under its statement.

    Parameters
    ----------
    method : PCM
    settings : Prompted
    training : PromptedTraining
    setting : Setting
    """

    name = "prompted_training"
    stage = SFT
    bounded_metrics = frozenset()

    def __init__(self, method: PCM, settings: Prompted, training: PromptedTraining, setting: Setting) -> None:
        super().__init__(training, f"{KEY}.training", method.lengths, setting)
        self.network.head.requires_grad_(False)
        self.check_rows(1)
        self.evaluation = method.evaluation
        self.preferences = Preferences(method.dimensions)
        self.teller = Teller(self.preferences, self.codec, method.lengths, settings.statement)
        self.teller.check(self.network.policy.max_tokens, settings.statement)
        self.reader = TextReader(self.network.policy, self.codec, self.teller.widened)

    def check(self, shard: CorpusShard) -> None:
        """Refuse statements that name no side that there is."""
        for example in (*shard.stages.get(SFT, ()), *shard.test):
            self.preferences.vector(example.group, f"client {shard.client!r}, preference")

    def own(self, shard: CorpusShard) -> Sequence[Example]:
        """Return the examples of the stage that state something."""
        return self._stated(shard.stages.get(SFT, ()))

    def initial(self, streams: Streams, artefacts: Artefacts) -> State:
        """Return an adapter that changes nothing."""
        return self.start(streams, artefacts, [])

    def row_losses(self, state: State) -> RowLosses:
        """Return the negative log-likelihood of each response under its told prompt, in nats a token."""
        return lambda examples, seeds: Imitation().rows(self.reader, self.told(examples))

    def told(self, examples: Sequence[Example]) -> list[Example]:
        """Return examples with their statements before their prompts."""
        vectors = torch.stack([self.preferences.vector(example.group, "preference") for example in examples])
        prompts = self.teller.told([example.prompt for example in examples], vectors)
        return [replace(example, prompt=prompt) for example, prompt in zip(examples, prompts, strict=True)]

    @torch.no_grad()
    def evaluate(self, state: State, shard: CorpusShard, streams: Streams) -> Contribution:
        """Return how likely test texts that state something are."""
        self.load(state)
        sums = []
        examples = self._stated(shard.test)[: self.evaluation.prompts]
        for start in range(0, len(examples), self.evaluation.batch):
            part = self.told(examples[start : start + self.evaluation.batch])
            tokens = self.reader.encode([e.prompt for e in part], [e.response for e in part])
            found, counts = -self.reader.log_probability(tokens), tokens.response_mask.sum(1)
            sums += [
                MetricSum("unseen/test_nll", example.group, float(each), float(count))
                for example, each, count in zip(part, found, counts, strict=True)
            ]
        return Contribution(scalars=encode(sums))

    def export(self, state: State, directory: Path) -> None:
        """Write the adapter as peft reads it, to ``prompted``."""
        self.load(state)
        self.network.policy.transformer.save_adapter(directory / "prompted")

    def _stated(self, examples: Sequence[Example]) -> Sequence[Example]:
        return [e for e in examples if bool(self.preferences.vector(e.group, "preference").any())]


class PromptedPhase(FixedPhase):
    """Scores what the prompted model writes.

    Parameters
    ----------
    method : PCM
    settings : Prompted
    training : PromptedTrainingPhase or None
        An earlier phase, whose adapter writes.
    setting : Setting
    """

    name = "prompted"

    def __init__(
        self, method: PCM, settings: Prompted, training: PromptedTrainingPhase | None, setting: Setting
    ) -> None:
        super().__init__(method, setting)
        self.training = training
        spec = language_model(setting)
        if training is None:
            with Streams(0).torch_default("adapter"):
                self.network = spec.build("model")
        else:
            self.network = training.network
        policy = self.network.policy
        if policy.transformer.vocabulary != self.experts.vocabulary:
            raise UserError(
                f"model.model={spec.model}: it has {policy.transformer.vocabulary} tokens, and the experts "
                f"{self.experts.vocabulary}; prompt one of their kind"
            )
        self.teller = Teller(self.preferences, self.codec, method.lengths, settings.statement)
        self.teller.check(policy.max_tokens, settings.statement)

    def initial(self, streams: Streams, artefacts: Artefacts) -> State:
        """Return the trained adapter, if any, and what of the experts travels."""
        state = super().initial(streams, artefacts)
        if self.training is not None:
            found = artefacts.get(self.training.name, self.training.initial(streams, artefacts))
            state |= {_PREFIX + name: tensor for name, tensor in found.items()}
        return state

    def writer(self, state: State) -> PromptedWriter:
        """Return the model with the adapter of a state."""
        self.load_experts(state)
        if self.training is not None:
            self.training.load({n.removeprefix(_PREFIX): t for n, t in state.items() if n.startswith(_PREFIX)})
        return PromptedWriter(self.network.policy, self.teller, pretrained=self.training is None)


class PromptedWriter(StatedWriter):
    """A model that is told the preference in words.

    Parameters
    ----------
    policy : ConditionalPolicy
    teller : Teller
    pretrained : bool
        Whether it writes without its adapter.
    """

    def __init__(self, policy: ConditionalPolicy, teller: Teller, pretrained: bool) -> None:
        self._policy, self._teller, self._pretrained = policy, teller, pretrained

    def write(
        self, prompts: Sequence[str], vectors: Tensor, draws: Tensor | None, temperature: float = 1.0
    ) -> StatedText:
        """Continue every prompt; what is returned has the prompts as they were, without the statements."""
        told, lengths = self._teller.told(prompts, vectors), self._teller.widened
        heat = 0.0 if draws is None else temperature
        written = write(self._policy, self._teller.codec, lengths, told, draws, heat, self._pretrained)
        codec, width = self._teller.codec, self._teller.lengths.prompt
        ids, mask = (tensor.to(self._policy.device) for tensor in codec.openings(prompts, width))
        new, seen = written.tokens.ids[:, lengths.prompt :], written.tokens.response_mask[:, lengths.prompt :]
        tokens = ResponseBatch(
            torch.cat([ids, new], 1), torch.cat([mask, seen], 1), torch.cat([torch.zeros_like(mask), seen], 1)
        )
        return StatedText(tokens, written.texts)
