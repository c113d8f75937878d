"""How experts serve a stated preference together: the contract of the ``merging`` part of PCM."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fedalign.contribution import Contribution, State
from fedalign.data.corpus import RL, CorpusShard, Example
from fedalign.data.federated import Role
from fedalign.methods.base import Artefacts, Memory, Phase, Setting
from fedalign.methods.reference_texts import ReferenceTexts
from fedalign.methods.stated_evaluation import StatedScorer, over_preferences
from fedalign.methods.stated_preference import Preferences, SideRewards
from fedalign.methods.stated_writer import MergedWriter, StatedWriter
from fedalign.metrics.record import MetricSum, encode
from fedalign.models.control import Control
from fedalign.models.control_constant import ConstantSpec
from fedalign.models.experts import Experts, TopTokens
from fedalign.models.merged_generation import Merger
from fedalign.models.mixing import Linear
from fedalign.rng import Streams
from fedalign.template import Template

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from torch import Tensor

    from fedalign.methods.pcm import PCM


class Merging(ABC):
    """One subclass a way to merge, a frozen dataclass of its settings."""

    @abstractmethod
    def phases(self, method: PCM, setting: Setting) -> Sequence[Phase[Any]]:
        """Return the phases that merge experts; the last one writes."""

    def check(self, method: PCM) -> None:
        """Refuse what does not go together, when the method is built; by default all does.

        Raises
        ------
        UserError
            Naming the setting and the fix.
        """
        return


class StatedPhase(Phase[CorpusShard]):
    """A phase whose outcome writes under stated preferences, and is scored by what it writes.

    A subclass says what writes (:meth:`writer`) and what a round learns. Experts are frozen: what of them travels is in
    the state, and no delta of it comes back.

    Parameters
    ----------
    method : PCM
    setting : Setting
    """

    stage = RL
    evaluated = frozenset({Role.UNSEEN})

    def __init__(self, method: PCM, setting: Setting) -> None:
        self.method, self.setting = method, setting
        self.preferences = Preferences(method.dimensions)
        source = method.experts
        self.source = source
        self.workspace: Experts = source.open(self.preferences.names, setting)
        top = method.top_tokens
        self.experts = self.workspace if top is None else TopTokens(self.workspace, top, method.floor)
        self.codec = source.codec(setting)
        method.lengths.check(self.experts.max_tokens)
        self.fallback = source.fallback(self.preferences.names)
        measured = all(dimension.measure is not None for dimension in method.dimensions.values())
        self.rewards = SideRewards(self.preferences) if measured else None
        # Fixed weights need a control model's place, not its say.
        silent = silent_control(len(self.preferences.names), self.experts.device)
        even = Merger(self.experts, silent, Linear())
        self.references = ReferenceTexts(
            MergedWriter(even, self.preferences, self.fallback, self.codec, method.lengths)
        )
        self.scorer = StatedScorer(method.evaluation, self.preferences, self.rewards, self.references)
        self.bounded_metrics = self.scorer.bounded_metrics

    @abstractmethod
    def writer(self, state: State) -> StatedWriter:
        """Return what writes in a state; its workspaces are the phase's, until the next state is loaded."""

    def check(self, shard: CorpusShard) -> None:
        """Refuse statements that name no side that there is, and rewards that cannot be had."""
        for example in (*shard.stages.get(RL, ()), *shard.test):
            self.preferences.vector(example.group, f"client {shard.client!r}, preference")
        if self.rewards is not None:
            self.rewards.prepare()

    def users(self, shard: CorpusShard) -> Sequence[str]:
        """Return whose prompts and preferences the phase reads."""
        return sorted({example.user for example in self.own(shard)})

    def examples(self, shard: CorpusShard) -> Sequence[str]:
        """Return what the examples are that the phase reads."""
        return ["\x1f".join((e.user, e.group, e.prompt, e.response, e.rejected or "")) for e in self.own(shard)]

    def own(self, shard: CorpusShard) -> Sequence[Example]:
        """Return the examples of the stage that leave something to decide: two sides are wanted, or more."""
        return [e for e in shard.stages.get(RL, ()) if int((self.vector(e) > 0).sum()) > 1]

    def vector(self, example: Example) -> Tensor:
        """Return what an example's user wants, float32 of shape (n,)."""
        return self.preferences.vector(example.group, "preference")

    def experts_state(self, streams: Streams, artefacts: Artefacts) -> State:
        """Return what of the experts travels."""
        return self.source.state(self.preferences.names, streams, artefacts, self.setting)

    def load_experts(self, state: State) -> bool:
        """Put the experts of a state into the workspace, and say whether they are others; then texts are forgotten."""
        changed = self.source.load(self.workspace, state)
        if changed:
            self.references.forget()
            self.scorer.forget()
        return changed

    def evaluate(self, state: State, shard: CorpusShard, streams: Streams) -> Contribution:
        """Return how well what is written to test prompts serves the preferences stated there."""
        examples = self.scorer.chosen(shard)
        if not examples:
            return Contribution()
        writer = self.writer(state)
        return Contribution(scalars=encode(self.scorer.evaluate(writer, examples, shard.client, streams.seed)))

    def summarise(self, sums: Sequence[MetricSum], tensors: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the mean over preferences of each metric, and the worst preference's reward."""
        return over_preferences(super().summarise(sums, tensors), sums)


class FixedPhase(StatedPhase):
    """A phase in which nothing is learnt: what writes is a function of the experts, or was learnt before."""

    rounds = 0

    def initial(self, streams: Streams, artefacts: Artefacts) -> State:
        """Return what of the experts travels."""
        return self.experts_state(streams, artefacts)

    def template(self, state: State) -> Template:
        """Return no name: nothing is added up."""
        return Template()

    def local(self, state: State, shard: CorpusShard, streams: Streams, memory: Memory) -> Contribution:
        """Refuse: there are no rounds."""
        raise TypeError(f"phase {self.name} has no rounds")


def silent_control(experts: int, device: torch.device) -> Control:
    """Return a control model that is never asked; nothing of it reaches PyTorch's default generator."""
    with Streams(0).torch_default("silent"):
        return ConstantSpec(1).build(experts, 0, 0, device)
