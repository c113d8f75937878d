"""What a client's DP-SGD protects when it trains a variational selector: each person, contexts and targets alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedalign.contribution import State
from fedalign.data.pairs import Judgments
from fedalign.errors import UserError
from fedalign.methods.latent_prior import StandardPrior
from fedalign.methods.local_training import check_equal_weight, check_private
from fedalign.privacy.dp_sgd import UnitLosses
from fedalign.privacy.local import KEY, LocalPrivacy
from fedalign.rng import Streams

if TYPE_CHECKING:
    from fedalign.methods.fedvpa import FedVPA
    from fedalign.methods.selector import SelectorPhase


class EachLatent(UnitLosses):
    """A unit is one person of the client, whose episodes of a step are as large as their own judgments allow.

    In plain training a step's contexts are as small as the person with the fewest judgments needs them; here that
    would let one person's data into another's gradient.

    Parameters
    ----------
    phase : SelectorPhase
    state : State
        As it was broadcast.
    people : sequence of Judgments
    streams : Streams
        At the client's place in the round.
    """

    def __init__(self, phase: SelectorPhase, state: State, people: Sequence[Judgments], streams: Streams) -> None:
        self._phase, self._state, self._people, self._streams = phase, state, people, streams

    @property
    def units(self) -> int:
        """People of the client."""
        return len(self._people)

    def losses(self, chosen: Tensor, step: int) -> Tensor:
        """Return each chosen person's loss: reconstruction, weighted divergence, and distance from the prototypes."""
        return torch.stack([self._loss(self._people[unit], step) for unit in chosen.tolist()])

    def _loss(self, person: Judgments, step: int) -> Tensor:
        generator = self._streams.torch(f"dp_sgd/{step}/{person.person}")
        position = self._streams.round - 1 + step / self._phase.local_steps
        return self._phase.person_loss(self._state, person, position, generator)


def check_selector(method: FedVPA, privacy: LocalPrivacy | None) -> None:
    """Refuse settings of a selector under which one person would reach what is sent past the noise.

    Prototypes do not tie people to each other: a person's distance is from prototypes that the server has sent, and
    labels by clusters need a bank, which is refused.

    Raises
    ------
    UserError
        Naming the setting and the fix.
    """
    if privacy is None:
        return
    check_private(method.local)
    if not isinstance(method.prior, StandardPrior):
        raise UserError(
            f"{KEY}: method.prior={type(method.prior).__name__} is told of people's posteriors, which DP-SGD does not "
            "hide; use method=fedvpl (StandardPrior)"
        )
    if method.collect_latents:
        raise UserError(
            f"{KEY}: method.collect_latents=true shows every person's latent to the server; set it to false"
        )
    check_equal_weight(method.weight)
    if privacy.settings.unit != "user":
        raise UserError(
            f"{KEY}.unit={privacy.settings.unit}: a judgment is context of a person's other judgments and cannot be "
            f"protected alone; set {KEY}.unit=user"
        )
    if privacy.settings.grad_sample != "loop":
        raise UserError(
            f"{KEY}.grad_sample={privacy.settings.grad_sample}: people's episodes have sizes of their own and are read "
            f"person by person; set {KEY}.grad_sample=loop"
        )
