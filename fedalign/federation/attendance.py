"""The simulated side of a run's rounds: who is drawn and comes, and the clock that goes on with every round."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedalign.contribution import State
from fedalign.federation.devices import HOUR_S, Device, Load
from fedalign.federation.population import Absence, Everybody, Population, Simulated, Turnout
from fedalign.federation.records import payload_bytes
from fedalign.federation.sampling import Sampler, choose
from fedalign.methods.base import Phase
from fedalign.privacy.scheme import Scheme
from fedalign.rng import Streams

ReplyBytes = Callable[[Phase[Any], State], int]
"""Size of one client's reply to a round of a phase, given what of the state travels."""


def no_bytes(phase: Phase[Any], travels: State) -> int:
    """Return 0: where nothing is simulated nobody asks."""
    return 0


@dataclass
class Attendance:
    """Keeps the clock of a run and says who comes to its rounds.

    Parameters
    ----------
    population : Population
    fleet : mapping from client to Device
        Of the training clients; empty where nothing is simulated.
    reply_bytes : callable
    clock_s : float
        Simulated seconds since the run began.
    """

    population: Population = field(default_factory=Everybody)
    fleet: Mapping[str, Device] = field(default_factory=dict)
    reply_bytes: ReplyBytes = no_bytes
    clock_s: float = 0.0

    @classmethod
    def of(cls, population: Population, clients: Sequence[str], seed: int, reply_bytes: ReplyBytes) -> Attendance:
        """Return the attendance of a run that begins."""
        return cls(population, population.fleet(clients, seed) or {}, reply_bytes)

    @property
    def simulates(self) -> bool:
        """Whether anybody may be missing."""
        return isinstance(self.population, Simulated)

    def draw(self, sampler: Sampler, clients: Sequence[str], generator: np.random.Generator, number: int) -> list[str]:
        """Return the cohort of a round.

        Coins, groups in turn and everybody are the same whether one draws first and looks who is there afterwards or
        the other way round; a fixed number out of those who are there is not.
        """
        population = self.population
        if not isinstance(population, Simulated) or population.cohorts == "registered":
            return sampler.sample(clients, generator, number)
        now_s = population.start_hour * HOUR_S + self.clock_s
        online = [client for client in clients if self.fleet[client].is_online(now_s)]
        sampling = sampler.describe(len(clients))
        if sampling.scheme is Scheme.FIXED_SIZE:
            return choose(online, min(round(sampling.expected), len(online)), generator)
        there = set(online)
        return [client for client in sampler.sample(clients, generator, number) if client in there]

    def hold(self, phase: Phase[Any], travels: State, cohort: Sequence[str], streams: Streams) -> Turnout:
        """Return how a round goes, and let the clock go on past it."""
        if not isinstance(self.population, Simulated):
            return Turnout(tuple(cohort))
        load = Load(payload_bytes(travels), self.reply_bytes(phase, travels))
        turnout = self.population.turnout(cohort, self.fleet, load, self.clock_s, streams)
        self.clock_s += turnout.seconds + self.population.pause_seconds
        return turnout

    def facts(self, turnout: Turnout) -> dict[str, float]:
        """Return what a round's metrics tell of the simulation, by name; nothing where there is none."""
        if not self.simulates:
            return {}
        absent = {f"clients_{each}": float(turnout.count(each)) for each in Absence}
        return {"simulated_seconds": turnout.seconds, "simulated_clock": self.clock_s, **absent}
