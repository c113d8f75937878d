"""The privacy budget of a run: what is planned, the noise that makes it fit, and what has been spent."""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedalign.errors import UserError
from fedalign.federation.exposure import Exposure, most_rounds_at_worst
from fedalign.federation.sampling import Sampler
from fedalign.methods.base import Phase
from fedalign.privacy.calibration import noise_multiplier_for
from fedalign.privacy.events import Event, PoissonGaussianEvent
from fedalign.privacy.ledger import Entry, Ledger, Relation, Unit, check_delta, default_delta
from fedalign.privacy.mechanism import Gaussian
from fedalign.privacy.metric_release import SummedMetrics
from fedalign.privacy.protection import Protection
from fedalign.privacy.scheme import Sampling, Scheme

METRICS = "metrics"
_ROUNDING = 1e-9


class Account:
    """Plans, calibrates and charges; everything that is charged is written down before it is done.

    Parameters
    ----------
    privacy : Protection
        One that makes a run differentially private.
    exposures : sequence of Exposure
        Of the phases that train, in order.
    evaluations : int
        How many times metrics are released.
    metrics : int
        How many metrics are released each time.
    journal : Path or None
        File that holds the newest state of the ledger.
    """

    def __init__(
        self,
        privacy: Protection,
        exposures: Sequence[Exposure],
        evaluations: int,
        metrics: int,
        journal: Path | None,
    ) -> None:
        self.privacy, self.exposures = privacy, {exposure.name: exposure for exposure in exposures}
        self._evaluations, self._metrics, self._journal = evaluations, metrics, journal
        clients = exposures[0].sampling.population if exposures else 1
        self.unit = Unit.CLIENT if privacy.local is None else Unit(privacy.local.unit)
        fixed = privacy.mechanism is not None and any(self._amplified_fixed(e) for e in exposures)
        self.relation = Relation.REPLACE_ONE if fixed else Relation.ADD_OR_REMOVE
        self.delta = self._delta(clients)
        self.ledger = self._fresh()
        self.noise_multiplier = self._noise_multiplier()
        budget = privacy.epsilon
        self._fits = budget is None or self._fresh_epsilon() <= budget * (1 + _ROUNDING)

    def affords(self, name: str, cohort: Sequence[str]) -> bool:
        """Tell whether a round of a phase keeps within the budget."""
        trial = self.ledger.copy()
        self._record(trial, name, cohort)
        return self._keeps_within(trial, self._metrics_to_come(trial))

    def affords_metrics(self) -> bool:
        """Tell whether another release of metrics keeps within the budget."""
        event = self._metrics_event()
        return event is None or self._keeps_within(self.ledger, [Entry(METRICS, event, 1, None)])

    def charge(self, name: str, cohort: Sequence[str]) -> None:
        """Charge a round of a phase to those who are asked, whether or not they answer."""
        self._record(self.ledger, name, cohort)
        self._write()

    def charge_metrics(self, phase: str) -> None:
        """Charge one release of metrics to everybody."""
        event = self._metrics_event()
        if event is not None:
            self.ledger.record(Entry(f"{METRICS}/{phase}", event, 1, None))
            self._write()

    def restore(self, facts: dict[str, Any]) -> bool:
        """Go on from a checkpoint; what the journal knows to be spent since stays spent, where noise is fresh.

        Noise from the run's seed is the same when a round is run again: the release is the same and costs nothing.

        Returns
        -------
        bool
            Whether something has been spent since.

        Raises
        ------
        UserError
            If the run promised something else, as with another number of clients.
        """
        written = self._read() if self.privacy.randomness.secret else None
        restored = Ledger.from_json(facts if written is None else written)
        was, now = ((str(e.unit), str(e.relation), e.delta) for e in (restored, self.ledger))
        if was != now:
            raise UserError(
                f"the run has spent its budget on {was[0]}s under {was[1]} at delta={was[2]:.3g}, and would go on with "
                f"{now[0]}s under {now[1]} at delta={now[2]:.3g}; resume it with the clients that it was started with"
            )
        self.ledger = restored
        return written is not None and written != facts

    def amplified(self, name: str) -> bool:
        """Tell whether it is counted on that nobody knows who is in a phase's cohorts."""
        return self._amplified(self.exposures[name])

    def plan(self, noise_multiplier: float) -> list[Entry]:
        """Return everything that the run means to release."""
        entries = [self._entry(e.name, noise_multiplier, self._planned(e)) for e in self.exposures.values()]
        event = self._metrics_event()
        if event is not None:
            entries.append(Entry(METRICS, event, self._evaluations, None))
        return entries

    def _entry(self, name: str, noise_multiplier: float, rounds: int) -> Entry:
        exposure = self.exposures[name]
        if self.privacy.local is not None:
            event: Event = PoissonGaussianEvent(self.privacy.local.rate, noise_multiplier)
            return Entry(name, event, rounds * exposure.steps, None)
        assert self.privacy.mechanism is not None
        return Entry(
            name, self.privacy.mechanism.event(noise_multiplier, exposure.sampling, exposure.size), rounds, None
        )

    def _metrics_event(self) -> Event | None:
        release = self.privacy.metrics
        if not isinstance(release, SummedMetrics) or not self._evaluations:
            return None
        everyone = Sampling(Scheme.EVERYONE, 1, 1.0)
        mechanism = self.privacy.mechanism if self.privacy.mechanism is not None else Gaussian()
        return mechanism.event(release.noise_multiplier, everyone, 2 * self._metrics)

    def _planned(self, exposure: Exposure) -> int:
        return exposure.rounds if self._amplified(exposure) else exposure.most

    def _amplified(self, exposure: Exposure) -> bool:
        mechanism = self.privacy.mechanism
        return mechanism is not None and mechanism.amplified(exposure.sampling)

    def _amplified_fixed(self, exposure: Exposure) -> bool:
        return self._amplified(exposure) and exposure.sampling.scheme is Scheme.FIXED_SIZE

    def _record(self, ledger: Ledger, name: str, cohort: Sequence[str]) -> None:
        """Write a round down: for all where its event counts that they may not be in it, else for those who are."""
        entry = self._entry(name, self.noise_multiplier, 1)
        ledger.record(entry, ids=None if self._amplified(self.exposures[name]) else cohort)

    def _keeps_within(self, ledger: Ledger, more: Sequence[Entry]) -> bool:
        """Tell whether a ledger and what comes on top keep within the budget; cheap as long as all goes as planned."""
        budget = self.privacy.epsilon
        if budget is None:
            return True
        if self._fits and self._is_planned(ledger, sum(entry.count for entry in more)):
            return True
        return ledger.epsilon(more) <= budget * (1 + _ROUNDING)

    def _is_planned(self, ledger: Ledger, measured: int) -> bool:
        trained = all(ledger.most(name) <= self._planned_count(name) for name in self.exposures)
        return trained and self._measured(ledger) + measured <= self._evaluations

    def _metrics_to_come(self, ledger: Ledger) -> list[Entry]:
        """Return the releases of metrics that are still planned: training must leave them their share."""
        event, left = self._metrics_event(), self._evaluations - self._measured(ledger)
        return [] if event is None or left < 1 else [Entry(METRICS, event, left, None)]

    def _measured(self, ledger: Ledger) -> int:
        """Return how many releases of metrics there were."""
        return sum(ledger.most(name) for name in ledger.phases if name.startswith(f"{METRICS}/"))

    def _planned_count(self, name: str) -> int:
        """Return how many releases of a phase are planned to happen to a unit, at most."""
        return self._entry(name, self.noise_multiplier, self._planned(self.exposures[name])).count

    def _delta(self, clients: int) -> float:
        given = self.privacy.delta
        if self.unit is not Unit.CLIENT:
            if given is None:
                raise UserError(
                    f"privacy.delta=null: how many {self.unit}s there are is not known to the server; set it well "
                    "below one over their number"
                )
            return given
        if given is None:
            return default_delta(clients)
        check_delta(given, clients)
        return given

    def _noise_multiplier(self) -> float:
        if self.privacy.noise_multiplier is not None:
            return self.privacy.noise_multiplier
        assert self.privacy.epsilon is not None
        entries = tuple(self.plan(1.0))
        goal = _Goal(self.privacy.epsilon, self.unit, self.relation, self.delta, entries, self.plan)
        return _noise_for(goal)

    def _fresh(self) -> Ledger:
        return Ledger(self.unit, self.relation, self.delta)

    def _fresh_epsilon(self) -> float:
        return self._fresh().epsilon(self.plan(self.noise_multiplier))

    def _write(self) -> None:
        if self._journal is not None:
            self._journal.parent.mkdir(parents=True, exist_ok=True)
            fresh = self._journal.with_suffix(".new")
            with fresh.open("w") as opened:
                json.dump(self.ledger.to_json(), opened)
                opened.flush()
                os.fsync(opened.fileno())
            fresh.rename(self._journal)

    def _read(self) -> dict[str, Any] | None:
        if self._journal is None or not self._journal.is_file():
            return None
        content: dict[str, Any] = json.loads(self._journal.read_text())
        return content


@dataclass(frozen=True)
class _Goal:
    """What noise is sought for; two goals are one if they plan the same releases at the same noise."""

    epsilon: float
    unit: Unit
    relation: Relation
    delta: float
    entries: tuple[Entry, ...]
    plan: Callable[[float], list[Entry]] = field(compare=False)


@functools.lru_cache(maxsize=32)
def _noise_for(goal: _Goal) -> float:
    """Return the noise multiplier for a goal; a run asks for it before it starts, and again when it does."""

    def fresh() -> Ledger:
        return Ledger(goal.unit, goal.relation, goal.delta)

    return noise_multiplier_for(goal.epsilon, goal.plan, fresh)


def local_noise_multiplier(privacy: Protection, sampler: Sampler, phases: Sequence[Phase[Any]]) -> float:
    """Return the noise multiplier of DP-SGD on clients; it follows from the configuration alone.

    Parameters
    ----------
    privacy : Protection
        One with ``local``.
    sampler : Sampler
    phases : sequence of Phase
        Those that train.

    Raises
    ------
    UserError
        If delta is not set, or no noise keeps within the budget.
    """
    exposures = [
        Exposure(
            p.name, p.rounds, Sampling(Scheme.EVERYONE, 1, 1.0), 0, p.local_steps, most_rounds_at_worst(p, sampler)
        )
        for p in phases
    ]
    return Account(privacy, exposures, 0, 0, None).noise_multiplier


def finite(value: float) -> float | None:
    """Return a number as JSON can hold it; None for infinity."""
    return value if math.isfinite(value) else None
