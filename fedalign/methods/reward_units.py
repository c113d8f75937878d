"""What a client's DP-SGD protects when it trains a reward model: each judgment, or each person."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import pad

from fedalign.data.pairs import Judgments
from fedalign.errors import UserError
from fedalign.methods.assignment import Everybody
from fedalign.methods.episodes import EpisodePlan
from fedalign.methods.local_training import check_equal_weight, check_private
from fedalign.methods.pairs import Batch, batch_of
from fedalign.models.reward import RewardHeads
from fedalign.objectives.preference import preference_nll
from fedalign.privacy.dp_sgd import UnitLosses
from fedalign.privacy.local import KEY, LocalPrivacy, Unit
from fedalign.rng import Streams

if TYPE_CHECKING:
    from fedalign.methods.reward_heads import RewardHeadsMethod


class EachJudgment(UnitLosses):
    """A unit is one training judgment of the client's people.

    Parameters
    ----------
    network : RewardHeads
        One head.
    people : sequence of Judgments
    streams : Streams
        At the client's place in the round.
    """

    def __init__(self, network: RewardHeads, people: Sequence[Judgments], streams: Streams) -> None:
        self._network, self._streams = network, streams
        self._pairs = torch.cat([person.features[person.train] for person in people])
        self._tie = torch.cat([person.tie[person.train] for person in people])

    @property
    def units(self) -> int:
        """Training judgments of the client."""
        return len(self._pairs)

    def losses(self, chosen: Tensor, step: int) -> Tensor:
        """Return the negative log-likelihood of each chosen judgment, its responses in random order."""
        swap = (torch.rand(self.units, generator=self._streams.torch(f"dp_sgd/{step}")) < 0.5)[chosen]
        pairs = self._pairs[chosen]
        pairs = torch.where(swap[:, None, None], pairs.flip(1), pairs)
        preferred = torch.where(self._tie[chosen], 0.5, (~swap).float())
        return preference_nll(self._network.logits(pairs[:, 0], pairs[:, 1])[0], preferred)


class EachPerson(UnitLosses):
    """A unit is one person of the client: a step sees as many of their judgments as of a client's in plain training.

    Parameters
    ----------
    network : RewardHeads
        One head.
    people : sequence of Judgments
    plan : EpisodePlan
        Its episodes are a person's of a step. Their number of judgments at most is a person's number of rows.
    streams : Streams
        At the client's place in the round.
    """

    def __init__(self, network: RewardHeads, people: Sequence[Judgments], plan: EpisodePlan, streams: Streams) -> None:
        self._network, self._people, self._plan, self._streams = network, people, plan, streams
        self._rows = plan.count * (plan.max_context + plan.targets)

    @property
    def units(self) -> int:
        """People of the client."""
        return len(self._people)

    def losses(self, chosen: Tensor, step: int) -> Tensor:
        """Return the mean negative log-likelihood of each chosen person's judgments of a step."""
        drawn = [self._draw(self._people[unit], step) for unit in chosen.tolist()]
        first = torch.stack([_filled(batch.first, self._rows) for batch in drawn])
        second = torch.stack([_filled(batch.second, self._rows) for batch in drawn])
        preferred = torch.stack([_filled(batch.preferred, self._rows) for batch in drawn])
        # What fills up a person's rows weighs nothing.
        weight = torch.stack([pad(torch.ones(n) / n, (0, self._rows - n)) for n in (len(b.preferred) for b in drawn)])
        return (preference_nll(self._network.logits(first, second)[0], preferred) * weight).sum(1)

    def _draw(self, person: Judgments, step: int) -> Batch:
        """Return a person's judgments of a step, which nobody else has a part in."""
        generator = self._streams.torch(f"dp_sgd/{step}/{person.person}")
        (pick,) = self._plan.picks([person], generator)
        return batch_of(person, pick.index.flatten(), generator)


def reward_units(
    method: RewardHeadsMethod, unit: Unit, network: RewardHeads, people: Sequence[Judgments], streams: Streams
) -> UnitLosses:
    """Return what is to be protected on a client that holds ``people``."""
    if unit == "example":
        return EachJudgment(network, people, streams)
    return EachPerson(network, people, method.episodes, streams)


def check_reward(method: RewardHeadsMethod, privacy: LocalPrivacy | None) -> None:
    """Refuse settings of a reward model under which one unit would reach what is sent past the noise.

    Raises
    ------
    UserError
        Naming the setting and the fix.
    """
    if privacy is None or method.local is None:
        return
    check_private(method.local)
    if not isinstance(method.assignment, Everybody) or method.heads != 1:
        raise UserError(
            f"{KEY}: method.assignment={type(method.assignment).__name__} with method.heads={method.heads} tells "
            "people apart by their judgments, which DP-SGD does not hide; use method=fedavg_bt (Everybody, one head) "
            "or privacy=central"
        )
    check_equal_weight(method.weight)
    if privacy.settings.grad_sample == "ghost":
        raise UserError(
            f"{KEY}.grad_sample=ghost: both responses of a pair go through the same layers, which ghost clipping "
            "cannot serve; set hooks or loop"
        )


def _filled(values: Tensor, rows: int) -> Tensor:
    """Return values of shape (n, ...) with their first row repeated up to ``rows``."""
    return torch.cat([values, values[:1].expand(rows - len(values), *values.shape[1:])])
