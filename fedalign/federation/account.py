"""The privacy budget of a run: what is planned, the noise that makes it fit, and what has been spent."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedalign.errors import UserError
from fedalign.federation.exposure import Exposure
from fedalign.federation.noise_goal import Goal, noise_for
from fedalign.federation.shared_units import components, parts_of
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

    Phases that no unit is in both of spend the budget side by side, each all of it; others share it, at one noise
    multiplier.

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
    clients : int or None
        Training clients of the whole run, which delta is held against; None takes the first phase's.

    Attributes
    ----------
    noise_multipliers : dict from phase name to float
    """

    def __init__(
        self,
        privacy: Protection,
        exposures: Sequence[Exposure],
        evaluations: int,
        metrics: int,
        journal: Path | None,
        clients: int | None = None,
    ) -> None:
        self.privacy, self.exposures = privacy, {exposure.name: exposure for exposure in exposures}
        self._evaluations, self._metrics, self._journal = evaluations, metrics, journal
        if clients is None:
            clients = exposures[0].sampling.population if exposures else 1
        self.unit = Unit.CLIENT if privacy.local is None else Unit(privacy.local.unit)
        fixed = privacy.mechanism is not None and any(self._amplified_fixed(e) for e in exposures)
        self.relation = Relation.REPLACE_ONE if fixed else Relation.ADD_OR_REMOVE
        self.delta = self._delta(clients)
        self._parts = parts_of(exposures)
        self.ledger = self._declared(Ledger(self.unit, self.relation, self.delta))
        self.noise_multipliers = self._noise_multipliers()
        budget = privacy.epsilon
        self._fits = budget is None or self.ledger.epsilon(self.plan()) <= budget * (1 + _ROUNDING)

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
            If the run promised something else, as with another number of clients, or other clients in a stage.
        """
        written = self._read() if self.privacy.randomness.secret else None
        restored = Ledger.from_json(facts if written is None else written)
        was, now = ((str(e.unit), str(e.relation), e.delta) for e in (restored, self.ledger))
        if was != now:
            raise UserError(
                f"the run has spent its budget on {was[0]}s under {was[1]} at delta={was[2]:.3g}, and would go on with "
                f"{now[0]}s under {now[1]} at delta={now[2]:.3g}; resume it with the clients that it was started with"
            )
        self.ledger = self._declared(restored)
        return written is not None and written != facts

    def amplified(self, name: str) -> bool:
        """Tell whether it is counted on that nobody knows who is in a phase's cohorts."""
        return self._amplified(self.exposures[name])

    def plan(self) -> list[Entry]:
        """Return everything that the run means to release."""
        return self._plan(self.exposures.values(), self.noise_multipliers)

    def _plan(self, exposures: Iterable[Exposure], noise_multipliers: Mapping[str, float]) -> list[Entry]:
        entries = [self._entry(e, noise_multipliers[e.name], self._planned(e)) for e in exposures]
        event = self._metrics_event()
        if event is not None:
            entries.append(Entry(METRICS, event, self._evaluations, None))
        return entries

    def _entry(self, exposure: Exposure, noise_multiplier: float, rounds: int) -> Entry:
        name, members = exposure.name, None if exposure.part is None else exposure.part.name
        if self.privacy.local is not None:
            event: Event = PoissonGaussianEvent(self.privacy.local.in_phase(name).rate, noise_multiplier)
            return Entry(name, event, rounds * exposure.steps, members)
        assert self.privacy.mechanism is not None
        event = self.privacy.mechanism.event(noise_multiplier, exposure.sampling, exposure.size)
        return Entry(name, event, rounds, members)

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
        exposure = self.exposures[name]
        entry = self._entry(exposure, self.noise_multipliers[name], 1)
        if self._amplified(exposure):
            ledger.record(entry)
        else:
            ledger.record(replace(entry, members=None), ids=self._units_of(exposure, cohort))

    def _units_of(self, exposure: Exposure, cohort: Sequence[str]) -> list[str]:
        """Return the units in a cohort: the clients, or what stands for the units that one holds for each stage."""
        if self.unit is Unit.CLIENT or not self._parts:
            return list(cohort)
        stages = sorted(self._parts) if exposure.part is None else [exposure.part.name]
        return [f"{stage}/{client}" for stage in stages for client in cohort]

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
        exposure = self.exposures[name]
        return self._entry(exposure, self.noise_multipliers[name], self._planned(exposure)).count

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

    def _noise_multipliers(self) -> dict[str, float]:
        given = self.privacy.noise_multiplier
        if given is not None:
            return dict.fromkeys(self.exposures, given)
        return {e.name: noise for group in components(self.exposures.values()) for e, noise in self._chosen(group)}

    def _chosen(self, group: Sequence[Exposure]) -> list[tuple[Exposure, float]]:
        """Return phases that share units with the noise multiplier at which they keep within the budget together."""
        assert self.privacy.epsilon is not None

        def plan(noise_multiplier: float) -> list[Entry]:
            return self._plan(group, dict.fromkeys(self.exposures, noise_multiplier))

        sets = tuple((name, part.units) for name, part in sorted(parts_of(group).items()))
        goal = Goal(self.privacy.epsilon, self.unit, self.relation, self.delta, sets, tuple(plan(1.0)), plan)
        noise = noise_for(goal)
        return [(exposure, noise) for exposure in group]

    def _declared(self, ledger: Ledger) -> Ledger:
        """Return a ledger that knows who is in which part."""
        for name, part in self._parts.items():
            ledger.declare(name, part.units)
        return ledger

    def _write(self) -> None:
        if self._journal is not None:
            self._journal.parent.mkdir(parents=True, exist_ok=True)
            fresh = self._journal.with_suffix(".new")
            with fresh.open("w") as opened:
                opened.write(json.dumps(self.ledger.to_json()))
                opened.flush()
                os.fsync(opened.fileno())
            fresh.rename(self._journal)

    def _read(self) -> dict[str, Any] | None:
        if self._journal is None or not self._journal.is_file():
            return None
        content: dict[str, Any] = json.loads(self._journal.read_text())
        return content


def finite(value: float) -> float | None:
    """Return a number as JSON can hold it; None for infinity."""
    return value if math.isfinite(value) else None
