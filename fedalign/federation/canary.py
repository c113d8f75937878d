"""Canaries: made-up clients that join an audited run by a coin, and the phases and data that they join."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from fedalign.contribution import DELTA, WEIGHT, Contribution, State
from fedalign.data.federated import ClientInfo, FederatedData, Role
from fedalign.federation.site import Site
from fedalign.methods.base import Artefacts, Memory, Phase, ServerOptimizer
from fedalign.metrics.record import MetricSum
from fedalign.privacy.canaries import Canaries
from fedalign.privacy.client_level import ClientLevel
from fedalign.privacy.protection import Protection
from fedalign.rng import Streams
from fedalign.template import Template


@dataclass(frozen=True)
class Canary:
    """The shard of a canary client.

    Parameters
    ----------
    number : int
    sign : float
        Along its direction 1, against it -1, or 0 for one that has nothing to say.
    """

    number: int
    sign: float


class CanaryData(FederatedData):
    """A run's clients with the canaries among those that train."""

    def __init__(self, inner: FederatedData, canaries: Canaries) -> None:
        self._inner, self._canaries = inner, canaries
        self._numbers = {name: number for number, name in enumerate(canaries.names)}
        self.dropped, self.questionnaire = inner.dropped, inner.questionnaire

    @property
    def clients(self) -> Sequence[ClientInfo]:
        """The run's own clients and the canaries."""
        stages = self._canaries.stages_of
        canaries = [ClientInfo(name, Role.TRAIN, stages(number)) for name, number in self._numbers.items()]
        return sorted([*self._inner.clients, *canaries], key=lambda client: client.role is not Role.TRAIN)

    def shard(self, client: str) -> Any:
        """Return a client's own shard, or a canary."""
        number = self._numbers.get(client)
        return self._inner.shard(client) if number is None else Canary(number, float(self._canaries.signs[number]))


class CanaryPhase(Phase[Any]):
    """A phase in which canary clients contribute their directions, and everybody else what they always do.

    Parameters
    ----------
    inner : Phase
    canaries : Canaries
    clip : ClientLevel
        Canaries are directions of the vector that it clips.
    """

    def __init__(self, inner: Phase[Any], canaries: Canaries, clip: ClientLevel) -> None:
        self._inner, self._canaries, self._clip = inner, canaries, clip
        self.name, self.rounds, self.needs, self.diagnostic = inner.name, inner.rounds, inner.needs, inner.diagnostic
        self.participation, self.stage, self.evaluated = inner.participation, inner.stage, inner.evaluated
        self.local_units, self.local_steps = inner.local_units, inner.local_steps
        self.bounded_metrics = inner.bounded_metrics

    def check(self, shard: Any) -> None:
        """Refuse what the phase refuses; it can work on any canary."""
        if not isinstance(shard, Canary):
            self._inner.check(shard)

    def users(self, shard: Any) -> Sequence[str]:
        """Return the phase's users; a canary is nobody's."""
        return () if isinstance(shard, Canary) else self._inner.users(shard)

    def examples(self, shard: Any) -> Sequence[str]:
        """Return the phase's examples; a canary has none."""
        return () if isinstance(shard, Canary) else self._inner.examples(shard)

    def initial(self, streams: Streams, artefacts: Artefacts) -> State:
        """Return the phase's initial state."""
        return self._inner.initial(streams, artefacts)

    def broadcast(self, state: State) -> State:
        """Return what the phase sends of its state."""
        return self._inner.broadcast(state)

    def template(self, state: State) -> Template | None:
        """Return the phase's template."""
        return self._inner.template(state)

    def local(self, state: State, shard: Any, streams: Streams, memory: Memory) -> Contribution:
        """Return what a canary contributes, or what the phase's own local work does."""
        if not isinstance(shard, Canary):
            return self._inner.local(state, shard, streams, memory)
        weight = self._clip.weight_bound
        if not shard.sign:
            return Contribution(scalars={WEIGHT: weight})
        template = self._inner.template(state)
        if template is None:
            raise ValueError(f"phase {self.name} has no template")
        length = shard.sign * self._canaries.norm * self._clip.bound_of(self.name)
        vector = length * self._canaries.direction(shard.number, self.name, template.size)
        tensors = template.unflatten(vector / template.scales(self._clip.scales))
        # Clipping takes the weight out of deltas again.
        weighted = {name: t * weight if name.startswith(DELTA) else t for name, t in tensors.items()}
        return Contribution(weighted, {WEIGHT: weight})

    def update(self, state: State, total: Contribution, optimizer: ServerOptimizer) -> State:
        """Return the phase's own update."""
        return self._inner.update(state, total, optimizer)

    def evaluate(self, state: State, shard: Any, streams: Streams) -> Contribution:
        """Return nothing of a canary, and else the phase's own metrics."""
        return Contribution() if isinstance(shard, Canary) else self._inner.evaluate(state, shard, streams)

    def summarise(self, sums: Sequence[MetricSum], tensors: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the phase's own summary."""
        return self._inner.summarise(sums, tensors)


def with_canaries(site: Site, canaries: Canaries) -> Site:
    """Return a site, one with clipping, that hosts canaries too."""
    assert isinstance(site.privacy, Protection) and site.privacy.clip is not None
    phases = [CanaryPhase(phase, canaries, site.privacy.clip) for phase in site.phases]
    return replace(site, phases=phases, data=CanaryData(site.data, canaries))


class OneClient(FederatedData):
    """One training client alone: what is released of it is its own upload, as its server sees it.

    It is the first by name of those that hold the most stages.
    """

    def __init__(self, inner: FederatedData) -> None:
        self._inner = inner
        self.dropped, self.questionnaire = inner.dropped, inner.questionnaire

    @property
    def clients(self) -> Sequence[ClientInfo]:
        """The one client."""
        training = [client for client in self._inner.clients if client.role is Role.TRAIN]
        return [min(training, key=lambda client: (bool(client.stages), -len(client.stages), client.name))]

    def shard(self, client: str) -> Any:
        """Return its shard."""
        return self._inner.shard(client)
