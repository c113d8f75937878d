"""What a method is: phases that run one after another, each a federated loop over named sums."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from torch import Tensor

from fedalign.contribution import DELTA, Contribution, StackedContribution, State, mean_delta
from fedalign.data.federated import Kind, Role
from fedalign.data.schema import Encoder, Question
from fedalign.metrics.record import MetricSum
from fedalign.models.base import ModelSpec
from fedalign.privacy.local import LocalPrivacy, Unit
from fedalign.rng import Streams
from fedalign.template import Template

ShardT = TypeVar("ShardT")

Memory = MutableMapping[str, Tensor]
"""What a client keeps between rounds and never sends: optimiser moments, a personal head.

Inside one process it is kept by reference: store tensors of one's own, never a workspace that the next client uses too.
"""

Artefacts = Mapping[str, State]
"""Final states of the phases so far, by phase name."""


class Needs(StrEnum):
    """What the server must see of a round's replies."""

    SUM = "sum"
    INDIVIDUAL = "individual"


class Participation(StrEnum):
    """Which training clients a phase asks in a round."""

    SAMPLED = "sampled"
    ALL = "all"


class ServerOptimizer(Protocol):
    """Turns a mean client delta into a step of the global state; keeps its own moments."""

    def step(self, state: State, delta: State) -> State:
        """Return the state after one step along ``delta``; names that delta lacks stay as they are."""


class Phase(ABC, Generic[ShardT]):
    """One federated loop: broadcast a state, add up what clients compute on it, update it.

    A phase knows nothing of Flower, of the engine, or of how many clients share a worker.

    Attributes
    ----------
    name : str
        Unique within the method.
    rounds : int
        Rounds to run; 0 only evaluates the initial state.
    needs : Needs
        ``SUM`` unless the server truly has to see each reply.
    participation : Participation
        ``ALL`` for phases that are a single sum over the whole population.
    diagnostic : bool
        Whether the phase only looks at what an earlier one learnt.
    local_units : frozenset of {"example", "user"}
        What clients can protect with noise of their own in all that the phase has them send, metrics aside.
    local_steps : int
        Noisy gradient steps that a client takes in a round, if it does.
    stage : str or None
        Which part of the clients' data the phase reads: only clients that hold it are asked, training and evaluating
        alike, and those that are unseen. None reads all of every client.
    evaluated : frozenset of Role
        Whose data the phase is evaluated on, where the federation evaluates them at all.
    bounded_metrics : frozenset of str or None
        Metrics of its evaluation that lie between 0 and 1 for every group of every client, so that noisy sums can tell
        them under a guarantee; of a phase that names none, noisy sums tell nothing. None says that all may be such.
    """

    name: str
    rounds: int
    needs: Needs = Needs.SUM
    participation: Participation = Participation.SAMPLED
    diagnostic: bool = False
    local_units: frozenset[Unit] = frozenset()
    local_steps: int = 0
    stage: str | None = None
    evaluated: frozenset[Role] = frozenset(Role)
    bounded_metrics: frozenset[str] | None = None
    client_weight: float | None = None

    def check(self, shard: ShardT) -> None:
        """Refuse a shard that the phase cannot work on, before the run starts; by default any will do.

        Raises
        ------
        UserError
            Naming the setting, the client's size and the fix.
        """

    def users(self, shard: ShardT) -> Sequence[str]:
        """Return the people, or groups, of a shard that a guarantee for users protects one by one."""
        return ()

    def examples(self, shard: ShardT) -> Sequence[str]:
        """Return ids of the examples of a shard that the phase reads, which a guarantee for examples protects.

        They are counted, too, to hold delta against; where the partition is said to be disjoint, an id in two stages
        refutes it.
        """
        return ()

    @abstractmethod
    def initial(self, streams: Streams, artefacts: Artefacts) -> State:
        """Return the state before the first round; on the server."""

    def template(self, state: State) -> Template | None:
        """Return what a contribution to a round may hold; by default a delta for every floating tensor of the state.

        The state is what `broadcast` leaves of it, so that server and clients find the same. None where names depend on
        what clients hold, as those of single replies do; such a phase runs neither with noise nor as a secure sum.
        """
        if self.needs is Needs.INDIVIDUAL:
            return None
        return Template.of_deltas({name: t for name, t in state.items() if t.is_floating_point()})

    def check_reply(self, state: State, contribution: Contribution) -> None:
        """Refuse a reply that `update` could not work with, where there is no template to hold it against.

        By default deltas have to be those of floating tensors of the state.

        Raises
        ------
        ValueError
            Naming the tensor.
        """
        for name, tensor in contribution.tensors.items():
            if name.startswith(DELTA):
                check_shape(name, tensor, state.get(name.removeprefix(DELTA)))

    def broadcast(self, state: State) -> State:
        """Return what of the state travels to clients, for training and for evaluation; by default all of it.

        What `local` and `evaluate` are given is this, and `update` sees the whole state. A function of the state alone,
        since it is asked for more than once a round.
        """
        return state

    @abstractmethod
    def local(self, state: State, shard: ShardT, streams: Streams, memory: Memory) -> Contribution:
        """Return one client's contribution; on the client.

        Inside one process nothing is copied: ``state`` must not be changed in place, and the contribution's tensors
        must not be parameters of a network that the next client trains too.
        """

    def stacked_size(self) -> int:
        """Return how many trained numbers each client of a stack has; by default 0: clients train one by one only.

        A phase that returns more than 0 has :meth:`local_many`.
        """
        return 0

    def local_many(
        self, state: State, shards: Sequence[ShardT], streams: Sequence[Streams], memories: Sequence[Memory]
    ) -> StackedContribution:
        """Return several clients' contributions, trained side by side; those of :meth:`local`, to rounding.

        A client that fails is named among the failures, and its memory is of no use afterwards. An error is nobody's in
        particular: clients are then trained one by one, with the memories that they had before.
        """
        raise TypeError(f"phase {self.name} trains clients one by one only")

    def update(self, state: State, total: Contribution, optimizer: ServerOptimizer) -> State:
        """Return the state after a round; on the server. By default one server step along the mean delta."""
        return optimizer.step(state, mean_delta(total))

    def update_each(self, state: State, replies: Sequence[Contribution], optimizer: ServerOptimizer) -> State:
        """Return the state after a round of a phase that needs each reply (``needs = Needs.INDIVIDUAL``)."""
        raise TypeError(f"phase {self.name} does not say how to use individual replies")

    @abstractmethod
    def evaluate(self, state: State, shard: ShardT, streams: Streams) -> Contribution:
        """Return metric sums (see :mod:`fedalign.metrics.record`); on the client, training or unseen."""

    def report(self, state: State) -> Mapping[str, float]:
        """Return what the server itself can tell of a state, by the name of its metric; by default nothing.

        Recorded with every evaluation. A function of the state alone: it costs no privacy and asks nobody.
        """
        return {}

    def export(self, state: State, directory: Path) -> None:
        """Write what was trained as other libraries read it; by default nothing. On the server, when the run is over.

        Parameters
        ----------
        state : State
            The phase's last.
        directory : Path
            ``model/`` of the run, which all phases write to in their order: a later one replaces an earlier one's.
        """

    def summarise(self, sums: Sequence[MetricSum], tensors: Mapping[str, Tensor]) -> dict[str, float]:
        """Return values over all groups; by default the mean of the group means.

        Parameters
        ----------
        sums : sequence of MetricSum
            By group.
        tensors : mapping from name to Tensor
            What the clients' evaluations added up besides; empty after training.
        """
        means: dict[str, list[float]] = {}
        for item in sums:
            means.setdefault(item.name, []).append(item.total / item.n)
        return {name: sum(values) / len(values) for name, values in means.items()}


def check_shape(name: str, tensor: Tensor, like: Tensor | None) -> None:
    """Refuse a tensor that is not of the shape of another one.

    Raises
    ------
    ValueError
        Naming it.
    """
    if like is None or not like.is_floating_point() or tensor.shape != like.shape:
        raise ValueError(f"{name[:80]}: shape {tuple(tensor.shape)[:4]} does not fit this phase")


@dataclass(frozen=True)
class Setting:
    """What a method is told about the run: public facts only.

    Parameters
    ----------
    rounds : int
        ``federation.rounds``, the length of the method's main phase.
    features : int
        Length of an encoder vector.
    model : ModelSpec
    encoder : Encoder
        What turned the judgments into vectors, for phases that must read texts of their own making.
    questionnaire : mapping from question id to int
        How many answers each question of a survey offers; empty where that is not known in advance.
    local_privacy : LocalPrivacy or None
        The noise that clients add to their gradients; None is none.
    private : bool
        Whether the run is differentially private: with a mechanism, or with local noise. A secure sum alone is not.
    questions : mapping from question id to Question
        The texts of what a survey asks; empty where they are not known in advance.
    """

    rounds: int
    features: int
    model: ModelSpec
    encoder: Encoder
    questionnaire: Mapping[str, int] = field(default_factory=dict)
    local_privacy: LocalPrivacy | None = None
    private: bool = False
    questions: Mapping[str, Question] = field(default_factory=dict)


class Method(ABC):
    """A published system or baseline: its settings, and the phases that they stand for.

    Attributes
    ----------
    kind : Kind
        What judgments it learns from.
    model : type of ModelSpec
        What network it trains; by default any will do, because none is trained.
    name : str
        Name in reports and checkpoints.
    """

    kind: ClassVar[Kind]
    model: ClassVar[type[ModelSpec]] = ModelSpec
    name: str

    @property
    @abstractmethod
    def headline(self) -> str:
        """Name of the metric that the progress bar shows."""

    @property
    @abstractmethod
    def selection(self) -> str:
        """Name of the metric that the ``best`` checkpoint maximises; never one of test data or unseen groups."""

    @abstractmethod
    def phases(self, setting: Setting) -> Sequence[Phase[Any]]:
        """Return the phases in order."""
