"""What a phase asks of a privacy budget: whose data it may see, how often, and how its cohorts come about."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from fedalign.federation.sampling import Sampler
from fedalign.methods.base import Participation, Phase
from fedalign.privacy.matrix_noise import most_participations
from fedalign.privacy.protection import Protection
from fedalign.privacy.scheme import Sampling, Scheme
from fedalign.rng import Streams


@dataclass(frozen=True)
class Part:
    """The units whose data a phase reads, where these are not all.

    Parameters
    ----------
    name : str
        The stage.
    units : frozenset of str
        Clients where these are the units; else the stage itself, which stands for units that the server does not know.
    """

    name: str
    units: frozenset[str]


@dataclass(frozen=True)
class Exposure:
    """What a phase asks of the budget.

    Parameters
    ----------
    name : str
    rounds : int
    sampling : Sampling
    size : int
        Numbers in a contribution.
    steps : int
        Gradient steps of a client in a round.
    most : int
        Rounds that any one client takes part in, at most.
    part : Part or None
        Whose data the phase reads; None where it may read anybody's.
    """

    name: str
    rounds: int
    sampling: Sampling
    size: int
    steps: int
    most: int
    part: Part | None = None


def exposure_of(
    phase: Phase[Any],
    size: int,
    sampler: Sampler,
    clients: Sequence[str],
    seed: int,
    privacy: Protection,
    disjoint: bool = False,
) -> Exposure:
    """Return what a phase asks of the budget, whatever is drawn.

    In a secure sum clients see who their neighbours are, so a cohort is no secret that could amplify.

    Parameters
    ----------
    phase : Phase
    size : int
        Numbers in a contribution.
    sampler : Sampler
    clients : sequence of str
        The training clients that the phase learns from.
    seed : int
        Of the run.
    privacy : Protection
    disjoint : bool
        Whether within a client no unit's data are read by two stages.
    """
    number = len(clients)
    everyone = phase.participation is Participation.ALL
    sampling = Sampling(Scheme.EVERYONE, number, float(number)) if everyone else sampler.describe(number)
    if privacy.secure is not None and sampling.scheme in (Scheme.POISSON, Scheme.FIXED_SIZE):
        sampling = replace(sampling, scheme=Scheme.KNOWN)
    if everyone or (privacy.mechanism is not None and privacy.mechanism.amplified(sampling)):
        # Who is in a secret cohort is drawn afresh, so nothing less can be known ahead.
        most = phase.rounds
    elif privacy.local is not None:
        most = most_rounds_at_worst(phase, sampler)
    else:
        most = most_rounds(phase, sampler, clients, seed)
    part = part_of(phase, clients, privacy, disjoint)
    return Exposure(phase.name, phase.rounds, sampling, size, phase.local_steps, most, part)


def part_of(phase: Phase[Any], clients: Sequence[str], privacy: Protection, disjoint: bool) -> Part | None:
    """Return whose data a phase reads; see :func:`exposure_of`."""
    if phase.stage is None:
        return None
    if privacy.local is None:
        return Part(phase.stage, frozenset(clients))
    return Part(phase.stage, frozenset({phase.stage})) if disjoint else None


def most_rounds(phase: Phase[Any], sampler: Sampler, clients: Sequence[str], seed: int) -> int:
    """Return in how many rounds the busiest client takes part, where cohorts come from the run's streams."""
    counts: Counter[str] = Counter()
    for number in range(1, phase.rounds + 1):
        counts.update(sampler.sample(clients, Streams(seed, phase.name, number).numpy("cohort"), number))
    # Somebody may be in a round, even if the coins of this seed say that nobody is.
    return max(counts.values(), default=1)


def most_rounds_at_worst(phase: Phase[Any], sampler: Sampler) -> int:
    """Return in how many rounds any client can take part, whoever and however many there are."""
    if phase.participation is Participation.ALL:
        return phase.rounds
    return most_participations(phase.rounds, sampler.describe(1).separation)
