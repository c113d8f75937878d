"""What a phase asks of a privacy budget: how often it may see a client, and how its cohorts come about."""

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
    """

    name: str
    rounds: int
    sampling: Sampling
    size: int
    steps: int
    most: int


def exposure_of(
    phase: Phase[Any], size: int, sampler: Sampler, clients: Sequence[str], seed: int, privacy: Protection
) -> Exposure:
    """Return what a phase asks of the budget, whatever is drawn.

    In a secure sum clients see who their neighbours are, so a cohort is no secret that could amplify.
    """
    number = len(clients)
    if phase.participation is Participation.ALL:
        sampling, most = Sampling(Scheme.EVERYONE, number, float(number)), phase.rounds
    elif phase.local_steps:
        sampling, most = sampler.describe(number), most_rounds_at_worst(phase, sampler)
    else:
        sampling, most = sampler.describe(number), most_rounds(phase, sampler, clients, seed)
    if privacy.secure is not None and sampling.scheme in (Scheme.POISSON, Scheme.FIXED_SIZE):
        sampling = replace(sampling, scheme=Scheme.KNOWN)
    return Exposure(phase.name, phase.rounds, sampling, size, phase.local_steps, most)


def most_rounds(phase: Phase[Any], sampler: Sampler, clients: Sequence[str], seed: int) -> int:
    """Return in how many rounds the busiest client takes part, where cohorts come from the run's streams."""
    counts: Counter[str] = Counter()
    for number in range(1, phase.rounds + 1):
        counts.update(sampler.sample(clients, Streams(seed, phase.name, number).numpy("cohort"), number))
    # Somebody may be in a round, even if the coins of this seed say that nobody is.
    return max(counts.values(), default=1)


def most_rounds_at_worst(phase: Phase[Any], sampler: Sampler) -> int:
    """Return in how many rounds any client can take part, whoever and however many there are."""
    return most_participations(phase.rounds, sampler.describe(1).separation)
