"""FedBiscuit's clusters: every person trains the head of its cluster; the server keeps clusters equally large."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import one_hot

from fedalign.contribution import Contribution, State
from fedalign.data.pairs import Judgments
from fedalign.methods.assignment import Assignment, Decision, Heads, best_head
from fedalign.methods.base import Memory, Needs
from fedalign.methods.clustering import balanced_assignment
from fedalign.methods.latent_prior import person_id
from fedalign.methods.membership import Membership, WeightedHeads

LOSSES = "head_losses/"
CLUSTER = "cluster/"


@dataclass(frozen=True)
class BalancedClusters(Assignment):
    """Balanced disjoint clusters by loss (FedBiscuit, Wu et al. 2025, arXiv 2407.03038).

    In the warm-up everybody trains the first head, then everybody the second, and so on. In the round after it, and
    every ``regroup`` rounds from then on, the people of the round report their loss under each head, and the server
    spreads these people evenly over the heads at the least total loss. Whoever has no cluster yet trains its best
    head. The server sees single people's losses: ``needs`` is ``INDIVIDUAL``.

    Parameters
    ----------
    warmup : int
        Rounds of the warm-up for each head.
    regroup : int
        Rounds between assignments.
    decide : {"own", "vote"}
        ``own``: the head with the least loss on a person's context. ``vote``: the majority of heads, as the paper
        labels pairs in its second stage; even odds when they are divided equally.
    """

    needs: ClassVar[Needs] = Needs.INDIVIDUAL

    warmup: Annotated[int, Field(ge=0)]
    regroup: Annotated[int, Field(ge=1)]
    decide: Literal["own", "vote"]

    def membership(
        self, heads: Heads, state: State, judgments: Judgments, round_number: int, memory: Memory
    ) -> Membership:
        """Return full weight for the person's head of the round."""
        own = one_hot(torch.tensor(self._head(heads, state, judgments, round_number)), heads.count).float()
        return WeightedHeads(own[:, None].expand(-1, len(judgments.prompts)), own)

    def decision(self, heads: Heads, judgments: Judgments, context: Tensor) -> Decision:
        """Return the head that explains the context best, or the vote."""
        if self.decide == "vote":
            return lambda logits: logits.sign().mean(0)
        head = best_head(heads.losses(judgments, context))
        return lambda logits: logits[head]

    def report(self, heads: Heads, people: Sequence[Judgments], round_number: int) -> dict[str, Tensor]:
        """Return each person's mean loss under each head, in rounds that end with an assignment."""
        since = round_number - 1 - self.warmup * heads.count
        if since < 0 or since % self.regroup:
            return {}
        return {
            f"{LOSSES}{person_id(judgments.person)}": heads.losses(judgments, judgments.train).mean(1)
            for judgments in people
        }

    def assigned(self, replies: Sequence[Contribution]) -> State:
        """Return the clusters of the people who reported."""
        found = {
            int(name.removeprefix(LOSSES)): losses
            for reply in replies
            for name, losses in reply.tensors.items()
            if name.startswith(LOSSES)
        }
        if not found:
            return {}
        people = sorted(found)
        clusters = balanced_assignment(torch.stack([found[person] for person in people]))
        return {f"{CLUSTER}{person}": cluster for person, cluster in zip(people, clusters, strict=True)}

    def _head(self, heads: Heads, state: State, judgments: Judgments, round_number: int) -> int:
        if round_number <= self.warmup * heads.count:
            return max(0, round_number - 1) // max(1, self.warmup)
        known = state.get(f"{CLUSTER}{person_id(judgments.person)}")
        return best_head(heads.losses(judgments, judgments.train)) if known is None else int(known)
