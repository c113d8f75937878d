"""How many types there are: EM for several K one after another, and the one that held-out judgments speak for.

The curve over K is expected to flatten rather than to turn, for types too many hardly hurt where they take few clients
from the others; so the least K is taken of those that are about as good as the best.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from fedalign.contribution import WEIGHT, Contribution, State
from fedalign.data.federated import Role
from fedalign.data.rankings import RankingShard
from fedalign.errors import UserError
from fedalign.methods.base import Artefacts, Memory, Participation, Phase, ServerOptimizer, Setting
from fedalign.methods.em import EMPhase
from fedalign.methods.emdpo import EMDPO
from fedalign.methods.fairness import NoMixture
from fedalign.methods.ranking_phase import RankingPhase
from fedalign.methods.start_phase import Signatures, StartPhase
from fedalign.methods.type_model import PRIOR, TypeModel, count
from fedalign.methods.type_start import ClusteredStart
from fedalign.objectives.em import mixture_log_likelihood, per_annotator
from fedalign.rng import Streams
from fedalign.template import Template

LOG_LIKELIHOOD = "choice/log_likelihood"
"""Name in the state: of each K, the mean log-likelihood of a held-out judgment, float32 of shape (choices,)."""

LOG_LIKELIHOOD_PRIOR = "choice/log_likelihood_prior"
"""The same of annotators of whom nothing is known: all of one's held-out judgments together, a judgment."""

_CANDIDATES = "candidates."
_HELD, _HELD_PRIOR, _NUMBER = "choice/held", "choice/held_prior", "choice/number"


class CandidatePhase(EMPhase):
    """EM with one of the numbers of types.

    Parameters
    ----------
    method : EMDPO
        With ``types`` set to that number.
    setting : Setting
    model : TypeModel
    signatures : Signatures or None
    """

    def __init__(self, method: EMDPO, setting: Setting, model: TypeModel, signatures: Signatures | None) -> None:
        super().__init__(method, setting, model, signatures)
        self.name = f"{EMPhase.name}_{method.types}"

    def initial(self, streams: Streams, artefacts: Artefacts) -> State:
        """Return the types where they begin, with the clusters of the start that has as many."""
        own = f"{StartPhase.name}_{self.method.types}"
        return super().initial(streams, {StartPhase.name: artefacts[own]} if own in artefacts else {})


class ChoicePhase(RankingPhase):
    """Asks everybody how likely each K makes judgments that nothing was trained on, and keeps the state of the best.

    It is called as EM is where K is given, since what follows reads the types from the phase of that name. All K travel
    to every client, once.

    Parameters
    ----------
    method : ChosenEMDPO
    candidates : sequence of CandidatePhase
        In ascending order of K.
    """

    name = EMPhase.name
    rounds = 1
    participation = Participation.ALL

    def __init__(self, method: ChosenEMDPO, candidates: Sequence[CandidatePhase]) -> None:
        super().__init__(method, candidates[0].model)
        self._tie = method.tie
        self._candidates = {candidate.method.types: candidate for candidate in candidates}

    def check(self, shard: RankingShard) -> None:
        """Refuse training clients that have no say in the choice.

        Raises
        ------
        UserError
            Naming the client and the fix.
        """
        folds = self.method.folds
        if shard.role is Role.TRAIN and not len(folds.validating(shard, 0)):
            raise UserError(
                f"client {shard.client!r} has too few training judgments for method.folds.validation="
                f"{folds.validation} to hold one out, by which the number of types is chosen; raise it, or raise "
                "partition.min_train"
            )

    def initial(self, streams: Streams, artefacts: Artefacts) -> State:
        """Return the final states for all K, side by side."""
        return {
            f"{_CANDIDATES}{types}.{name}": tensor
            for types, candidate in self._candidates.items()
            for name, tensor in _final(candidate, streams, artefacts).items()
        }

    def template(self, state: State) -> Template:
        """Return how likely held-out judgments are for each K, and their number."""
        choices = (len(self._candidates),)
        return Template({_HELD: choices, _HELD_PRIOR: choices, _NUMBER: (1,)})

    def local(self, state: State, shard: RankingShard, streams: Streams, memory: Memory) -> Contribution:
        """Return the client's sums over its held-out judgments."""
        held = self.method.folds.validating(shard, streams.seed)
        told, _ = self.divided(shard, streams.seed)
        found = [self._likely(one, own, shard, told, held, streams.seed) for one, own in self._states(state)]
        known, unknown = torch.tensor(found, dtype=torch.float64).T
        number = torch.tensor([float(len(held))], dtype=torch.float64)
        return Contribution({_HELD: known, _HELD_PRIOR: unknown, _NUMBER: number}, {WEIGHT: 1.0})

    def update(self, state: State, total: Contribution, optimizer: ServerOptimizer) -> State:
        """Return the state of the chosen K, and what it was chosen by."""
        # Noise may leave the number anywhere.
        number = total.tensors[_NUMBER].double().clamp(min=1)
        means = total.tensors[_HELD].double() / number
        unknown = total.tensors[_HELD_PRIOR].double() / number
        states = [own for _, own in self._states(state)]
        chosen = states[least_of_the_best(means, self._tie)]
        return {**chosen, LOG_LIKELIHOOD: means.float(), LOG_LIKELIHOOD_PRIOR: unknown.float()}

    def shares_of(self, state: State, shard: RankingShard, index: Tensor, seed: int) -> Tensor:
        """Return every annotator's share in each type as EM for that many tells it, float64 of shape (K, P)."""
        return self._candidates[count(state)].shares_of(state, shard, index, seed)

    def evaluate(self, state: State, shard: RankingShard, streams: Streams) -> Contribution:
        """Return what EM tells of the chosen types; of the fewest, before any are chosen."""
        chosen = state if LOG_LIKELIHOOD in state else next(self._states(state))[1]
        return super().evaluate(chosen, shard, streams)

    def report(self, state: State) -> Mapping[str, float]:
        """Return how many types were chosen, by what, and how they share the annotators."""
        if LOG_LIKELIHOOD not in state:
            return {}
        types = count(state)
        told = {"train/chosen_types": float(types), **self._candidates[types].report(state)}
        for name in (LOG_LIKELIHOOD, LOG_LIKELIHOOD_PRIOR):
            stem = name.removeprefix("choice/")
            told |= {f"train/{stem}_{k}": v for k, v in zip(self._candidates, state[name].tolist(), strict=True)}
        return told

    def _states(self, state: State) -> Iterator[tuple[CandidatePhase, State]]:
        """Yield each K's phase and state."""
        for types, candidate in self._candidates.items():
            prefix = f"{_CANDIDATES}{types}."
            yield candidate, {k.removeprefix(prefix): t for k, t in state.items() if k.startswith(prefix)}

    def _likely(
        self, candidate: CandidatePhase, state: State, shard: RankingShard, told: Tensor, held: Tensor, seed: int
    ) -> tuple[float, float]:
        """Return the summed log-likelihood of held-out judgments for annotators as told, and for unknown ones."""
        if not len(held):
            return 0.0, 0.0
        found, owner = self.log_likelihoods(state, shard, held), shard.owner[held]
        shares = candidate.shares_of(state, shard, told, seed)
        known = mixture_log_likelihood(found, shares.log()[:, owner])
        unknown = mixture_log_likelihood(per_annotator(found, owner, len(shard.people)), state[PRIOR].log())
        return float(known.sum()), float(unknown.sum())


def _final(candidate: CandidatePhase, streams: Streams, artefacts: Artefacts) -> State:
    """Return a candidate's final state; its first where nothing has run, to be asked what would be added up."""
    return artefacts[candidate.name] if candidate.name in artefacts else candidate.initial(streams, artefacts)


def least_of_the_best(means: Tensor, tie: float) -> int:
    """Return the first place whose mean is the largest, or lower by no more than ``tie``."""
    return int((means >= means.max() - tie).nonzero()[0])


@dataclass(frozen=True)
class ChosenEMDPO(EMDPO):
    """Settings of EM-DPO that chooses the number of types. It costs as many trainings as there are choices.

    Parameters
    ----------
    choices : tuple of int
        Numbers of types to try, ascending; the last is ``types``.
    tie : float
        Nats a judgment that a K may be worse than the best and be taken all the same where it is less.
    """

    choices: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)]
    tie: Annotated[float, Field(ge=0)]

    def __post_init__(self) -> None:
        """Refuse choices that cannot be compared, and a mixture, which nothing would make."""
        if list(self.choices) != sorted(set(self.choices)):
            raise UserError(f"method.choices={list(self.choices)}: numbers of types must ascend; sort them")
        if self.choices[-1] != self.types:
            raise UserError(
                f"method.choices={list(self.choices)} goes up to {self.choices[-1]}, method.types={self.types}; set "
                f"method.types={self.choices[-1]}"
            )
        if self.folds.validation == 0:
            raise UserError(
                "method.folds.validation=0: the number of types is chosen by judgments that nothing was trained on; "
                "set it above 0, or take method=emdpo and its method.types"
            )
        if not isinstance(self.fair, NoMixture):
            raise UserError(
                f"method={self.name} chooses the number of types and mixes none; set method/fair=none, and take "
                "method=emdpo with the chosen method.types for a mixture"
            )
        super().__post_init__()

    def type_phases(self, setting: Setting, model: TypeModel) -> Sequence[Phase[Any]]:
        """Return start and EM for each number, and the choice."""
        # One for all: signatures do not depend on the number of types.
        signatures = Signatures(self.start, model, self.folds) if isinstance(self.start, ClusteredStart) else None
        before: list[Phase[Any]] = []
        candidates = []
        for types in self.choices:
            method = replace(self, types=types, choices=(types,))
            own = signatures if types > 1 else None
            if own is not None:
                start = StartPhase(own, types)
                start.name = f"{StartPhase.name}_{types}"
                before.append(start)
            candidates.append(CandidatePhase(method, setting, model, own))
            before.append(candidates[-1])
        return [*before, ChoicePhase(self, candidates)]
