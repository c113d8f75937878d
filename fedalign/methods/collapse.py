"""The alarm of EM: types that all annotators have left, and what is done about it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedalign.contribution import State
from fedalign.errors import RunFailed
from fedalign.methods.type_model import PRIOR, named, type_of
from fedalign.methods.type_start import shaken
from fedalign.objectives.em import effective_types
from fedalign.rng import Streams

_log = logging.getLogger(__name__)

LOW, ALARMS, RESTARTS = "collapse/low", "collapse/alarms", "collapse/restarts"
"""Names of counters in a state: rounds that collapse has lasted, alarms so far, restarts so far."""


@dataclass(frozen=True)
class Collapse:
    """When types count as collapsed; the ``collapse`` block of the method.

    Parameters
    ----------
    largest : float
        Largest share of annotators that one type may have.
    effective : float
        Least effective number of types, exp(entropy of the prior), as a share of their number.
    patience : int
        Rounds in a row after which there is an alarm.
    action : {"warn", "restart", "fail"}
        ``warn`` counts and logs it; ``restart`` also replaces the emptiest type by the fullest one, shaken, and gives
        each half of the fullest one's share; ``fail`` ends the run.
    restarts : int
        Restarts at most.
    scale : float
        How much the new type is shaken: standard deviation as a multiple of its parameters' root mean square.
    """

    largest: Annotated[float, Field(gt=0, le=1)]
    effective: Annotated[float, Field(ge=0, le=1)]
    patience: Annotated[int, Field(ge=1)]
    action: Literal["warn", "restart", "fail"]
    restarts: Annotated[int, Field(ge=0)]
    scale: Annotated[float, Field(gt=0)]

    def collapsed(self, prior: Tensor) -> bool:
        """Tell whether a prior, shape (K,), is that of collapsed types; one type alone never is."""
        if len(prior) == 1:
            return False
        return float(prior.max()) > self.largest or effective_types(prior) < self.effective * len(prior)

    def watch(self, state: State, streams: Streams) -> State:
        """Return a state with its counters brought up to date, and its types mended if that is due.

        Raises
        ------
        RunFailed
            If there is an alarm and ``action`` is ``fail``.
        """
        low = int(state[LOW]) + 1 if self.collapsed(state[PRIOR]) else 0
        state = {**state, LOW: torch.tensor(low)}
        if low < self.patience:
            return state
        shares = ", ".join(f"{share:.2f}" for share in state[PRIOR].tolist())
        what = f"types have collapsed for {low} rounds: their shares are {shares}"
        if self.action == "fail":
            raise RunFailed(f"{what}; lower method.assignment.temper, or take another method/start")
        state = {**state, LOW: torch.tensor(0), ALARMS: state[ALARMS] + 1}
        if self.action == "warn" or int(state[RESTARTS]) >= self.restarts:
            _log.warning("%s", what)
            return state
        _log.warning("%s; the emptiest begins anew beside the fullest", what)
        return self._restarted(state, streams)

    def _restarted(self, state: State, streams: Streams) -> State:
        prior = state[PRIOR].clone()
        full, empty = int(prior.argmax()), int(prior.argmin())
        prior[full] = prior[empty] = (prior[full] + prior[empty]) / 2
        fresh = shaken(type_of(state, full), self.scale, streams, "restart")
        return {**state, **named(fresh, empty), PRIOR: prior, RESTARTS: state[RESTARTS] + 1}


def no_alarms() -> State:
    """Return the counters before the first round."""
    return {LOW: torch.tensor(0), ALARMS: torch.tensor(0), RESTARTS: torch.tensor(0)}
