"""What a control model learns from: responses that are drawn and rewarded, or judgments of pairs that there are.

Either way experts are asked once for what they find of each token, and all gradient steps go without them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field
from torch import Tensor

from fedalign.data.corpus import Example
from fedalign.errors import UserError
from fedalign.methods.control_batches import ControlBatch
from fedalign.methods.corpus import Batches
from fedalign.methods.coverage import Coverage
from fedalign.methods.policy_gradient import Algorithm, Rollouts
from fedalign.methods.preference_weighting import Losses
from fedalign.methods.reuse import Drawn, Reuse
from fedalign.methods.rollouts import uniform
from fedalign.methods.text_evaluation import by_group
from fedalign.metrics.record import MetricSum
from fedalign.objectives.dpo import dpo_loss
from fedalign.rng import Streams

if TYPE_CHECKING:
    from fedalign.methods.control_phase import Controlled, ControlPhase

KEY = "method.merging.learning"


@dataclass
class Round:
    """What a client's round of training is told, and tells.

    Parameters
    ----------
    examples : sequence of Example
        At least one.
    streams : Streams
        At the client's place in the round.
    sums : list of MetricSum
        Receives what is said of training.
    losses : Losses
        Receives how the client's preferences fared.
    """

    examples: Sequence[Example]
    streams: Streams
    sums: list[MetricSum]
    losses: Losses


class Learning(ABC):
    """The ``learning`` part; subclasses are frozen dataclasses of their settings."""

    @property
    def learns_values(self) -> bool:
        """Whether the control model's head for values is trained."""
        return False

    @property
    def needs_rewards(self) -> bool:
        """Whether something must say what texts are worth."""
        return False

    def check(self, settings: Controlled) -> None:
        """Refuse settings that do not go together; by default all do.

        Raises
        ------
        UserError
            Naming the setting and the fix.
        """
        return

    def fits(self, example: Example) -> bool:
        """Tell whether an example can be learnt from; by default all can."""
        return True

    @abstractmethod
    def loss(self, phase: ControlPhase, bias: Tensor | None, own: Round) -> Callable[[int], Tensor]:
        """Return the loss of each gradient step at the control model's present parameters.

        Parameters
        ----------
        phase : ControlPhase
            Experts and control model are loaded.
        bias : float tensor, shape (n,), or None
            What the client adds to the control model's scores.
        own : Round
        """


@dataclass(frozen=True)
class Online(Learning):
    """Responses are drawn from the merged experts, rewarded, and learnt from by reinforcement learning.

    Parameters
    ----------
    algorithm : Algorithm
        REBEL as published, or one of those of ``method=dprlhf``.
    beta : float
        Weight of the log-ratio to the even mixture of the wanted experts; 0 is as published.
    temperature : float
        Of the experts that responses are drawn from.
    coverage : Coverage
        Preferences beyond the client's own.
    """

    algorithm: Algorithm
    beta: Annotated[float, Field(ge=0)]
    temperature: Annotated[float, Field(gt=0)]
    coverage: Coverage

    @property
    def learns_values(self) -> bool:
        """Whether the algorithm does."""
        return self.algorithm.learns_values

    @property
    def needs_rewards(self) -> bool:
        """Always."""
        return True

    def check(self, settings: Controlled) -> None:
        """Refuse numbers of steps that responses cannot serve."""
        algorithm = self.algorithm
        if algorithm.minibatches > settings.batch:
            raise UserError(
                f"{KEY}.algorithm.minibatches={algorithm.minibatches} of method.merging.batch={settings.batch} "
                "prompts; lower it"
            )
        per_batch = algorithm.epochs * algorithm.minibatches
        if settings.local.steps % per_batch:
            raise UserError(
                f"method.merging.local.steps={settings.local.steps}: responses serve {per_batch} steps "
                f"({KEY}.algorithm.epochs times {KEY}.algorithm.minibatches); set a multiple of that"
            )

    def loss(self, phase: ControlPhase, bias: Tensor | None, own: Round) -> Callable[[int], Tensor]:
        """Return the algorithm's loss of responses that serve as many steps as it says."""
        batches = Batches(own.examples, phase.settings.batch, own.streams.torch("batches"))
        covering = own.streams.torch("coverage")

        def drawn() -> Drawn[tuple[Rollouts, ControlBatch]]:
            examples, seeds = batches.draw()
            return Drawn(self._drawn(phase, bias, own, examples, seeds, covering), len(examples), seeds[0])

        reuse = Reuse(self.algorithm, drawn)

        def loss(step: int) -> Tensor:
            (rollouts, batch), rows = reuse.next()
            part, kept = rollouts.rows(rows), batch.rows(rows)
            targets = self.algorithm.targets(rollouts, self.beta).rows(rows)
            log_probs, values = phase.texts.log_probabilities(kept, bias)
            return self.algorithm.losses(log_probs, values, part, targets).mean()

        return loss

    @torch.no_grad()
    def _drawn(
        self,
        phase: ControlPhase,
        bias: Tensor | None,
        own: Round,
        examples: Sequence[Example],
        seeds: Sequence[int],
        covering: torch.Generator,
    ) -> tuple[Rollouts, ControlBatch]:
        """Return responses to a batch of prompts with what they are worth, and tell how the client's own fared."""
        count = self.algorithm.responses
        vectors = torch.stack([phase.vector(example) for example in examples])
        vectors, covered = self.coverage.replaced(vectors, phase.preferences, covering)
        rows = torch.arange(len(examples)).repeat_interleave(count)
        prompts = [examples[i].prompt for i in rows.tolist()]
        draws = uniform(seeds, phase.lengths.response, count)
        batch = phase.texts.drawn(prompts, vectors[rows], draws, self.temperature, bias)
        scores = phase.texts.worth(prompts, batch.texts, vectors[rows])
        mask = batch.mask
        zeros = torch.zeros_like(batch.drawn_at)
        values = phase.texts.log_probabilities(batch, bias)[1] if self.learns_values else zeros
        rollouts = Rollouts(batch.tokens, mask, batch.drawn_at, batch.even, values, scores.to(mask.device))
        self._tell(phase, own, [examples[i] for i in rows.tolist()], scores, batch, ~covered[rows])
        return rollouts, batch

    def _tell(
        self,
        phase: ControlPhase,
        own: Round,
        examples: Sequence[Example],
        scores: Tensor,
        batch: ControlBatch,
        kept: Tensor,
    ) -> None:
        there = kept.nonzero()[:, 0].tolist()
        groups = [examples[i].group for i in there]
        own.sums += by_group("train/reward", groups, scores[there])
        ratio = ((batch.drawn_at - batch.even) * batch.mask).sum(1)
        own.sums += by_group("train/kl", groups, ratio[there])
        places = batch.told.number[there].cpu()
        places = places.where(places >= 0, len(own.losses.count) - 1)
        own.losses.count.index_add_(0, places, torch.ones(len(there)))
        own.losses.total.index_add_(0, places, 1.0 - scores[there].float())


@dataclass(frozen=True)
class Offline(Learning):
    """Judgments of pairs of responses are learnt from by DPO; nothing is drawn, and nothing scores texts.

    The reference is the even mixture of the wanted experts, which a fresh control model is.

    Parameters
    ----------
    beta : float
        Strength of the pull to it.
    """

    beta: Annotated[float, Field(gt=0)]

    def fits(self, example: Example) -> bool:
        """Tell whether somebody compared."""
        return example.rejected is not None

    def loss(self, phase: ControlPhase, bias: Tensor | None, own: Round) -> Callable[[int], Tensor]:
        """Return the loss of each step's pairs; experts are asked once for all steps, and for all rounds."""
        batches = Batches(own.examples, phase.settings.batch, own.streams.torch("batches"))
        place = {example: i for i, example in enumerate(own.examples)}
        vectors = torch.stack([phase.vector(example) for example in own.examples])
        chosen, rejected = phase.texts.judged(own.streams.client, own.examples, vectors)

        def loss(step: int) -> Tensor:
            drawn = batches.draw()[0]
            rows = torch.tensor([place[example] for example in drawn])
            policy, reference = [], []
            for batch in (chosen.rows(rows), rejected.rows(rows)):
                policy.append((phase.texts.log_probabilities(batch, bias)[0] * batch.mask).sum(1))
                reference.append((batch.even * batch.mask).sum(1))
            losses, margins = dpo_loss(policy[0], policy[1], reference[0], reference[1], self.beta)
            groups = [example.group for example in drawn]
            own.sums.extend(by_group("train/accuracy", groups, (margins.detach() > 0).double()))
            self._tell(phase, own, vectors[rows], margins.detach())
            return losses.mean()

        return loss

    def _tell(self, phase: ControlPhase, own: Round, vectors: Tensor, margins: Tensor) -> None:
        """Add up how likely it is taken to be that the rejected response wins, in [0, 1], by preference."""
        numbers = phase.preferences.numbers(vectors)
        places = numbers.where(numbers >= 0, len(own.losses.count) - 1)
        own.losses.count.index_add_(0, places, torch.ones(len(places)))
        own.losses.total.index_add_(0, places, torch.sigmoid(-margins).float().cpu())
