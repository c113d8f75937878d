"""Group-robust DPO, an upper bound: one policy, trained most for the known group that it serves worst.

Ramesh et al. (NeurIPS 2024, arXiv 2405.20304): ``min_theta max_q sum_g q_g L_g(theta)`` over group weights q on the
simplex, by exponentiated gradient in q. What they do with a mini-batch of one group, times N / N_g, a round does with
clients: what a client adds is its change times q_g / p_g, for its annotators' group g and the group's share p_g of all.
Over draws of clients the mean of that is ``sum_g q_g`` times the mean change of group g's clients. Without secure sums
the server can read from a device's sums which group its owner is in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from fedalign.contribution import WEIGHT, Contribution, State
from fedalign.data.federated import Role
from fedalign.data.rankings import RankingShard
from fedalign.errors import UserError
from fedalign.methods.base import Artefacts, Memory, Phase, ServerOptimizer, Setting
from fedalign.methods.em import MASS, EMPhase
from fedalign.methods.emdpo import EMDPO
from fedalign.methods.fairness import NoMixture
from fedalign.methods.type_model import TypeModel
from fedalign.rng import Streams
from fedalign.template import Template

KEY = "method.groups"

WEIGHTS, LOSSES, SEEN = "groups/weight", "groups/loss", "groups/seen"
"""Names in the state, each of shape (G,): q; each group's loss when it was last there, in nats a judgment; and what its
clients have weighed in all rounds so far."""

_LOSS, _COUNT = "groups/loss_sum", "groups/count"
_LEAST = 1e-3
"""Weight, of a client that counts 1, below which a group is taken to be absent; noise may leave a sum anywhere."""


@dataclass(frozen=True)
class Groups:
    """The known groups; the ``groups`` block of the method.

    Parameters
    ----------
    names : tuple of str
        The annotators' true types, all of them.
    step : float
        How fast weights follow losses: a round multiplies q_g by ``exp(step * loss_g)``, loss in nats a judgment. 0
        keeps equal weights.
    """

    names: Annotated[tuple[str, ...], Field(min_length=1)]
    step: Annotated[float, Field(ge=0)]

    def of(self, shard: RankingShard) -> Tensor:
        """Return the group of each of a shard's annotators, int64 of shape (P,).

        Raises
        ------
        UserError
            If somebody's is not among the names.
        """
        strange = sorted({str(name) for name in shard.types if name not in self.names})
        if strange:
            raise UserError(
                f"{KEY}.names={list(self.names)}: client {shard.client!r} has annotators of type "
                f"{', '.join(strange)}; name all true types, or take method=dpo where they are not known"
            )
        return torch.tensor([self.names.index(str(name)) for name in shard.types])

    def weights(self, weights: Tensor, losses: Tensor) -> Tensor:
        """Return q after a round, float64 of shape (G,); from q and the losses, both of shape (G,)."""
        return torch.softmax(weights.double().log() + self.step * losses.double(), 0)


class GroupRobustPhase(EMPhase):
    """Trains one type, each client's change weighted by its annotators' groups.

    Groups' losses are told by judgments that the round does not train on, where ``method.folds.cross_fit`` keeps some.

    Parameters
    ----------
    method : GroupRobustDPO
    setting : Setting
    model : TypeModel
    """

    def __init__(self, method: GroupRobustDPO, setting: Setting, model: TypeModel) -> None:
        super().__init__(method, setting, model, None)
        self._groups = method.groups

    def check(self, shard: RankingShard) -> None:
        """Refuse also training annotators of no known group."""
        super().check(shard)
        if shard.role is Role.TRAIN:
            self._groups.of(shard)

    def initial(self, streams: Streams, artefacts: Artefacts) -> State:
        """Return the type where it begins, and equal weights of groups."""
        count = len(self._groups.names)
        own = {WEIGHTS: torch.full((count,), 1 / count), LOSSES: torch.zeros(count), SEEN: torch.zeros(count)}
        return super().initial(streams, artefacts) | own

    def template(self, state: State) -> Template:
        """Return also the sums of the groups' losses and what these weigh."""
        count = (len(self._groups.names),)
        return super().template(state) | Template({_LOSS: count, _COUNT: count})

    def local(self, state: State, shard: RankingShard, streams: Streams, memory: Memory) -> Contribution:
        """Return the client's weighted change, and its groups' losses."""
        told = self.method.folds.assessing(shard, streams.seed, streams.round)
        losses = -self.log_likelihoods(state, shard, told)[0].double()
        groups = self._groups.of(shard)[shard.owner[told]]
        sent = super().local(state, shard, streams, memory)
        weight = sent.scalars[WEIGHT]
        zeros = torch.zeros(len(self._groups.names), dtype=torch.float64)
        own = {
            # Not what the change was weighted by: on average over clients that is 1 already, as of q_g / p_g.
            MASS: torch.tensor([weight]),
            _LOSS: weight / len(told) * zeros.index_add(0, groups, losses),
            _COUNT: weight / len(told) * zeros.index_add(0, groups, torch.ones_like(losses)),
        }
        return Contribution({**sent.tensors, **own}, sent.scalars)

    def update(self, state: State, total: Contribution, optimizer: ServerOptimizer) -> State:
        """Return the state after a step of the type, and one of the weights.

        A group that is absent keeps its last loss; one that was never there has the mean of the others'.
        """
        count = total.tensors[_COUNT].double().clamp(min=0)
        told = total.tensors[_LOSS].double() / count.clamp(min=_LEAST)
        losses = torch.where(count > _LEAST, told, state[LOSSES].double())
        seen = state[SEEN].double() + count
        known = seen > _LEAST
        guessed = losses[known].mean() if bool(known.any()) else losses.mean()
        weights = self._groups.weights(state[WEIGHTS], torch.where(known, losses, guessed))
        after = super().update(state, total, optimizer)
        return after | {WEIGHTS: weights.float(), LOSSES: losses.float(), SEEN: seen.float()}

    def report(self, state: State) -> Mapping[str, float]:
        """Return the weights."""
        names = self._groups.names
        return {f"train/group_weight_{name}": w for name, w in zip(names, state[WEIGHTS].tolist(), strict=True)}

    def _weights(self, state: State, shard: RankingShard, fitted: Tensor, shares: Tensor) -> Tensor:
        """Return q_g / p_g of each judgment that is trained on, float32 of shape (1, n)."""
        # By Laplace's rule: before the first round all are taken to be equally many.
        seen = state[SEEN] + 1
        ratios = state[WEIGHTS] / (seen / seen.sum())
        return ratios[self._groups.of(shard)[shard.owner[fitted]]][None].float()


@dataclass(frozen=True)
class GroupRobustDPO(EMDPO):
    """Settings of group-robust DPO: those of EM-DPO with one type.

    Parameters
    ----------
    groups : Groups
    """

    groups: Groups

    def __post_init__(self) -> None:
        """Refuse several types, and a mixture of them: there is one policy."""
        if self.types != 1:
            raise UserError(f"method={self.name} trains one policy, method.types={self.types}; set method.types=1")
        if not isinstance(self.fair, NoMixture):
            raise UserError(f"method={self.name} trains one policy, there is nothing to mix; set method/fair=none")
        super().__post_init__()

    def type_phases(self, setting: Setting, model: TypeModel) -> Sequence[Phase[Any]]:
        """Return the one phase."""
        return [GroupRobustPhase(self, setting, model)]
