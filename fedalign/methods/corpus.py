"""What the stages of alignment share: a language model, users' texts, and local training with or without noise."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fedalign.contribution import Contribution, State, weighted_delta
from fedalign.data.corpus import CorpusShard, Example
from fedalign.data.federated import Role
from fedalign.errors import UserError
from fedalign.methods.base import Artefacts, Memory, Phase, Setting
from fedalign.methods.local_training import LocalTraining, check_private, train, train_privately, trainable
from fedalign.methods.text_evaluation import overall
from fedalign.methods.text_lengths import Lengths
from fedalign.methods.text_reward import TextReward
from fedalign.methods.text_units import RowLosses, units_of
from fedalign.metrics.record import MetricSum, encode
from fedalign.models.language_model import LanguageModelSpec, ValuedPolicy
from fedalign.models.text import TextCodec
from fedalign.privacy.local import KEY as LOCAL
from fedalign.privacy.local import LocalPrivacy, Unit
from fedalign.rng import Streams
from fedalign.template import Template


@dataclass(frozen=True)
class Stage:
    """What every stage's training is told; the fields that the blocks ``sft``, ``reward_model`` and ``rl`` share.

    Parameters
    ----------
    rounds : int or None
        None takes ``federation.rounds``.
    batch : int
        Examples in a gradient step, at most; with local privacy the batch is drawn by ``privacy.local.rate`` instead.
    user_examples : int
        Examples of a user in a step, where local privacy protects users.
    local : LocalTraining
    """

    rounds: Annotated[int, Field(ge=0)] | None
    batch: Annotated[int, Field(ge=1)]
    user_examples: Annotated[int, Field(ge=1)]
    local: LocalTraining


class Batches:
    """Batches of a client's examples: each is met once before any is met again.

    Parameters
    ----------
    examples : sequence of Example
        At least one.
    size : int
        Examples in a batch; all of them, where there are fewer.
    generator : torch.Generator
    """

    def __init__(self, examples: Sequence[Example], size: int, generator: torch.Generator) -> None:
        self._examples, self._generator = examples, generator
        self._size = min(size, len(examples))
        self._waiting: list[int] = []

    def draw(self) -> tuple[list[Example], list[int]]:
        """Return a batch, and a seed for the draws of each example."""
        while len(self._waiting) < self._size:
            self._waiting += torch.randperm(len(self._examples), generator=self._generator).tolist()
        chosen, self._waiting = self._waiting[: self._size], self._waiting[self._size :]
        seeds = torch.randint(2**62, (self._size,), generator=self._generator).tolist()
        return [self._examples[i] for i in chosen], seeds


class CorpusPhase(Phase[CorpusShard]):
    """A stage that trains the adapter of a language model on the examples that are the stage's own.

    A subclass says what the loss of an example is. Every client counts the same, so that no weight tells how much it
    holds.

    Parameters
    ----------
    stage : Stage
    key : str
        Where the stage's settings stand, e.g. ``method.sft``.
    lengths : Lengths
    setting : Setting
    """

    local_units: frozenset[Unit] = frozenset({"example", "user"})
    evaluated = frozenset({Role.UNSEEN})

    def __init__(self, stage: Stage, key: str, lengths: Lengths, setting: Setting) -> None:
        assert isinstance(setting.model, LanguageModelSpec)
        self.rounds = setting.rounds if stage.rounds is None else stage.rounds
        self.local_steps = stage.local.steps
        self.settings, self.key, self.lengths = stage, key, lengths
        self._spec, self._privacy = setting.model, setting.local_privacy
        if self._privacy is not None:
            check_private(stage.local, f"{key}.local")
        self._rewards: Sequence[TextReward] = ()
        # The workspace that states are loaded into; its own weights mean nothing.
        self.network = self.fresh(Streams(0))
        self.codec = TextCodec(setting.model.model, "model")
        lengths.check(self.network.policy.max_tokens)

    def check_rows(self, responses: int) -> None:
        """Refuse ghost clipping where a unit is several rows.

        Parameters
        ----------
        responses : int
            Rows of an example.

        Raises
        ------
        UserError
            Naming what to set.
        """
        if self._privacy is None or self._privacy.settings.grad_sample != "ghost":
            return
        if responses * (self.settings.user_examples if self._privacy.settings.unit == "user" else 1) > 1:
            raise UserError(
                f"{LOCAL}.grad_sample=ghost: a unit of {self.key} is several texts, which ghost clipping cannot serve; "
                f"set hooks or loop"
            )

    def scored_by(self, *rewards: TextReward | None) -> None:
        """Take note of what texts are scored by, so that what is missing is said before anything is trained."""
        self._rewards = [reward for reward in rewards if reward is not None]

    def check(self, shard: CorpusShard) -> None:
        """Refuse rewards that cannot be had."""
        for reward in self._rewards:
            reward.prepare()

    def fresh(self, streams: Streams) -> ValuedPolicy:
        """Return a network of one's own, whose adapter changes nothing yet."""
        with streams.torch_default("adapter"):
            return self._spec.build("model")

    def users(self, shard: CorpusShard) -> Sequence[str]:
        """Return whose examples the stage reads."""
        return sorted({example.user for example in self.own(shard)})

    def examples(self, shard: CorpusShard) -> Sequence[str]:
        """Return what the examples are that the stage reads."""
        return ["\x1f".join((e.user, e.prompt, e.response, e.rejected or "")) for e in self.own(shard)]

    def own(self, shard: CorpusShard) -> Sequence[Example]:
        """Return the examples that the stage reads."""
        assert self.stage is not None
        return shard.stages.get(self.stage, ())

    def start(self, streams: Streams, artefacts: Artefacts, stages: Sequence[str]) -> State:
        """Return the adapter that the latest of some earlier stages left, or one that changes nothing."""
        fresh = {name: tensor.cpu() for name, tensor in self.fresh(Streams(streams.seed)).adapter().items()}
        for stage in stages:
            if stage in artefacts:
                return {name: artefacts[stage][name] for name in fresh}
        return fresh

    def template(self, state: State) -> Template:
        """Return a delta for every trained tensor: a frozen A, a reference and a reward model stay as they are."""
        return Template.of_deltas(trainable(self.network))

    @abstractmethod
    def row_losses(self, state: State) -> RowLosses:
        """Return what is minimised at the network's present parameters, in a round that began with ``state``."""

    def load(self, state: State) -> None:
        """Put a state into the workspace."""
        self.network.load_adapter(state)
        with torch.no_grad():
            for name, parameter in self.network.head.named_parameters(prefix="head"):
                if name in state:
                    parameter.copy_(state[name])
        self.network.eval()

    def local(self, state: State, shard: CorpusShard, streams: Streams, memory: Memory) -> Contribution:
        """Train on the stage's examples and return the change; with local privacy, by DP-SGD."""
        self.load(state)
        start = {name: state[name].to(self.network.policy.device) for name in trainable(self.network)}
        steps = (self.settings.local.steps * (streams.round - 1), self.settings.local.steps * self.rounds)
        if self._privacy is not None:
            self._train_privately(state, start, self.own(shard), streams, memory, self._privacy, steps)
            sums: list[MetricSum] = []
        else:
            sums = self._train(state, start, self.own(shard), streams, memory, steps)
        self.network.eval()
        after = {name: parameter.detach().cpu() for name, parameter in trainable(self.network).items()}
        change = weighted_delta({name: state[name] for name in after}, after, 1.0)
        return Contribution(change.tensors, {**change.scalars, **encode(sums)})

    def export(self, state: State, directory: Path) -> None:
        """Write the adapter as peft reads it, to ``adapter``."""
        self.load(state)
        self.network.policy.transformer.save_adapter(directory / "adapter")

    def step_loss(self, state: State, batches: Batches, told: list[MetricSum]) -> Callable[[int], Tensor]:
        """Return the mean loss of each local step's batch.

        Parameters
        ----------
        state : State
            As it was broadcast.
        batches : Batches
        told : list of MetricSum
            Receives what is said of training.
        """
        losses = self.row_losses(state)
        return lambda step: losses(*batches.draw()).mean()

    def summarise(self, sums: Sequence[MetricSum], tensors: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the mean over groups of each metric, perplexities, and the interval of the mean reward."""
        return overall(super().summarise(sums, tensors), tensors)

    def _train(
        self,
        state: State,
        start: State,
        examples: Sequence[Example],
        streams: Streams,
        memory: Memory,
        steps: tuple[int, int],
    ) -> list[MetricSum]:
        told: list[MetricSum] = []
        loss = self.step_loss(state, Batches(examples, self.settings.batch, streams.torch("batches")), told)
        with streams.torch_default("dropout"):
            self.network.train()
            value = train(self.network, start, loss, self.settings.local, *steps, memory)
        groups = sorted({example.group for example in examples})
        return [*told, *(MetricSum("train/loss", group, value, 1.0) for group in groups)]

    def _train_privately(
        self,
        state: State,
        start: State,
        examples: Sequence[Example],
        streams: Streams,
        memory: Memory,
        privacy: LocalPrivacy,
        steps: tuple[int, int],
    ) -> None:
        draws = privacy.draws(streams)
        losses = self.row_losses(state)
        units = units_of(examples, privacy.settings.unit, self.settings.user_examples, losses, draws)
        with draws.torch_default("dropout"):
            self.network.train()
            train_privately(self.network, start, units, self.settings.local, privacy, *steps, memory, streams)
