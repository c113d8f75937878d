"""FedVPA-GP and its base FedVPL: a federated variational preference model with a shared prior over people's latents.

Koo et al. 2026 (arXiv 2605.30873) on top of VPL (Poddar et al. 2024, arXiv 2408.10075). Unlike the released code,
a judgment is never predicted from a latent that was inferred from that same judgment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from fedalign.data.pairs import PairShard
from fedalign.errors import UserError
from fedalign.methods.base import Phase, Setting
from fedalign.methods.conditional_policy import PolicyPhase
from fedalign.methods.divergence import Divergence
from fedalign.methods.episodes import EpisodePlan
from fedalign.methods.latent_prior import LatentPrior
from fedalign.methods.latents import LatentsPhase
from fedalign.methods.local_training import LocalTraining
from fedalign.methods.pairs import PairEvaluation, PairMethod
from fedalign.methods.policy_training import PolicyTraining
from fedalign.methods.prototypes import Prototypes
from fedalign.methods.selector import SelectorPhase
from fedalign.models.variational import VariationalSpec


@dataclass(frozen=True)
class FedVPA(PairMethod):
    """Settings of the variational methods.

    Parameters
    ----------
    name : str
    prior : LatentPrior
    divergence : Divergence
    prototypes : Prototypes or None
        None leaves the orthogonal prototype loss out.
    episodes : EpisodePlan
    weight : {"uniform", "judgments"}
        A client's weight in the mean.
    collect_latents : bool
        Whether a last phase collects every person's posterior mean, for plots, cluster measures and the switch
        between groups' latents. It shows single people's latents to the server.
    local : LocalTraining
    evaluation : PairEvaluation
    policy : PolicyTraining or None
        A language model that learns to follow latents once these are collected; None ends with the selector.
    """

    model: ClassVar[type[VariationalSpec]] = VariationalSpec

    name: str
    prior: LatentPrior
    divergence: Divergence
    prototypes: Prototypes | None
    episodes: EpisodePlan
    weight: Literal["uniform", "judgments"]
    collect_latents: bool
    local: LocalTraining
    evaluation: PairEvaluation
    policy: PolicyTraining | None

    def client_weight(self, shard: PairShard) -> float:
        """Return a client's weight in the mean."""
        return 1.0 if self.weight == "uniform" else float(sum(len(j.train) for j in shard.people))

    def phases(self, setting: Setting) -> Sequence[Phase[PairShard]]:
        """Return the selector's phase and, where asked for, the collection of latents and the policy's phase.

        Raises
        ------
        UserError
            If a policy is to follow latents that are not collected.
        """
        if self.policy is not None and not self.collect_latents:
            raise UserError("method.policy follows the groups' latents; set method.collect_latents=true")
        selector = SelectorPhase(self, setting)
        policy = [] if self.policy is None else [PolicyPhase(self.policy, selector, setting)]
        return [selector, *([LatentsPhase(selector)] if self.collect_latents else []), *policy]
