"""Local fine-tuning before a prediction: what a person's own judgments make of the broadcast state."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from fedalign.methods.local_training import LocalTraining


@dataclass(frozen=True)
class Adaptation:
    """Settings of fine-tuning at evaluation; the ``adapt`` block of a method.

    Parameters
    ----------
    steps : int
        Gradient steps from the broadcast state, anew for every person and evaluation.
    optimizer : {"adam", "sgd"}
    lr : float
        Learning rate at the start.
    schedule : {"constant", "cosine"}
        ``cosine`` falls once over the steps.
    final_lr : float
        Learning rate at the end of ``cosine``, as a fraction of ``lr``.
    proximal_mu : float
        Weight of the pull towards the broadcast state.
    max_grad_norm : float or None
        Gradients are shrunk to this norm; None leaves them.
    """

    steps: Annotated[int, Field(ge=1)]
    optimizer: Literal["adam", "sgd"]
    lr: Annotated[float, Field(gt=0)]
    schedule: Literal["constant", "cosine"]
    final_lr: Annotated[float, Field(ge=0, le=1)]
    proximal_mu: Annotated[float, Field(ge=0)]
    max_grad_norm: Annotated[float, Field(gt=0)] | None

    def training(self) -> LocalTraining:
        """Return the same as settings of local training; nothing is kept from one evaluation to the next."""
        return LocalTraining(
            steps=self.steps, optimizer=self.optimizer, lr=self.lr, schedule=self.schedule, period=self.steps,
            final_lr=self.final_lr, optimizer_state="reset", proximal_mu=self.proximal_mu,
            max_grad_norm=self.max_grad_norm,
        )  # fmt: skip
