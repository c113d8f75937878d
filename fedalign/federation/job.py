"""A run as the server sees it: its settings, what it is made of, and what it leaves."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from fedalign.contribution import State
from fedalign.federation.aggregation import Aggregation
from fedalign.federation.attendance import ReplyBytes, no_bytes
from fedalign.federation.custody import Custody, NoCustody
from fedalign.federation.observer import Observer
from fedalign.federation.population import Everybody, Population
from fedalign.federation.sampling import Sampler
from fedalign.federation.server_optimizer import ServerOptimizerSpec
from fedalign.methods.base import Phase

CLOCK = "simulated_s"
"""Name of the counter that holds the simulated time."""


@dataclass(frozen=True)
class Federation:
    """Settings of the federated loop; the ``federation`` config group.

    Parameters
    ----------
    rounds : int
        Rounds of the method's main phase.
    sampler : Sampler
    server_optimizer : ServerOptimizerSpec
    aggregation : Aggregation
    evaluate_every, checkpoint_every : int
        In rounds; the last round of a phase is always evaluated and saved.
    round_timeout, node_timeout : float
        Seconds to wait for the replies of a round, and for nodes before the first round or when all have gone.
    min_clients : int
        A round to which fewer contribute is not applied.
    lost_rounds : int
        So many rounds in a row that are not applied end the run.
    max_reply_mb : float
        Largest reply that is accepted, in millions of bytes.
    """

    rounds: Annotated[int, Field(ge=0)]
    sampler: Sampler
    server_optimizer: ServerOptimizerSpec
    aggregation: Aggregation
    evaluate_every: Annotated[int, Field(ge=1)]
    checkpoint_every: Annotated[int, Field(ge=1)]
    round_timeout: Annotated[float, Field(gt=0)]
    node_timeout: Annotated[float, Field(gt=0)]
    min_clients: Annotated[int, Field(ge=1)]
    lost_rounds: Annotated[int, Field(ge=1)]
    max_reply_mb: Annotated[float, Field(gt=0)]


@dataclass(frozen=True)
class Job:
    """One run as the server sees it.

    Parameters
    ----------
    method : str
    selection : str
        Metric that the ``best`` checkpoint maximises; it must not come from test data.
    phases : sequence of Phase
    federation : Federation
    seed : int
    config : str
        The resolved run configuration as JSON, sent to the nodes.
    nodes : int
        Nodes to wait for.
    checkpoints : Path
    observers : sequence of Observer
    resume : bool
        Go on from the newest checkpoint.
    custody : Custody
        Guards what is released.
    population : Population
        Who is there, and how fast.
    reply_bytes : callable
        Size of a client's reply, for a population that sends it over a simulated line.
    began : float
        When the engine was started, by ``time.perf_counter``.
    """

    method: str
    selection: str
    phases: Sequence[Phase[Any]]
    federation: Federation
    seed: int
    config: str
    nodes: int
    checkpoints: Path
    observers: Sequence[Observer]
    resume: bool
    custody: Custody = field(default_factory=NoCustody)
    population: Population = field(default_factory=Everybody)
    reply_bytes: ReplyBytes = no_bytes
    began: float = field(default_factory=time.perf_counter)

    @property
    def main_phase(self) -> int:
        """Index of the last phase that learns something."""
        return max((i for i, phase in enumerate(self.phases) if not phase.diagnostic), default=0)


@dataclass
class Outcome:
    """What a finished run leaves in the server's hands.

    Parameters
    ----------
    artefacts : dict from phase name to State
    counters : dict from str to float
        ``rounds``, ``client_updates``, ``update_s``, ``train_s``, ``down_bytes``, ``up_bytes``, and after a resume
        ``earlier_s``: the time that the run had taken before; ``simulated_s`` where a population is simulated;
        where the time went (:mod:`fedalign.report.profile`).
    privacy : dict or None
        The guarantee that was kept, as ``summary.json`` states it.
    """

    artefacts: dict[str, State] = field(default_factory=dict)
    counters: dict[str, float] = field(default_factory=dict)
    privacy: dict[str, Any] | None = None
