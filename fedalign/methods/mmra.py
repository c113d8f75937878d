"""Min-max regret aggregation, federated: one round of sums, and one mixture of type policies for everybody.

Chidambaram et al. (arXiv 2405.15065). With public prompts the server works alone. With their own, clients add up how
every type finds what every type's policy answers, K x K numbers each, and how likely the types' policies make what
their annotators judged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedalign.contribution import WEIGHT, Contribution, State
from fedalign.data.federated import Role
from fedalign.data.rankings import RankingShard
from fedalign.errors import UserError
from fedalign.methods.base import Artefacts, Memory, Participation, ServerOptimizer
from fedalign.methods.judged_regret import judged_regrets, others, regret_summary
from fedalign.methods.mixture_policy import MixturePolicy
from fedalign.methods.ranking_phase import RankingPhase
from fedalign.methods.text_policies import read_public_prompts
from fedalign.methods.type_adapters import AdapterTypes
from fedalign.methods.type_model import PRIOR, all_utilities, count
from fedalign.methods.type_rewards import answer_rewards_of_menus, client_prompts, gains, text_rewards
from fedalign.metrics.record import MetricSum, encode
from fedalign.rng import Streams
from fedalign.template import Template

if TYPE_CHECKING:
    from fedalign.methods.em import EMPhase
    from fedalign.methods.emdpo import EMDPO
    from fedalign.methods.fairness import Fairness

KEY = "method.fair"

MIXTURE, REGRETS, VALUE = "mixture", "regrets", "value"
"""Names in the state: chances of the types' policies (K,), each type's regret under each (K, K), the worst (1,)."""

ANSWERS, JUDGMENTS = "rewards/answers", "rewards/judgments"
"""Names in the state: implicit rewards of answers, and gains of likelihood a judgment; of type by policy, (K, K)."""

_ANSWERS, _PROMPTS = "regret/answers", "regret/prompts"
_JUDGMENTS, _JUDGED = "regret/judgments", "regret/judged"
_LEAST = 1e-3
"""Weight, of a client that counts 1, below which a sum is taken to hold nothing; noise may leave it anywhere."""


class MixturePhase(RankingPhase):
    """Finds the mixture. A client's sums are means over its prompts and its judgments, times its weight.

    Regret in human labels is measured on the training judgments that neither trained types nor told them: a share
    ``method.folds.validation`` of all.

    Parameters
    ----------
    method : EMDPO
    em : EMPhase
    settings : Fairness

    Raises
    ------
    UserError
        If the settings do not fit the types.
    """

    name = "mmra"
    diagnostic = True
    participation = Participation.ALL

    def __init__(self, method: EMDPO, em: EMPhase, settings: Fairness) -> None:
        super().__init__(method, em.model)
        self.client_weight = 1.0 if method.weight == "uniform" else None
        self.em, self.settings = em, settings
        self.settings.type_weights(method.types)
        self.rounds = 1 if self.settings.prompts is None else 0
        if self.settings.prompts is not None and not isinstance(self.model, AdapterTypes):
            raise UserError(
                f"{KEY}.prompts={self.settings.prompts}: types that are heads write nothing; set {KEY}.prompts=null, "
                "or types that are adapters of a language model"
            )
        if self.settings.basis == "judgments" and method.folds.validation == 0:
            raise UserError(
                f"{KEY}.basis=judgments needs judgments that types were not trained on; set method.folds.validation "
                f"above 0, or {KEY}.basis=answers"
            )

    def check(self, shard: RankingShard) -> None:
        """Refuse training clients that have no say in a mixture by judgments."""
        folds = self.method.folds
        if self.settings.basis == "judgments" and shard.role is Role.TRAIN and not len(folds.validating(shard, 0)):
            raise UserError(
                f"client {shard.client!r} has too few training judgments for method.folds.validation="
                f"{folds.validation} to hold one out; raise it, raise partition.min_train, or set {KEY}.basis=answers"
            )

    def shares_of(self, state: State, shard: RankingShard, index: Tensor, seed: int) -> Tensor:
        """Return every annotator's share in each type as EM tells it, float64 of shape (K, P)."""
        return self.em.shares_of(state, shard, index, seed)

    def initial(self, streams: Streams, artefacts: Artefacts) -> State:
        """Return the types, mixed by their shares; with public prompts, as the game has it.

        Without artefacts, as where only names and shapes are asked for, types are as EM begins.
        """
        trained = self.em.name in artefacts
        state = artefacts[self.em.name] if trained else self.em.initial(streams, artefacts)
        types = count(state)
        empty = torch.zeros(types, types)
        found = {ANSWERS: empty, JUDGMENTS: empty.clone(), REGRETS: empty.clone(), VALUE: torch.zeros(1)}
        begun = {**state, **found, MIXTURE: state[PRIOR].clone()}
        if self.settings.prompts is None or not trained:
            return begun
        assert isinstance(self.model, AdapterTypes)
        prompts = read_public_prompts(Path(self.settings.prompts), f"{KEY}.prompts")
        generator = Streams(streams.seed, self.name).torch("answers")
        return self.solved(begun, {ANSWERS: text_rewards(self.model, state, prompts, self.settings.writing, generator)})

    def template(self, state: State) -> Template:
        """Return two matrices of types by policies, and what they weigh."""
        types = count(state)
        square = (types, types)
        return Template({_ANSWERS: square, _PROMPTS: (1,), _JUDGMENTS: square, _JUDGED: (types,)})

    def local(self, state: State, shard: RankingShard, streams: Streams, memory: Memory) -> Contribution:
        """Return the client's sums; nothing of a prompt, an answer or a judgment but what these tell."""
        if not len(shard.train):
            return Contribution({}, {WEIGHT: 0.0})
        weight = 1.0 if self.method.weight == "uniform" else float(len(shard.train))
        judged, share = self._judged(state, shard, streams.seed)
        return Contribution(
            {
                _ANSWERS: weight * self._answers(state, shard, streams),
                _PROMPTS: torch.tensor([weight]),
                _JUDGMENTS: weight * judged,
                _JUDGED: weight * share,
            },
            {WEIGHT: weight},
        )

    def update(self, state: State, total: Contribution, optimizer: ServerOptimizer) -> State:
        """Return the state with the mixture."""
        sums = {name: tensor.double() for name, tensor in total.tensors.items()}
        answers = _mean(sums[_ANSWERS], sums[_PROMPTS])
        return self.solved(state, {ANSWERS: answers, JUDGMENTS: _mean(sums[_JUDGMENTS], sums[_JUDGED][:, None])})

    def solved(self, state: State, rewards: Mapping[str, Tensor]) -> State:
        """Return the state with rewards, and with the mixture and the regrets that the chosen ones lead to."""
        chosen = rewards[JUDGMENTS if self.settings.basis == "judgments" else ANSWERS]
        regrets = self.settings.regrets(chosen)
        mixture = self.settings.mixture(chosen, state[PRIOR])
        found = {**rewards, REGRETS: regrets, MIXTURE: mixture, VALUE: _worst(regrets, mixture)[None]}
        return {**state, **{name: tensor.to(state[name]) for name, tensor in found.items()}}

    def report(self, state: State) -> Mapping[str, float]:
        """Return the worst type's regret as each basis has it, and the mixture."""
        known = {"train/regret_worst": float(state[VALUE])}
        for name, key in (("answers", ANSWERS), ("judgments", JUDGMENTS)):
            if bool(state[key].any()):
                known[f"train/regret_worst_{name}"] = float(
                    _worst(self.settings.regrets(state[key]), state[MIXTURE].double())
                )
        return known | {f"train/mixture_{number}": share for number, share in enumerate(state[MIXTURE].tolist())}

    def evaluate(self, state: State, shard: RankingShard, streams: Streams) -> Contribution:
        """Return how types predict held-out judgments, and what a mixture of them loses there, by annotators' types."""
        known, target = self.divided(shard, streams.seed)
        own = self.shares_of(state, shard, known, streams.seed).argmax(0)
        best = self.gains(state, shard, target)
        mixed = state[MIXTURE].double() @ best
        sums = judged_regrets(shard, target, own, best, mixed)
        return super().evaluate(state, shard, streams) + Contribution(scalars=encode(sums))

    def summarise(self, sums: Sequence[MetricSum], tensors: Mapping[str, Tensor]) -> dict[str, float]:
        """Return what is told of types, and the mixture's regret: a judgment's mean, and the worst type's."""
        return super().summarise(others(sums), tensors) | regret_summary(sums)

    def policy(self, state: State) -> MixturePolicy:
        """Return what writes for everybody; only where types are adapters of a language model."""
        assert isinstance(self.model, AdapterTypes)
        return MixturePolicy(self.model, state, state[MIXTURE])

    def gains(self, state: State, shard: RankingShard, index: Tensor) -> Tensor:
        """Return how much likelier than the reference each type makes judgments, float64 of shape (K, n)."""
        return gains(all_utilities(self.model, state, shard, index), self.orders(shard).rows(index))

    def _answers(self, state: State, shard: RankingShard, streams: Streams) -> Tensor:
        """Return each type's mean reward of each type's answers to the client's prompts, shape (K, K)."""
        most, generator = self.settings.client_prompts, streams.torch("prompts")
        if not isinstance(self.model, AdapterTypes):
            menus = shard.train[torch.randperm(len(shard.train), generator=generator)[:most]]
            return answer_rewards_of_menus(self.model, state, shard, menus)
        prompts = client_prompts(shard, most, generator)
        return text_rewards(self.model, state, prompts, self.settings.writing, streams.torch("answers"))

    def _judged(self, state: State, shard: RankingShard, seed: int) -> tuple[Tensor, Tensor]:
        """Return gains by the type of who judged, (K, K), and the share of judgments of each type, (K,)."""
        types = count(state)
        told = self.method.folds.validating(shard, seed)
        if not len(told):
            return torch.zeros(types, types), torch.zeros(types)
        shares = self.shares_of(state, shard, self.method.folds.telling(shard, seed), seed)[:, shard.owner[told]]
        return shares @ self.gains(state, shard, told).T / len(told), shares.mean(1)


def _mean(total: Tensor, weight: Tensor) -> Tensor:
    """Return a mean of what weighs anything, and zeros of what does not: who is not there has no regret."""
    return torch.where(weight > _LEAST, total / weight.clamp(min=_LEAST), 0.0)


def _worst(regrets: Tensor, mixture: Tensor) -> Tensor:
    """Return the worst type's regret under a mixture, not below 0."""
    return (regrets @ mixture.double()).max().clamp(min=0.0)
