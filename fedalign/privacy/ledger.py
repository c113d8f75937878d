"""The privacy ledger of a run: which releases happened, to whom, and what they cost together."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from fedalign.errors import UserError
from fedalign.privacy import accounting
from fedalign.privacy.accounting import Composition
from fedalign.privacy.delta import check_delta, default_delta
from fedalign.privacy.events import Event, Relation, Unit
from fedalign.privacy.unit_classes import signatures

__all__ = ["Entry", "Ledger", "Relation", "Unit", "check_delta", "default_delta"]

_Key = tuple[str, Event]


@dataclass(frozen=True)
class Entry:
    """Releases of one kind.

    Parameters
    ----------
    phase : str
    event : Event
        What each of them was.
    count : int
        How many; at least 1. Of a cumulative event: how many releases it states, which cost what it says once.
    members : str or None
        The declared set of units whose data went in; None where it may be anybody's.
    """

    phase: str
    event: Event
    count: int = 1
    members: str | None = None

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count={self.count} must be at least 1")


class Ledger:
    """What a run has spent, from what it really did.

    Releases compose one after another (sequentially) for every unit that may have been in them, and side by side (in
    parallel) for units of which it is declared that they were not in the same. Epsilon is the largest over the units:
    each one's is that of the releases that it may have been in. Declared sets and cohorts must not depend on the data
    that is protected; under replace-one, a unit changes its data and keeps its identity.

    Of a unit only a hash is kept. That keeps names out of checkpoints, but whoever guesses a name can confirm it.

    A guarantee for groups of k units is not offered: k times epsilon at the same delta is wrong.

    Parameters
    ----------
    unit : Unit
        For examples at clients, only what is sampled within a client amplifies: the server knows who takes part.
    relation : Relation
    delta : float
        In (0, 1); `check_delta` holds it against the number of units.

    Raises
    ------
    UserError
        If delta is out of range.
    """

    def __init__(self, unit: Unit, relation: Relation, delta: float) -> None:
        check_delta(delta, 1)
        self.unit, self.relation, self.delta = unit, relation, delta
        self._sets: dict[str, frozenset[str]] = {}
        self._counts: dict[tuple[str | None, _Key], int] = {}
        self._personal: dict[_Key, Counter[str]] = {}
        self._rounds: Counter[_Key] = Counter()
        self._known: dict[tuple[str, Composition], float] = {}

    def declare(self, members: str, ids: Iterable[str]) -> None:
        """Say which units a set holds; again only with the same units.

        Raises
        ------
        UserError
            If the set is declared and holds other units.
        """
        hashed = frozenset(self._hash(each) for each in ids)
        if self._sets.setdefault(members, hashed) != hashed:
            raise UserError(f"privacy ledger: the units of {members!r} have changed since they were declared")

    def record(self, entry: Entry, ids: Iterable[str] | None = None) -> None:
        """Add releases that happened, or are about to.

        Parameters
        ----------
        entry : Entry
        ids : iterable of str, optional
            Exactly the units that were in, in place of a declared set: for a cohort that an observer may know.

        Raises
        ------
        UserError
            If the event cannot be accounted under the ledger's relation, or the set is not declared.
        ValueError
            If ``ids`` come with a declared set or a cumulative event, or a cumulative event does not go on from
            the one before: a phase has one such mechanism, and nothing that was spent is taken back.
        """
        entry.event.under(self.relation)
        if entry.members is not None and entry.members not in self._sets:
            raise UserError(f"privacy ledger: the units of {entry.members!r} were not declared; call declare first")
        key = (entry.phase, entry.event)
        if ids is not None:
            if entry.members is not None or entry.event.cumulative:
                raise ValueError("ids take the place of members, and go with events that are not cumulative")
            counts = self._personal.setdefault(key, Counter())
            counts.update({self._hash(each): entry.count for each in ids})
            self._rounds[key] += entry.count
        elif entry.event.cumulative:
            self._restate(entry)
        else:
            place = (entry.members, key)
            self._counts[place] = self._counts.get(place, 0) + entry.count

    def epsilon(self, extra: Iterable[Entry] = ()) -> float:
        """Return epsilon at ``delta`` of all releases, and of ``extra`` if they happened too; infinite without noise.

        Raises
        ------
        UserError
            As `record`, for ``extra``.
        """
        return self._with(extra)._largest(accounting.epsilon)

    def epsilon_rdp(self, extra: Iterable[Entry] = ()) -> float:
        """Return epsilon by Rényi divergence alone, as a check: it is never below the other but for rounding."""
        return self._with(extra)._largest(accounting.epsilon_rdp)

    def by_phase(self) -> dict[str, float]:
        """Return the epsilon of each phase alone; they do not simply add up."""
        return {phase: self._of(phase).epsilon() for phase in sorted(self.phases)}

    def most(self, phase: str) -> int:
        """Return how many releases of a phase any one unit may have been in, at most."""
        return max(sum(count for _, count in each) for each in self._of(phase)._classes())

    @property
    def phases(self) -> set[str]:
        """Names of the phases that released something."""
        return {key[0] for key in self._keys}

    @property
    def events(self) -> set[Event]:
        """What was released, each kind once; for the report."""
        return {key[1] for key in self._keys}

    @property
    def releases(self) -> int:
        """How many releases there were; one over a cohort given by its ids counts once."""
        return sum(self._counts.values()) + sum(self._rounds.values())

    def copy(self) -> Ledger:
        """Return a ledger of its own with the same content, to try something out on."""
        twin = Ledger(self.unit, self.relation, self.delta)
        twin._sets, twin._counts, twin._rounds = dict(self._sets), dict(self._counts), self._rounds.copy()
        twin._personal = {key: counts.copy() for key, counts in self._personal.items()}
        # What compositions cost is the same for both.
        twin._known = self._known
        return twin

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON can hold it."""
        return {
            "unit": str(self.unit),
            "relation": str(self.relation),
            "delta": self.delta,
            "sets": {name: sorted(ids) for name, ids in sorted(self._sets.items())},
            "entries": [
                {"phase": phase, "event": event.to_json(), "count": count, "members": members}
                for (members, (phase, event)), count in self._counts.items()
            ],
            "cohorts": [
                {
                    "phase": phase,
                    "event": event.to_json(),
                    "releases": self._rounds[phase, event],
                    "counts": dict(sorted(counts.items())),
                }
                for (phase, event), counts in self._personal.items()
            ],
        }

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Self:
        """Return the ledger that `to_json` described.

        Raises
        ------
        UserError
            If it holds events that this version does not know.
        """
        ledger = cls(Unit(facts["unit"]), Relation(facts["relation"]), facts["delta"])
        ledger._sets = {name: frozenset(ids) for name, ids in facts["sets"].items()}
        for each in facts["entries"]:
            ledger.record(Entry(each["phase"], Event.from_json(each["event"]), each["count"], each["members"]))
        for each in facts["cohorts"]:
            key = (each["phase"], Event.from_json(each["event"]))
            key[1].under(ledger.relation)
            ledger._personal[key], ledger._rounds[key] = Counter(each["counts"]), each["releases"]
        return ledger

    @property
    def _keys(self) -> list[_Key]:
        return [key for _, key in self._counts] + list(self._personal)

    def _hash(self, name: str) -> str:
        return hashlib.blake2b(name.encode(), digest_size=16, person=self.unit.encode()).hexdigest()

    def _restate(self, entry: Entry) -> None:
        """Put a cumulative event in the place of the one that stated less of the same phase and units."""
        for place, count in list(self._counts.items()):
            members, (phase, event) = place
            if (members, phase) != (entry.members, entry.phase) or not event.cumulative:
                continue
            if not event.continued_by(entry.event) or count > entry.count:
                raise ValueError(f"{phase}: {entry.event} after {entry.count} releases does not go on from {event}")
            del self._counts[place]
        self._counts[entry.members, (entry.phase, entry.event)] = entry.count

    def _with(self, extra: Iterable[Entry]) -> Ledger:
        entries = list(extra)
        trial = self.copy() if entries else self
        for entry in entries:
            trial.record(entry)
        return trial

    def _of(self, phase: str) -> Ledger:
        part = self.copy()
        part._counts = {place: count for place, count in self._counts.items() if place[1][0] == phase}
        part._personal = {key: counts for key, counts in self._personal.items() if key[0] == phase}
        return part

    def _classes(self) -> list[tuple[tuple[Event, int], ...]]:
        """Return what each kind of unit may have been in: events and how many releases of each."""
        everyone = [(key[1], count) for (members, key), count in self._counts.items() if members is None]
        events: list[Event] = []
        sources: list[Mapping[str, int]] = []
        for (members, (_, event)), count in self._counts.items():
            if members is not None:
                events.append(event)
                sources.append(dict.fromkeys(self._sets[members], count))
        for (_, event), counts in self._personal.items():
            events.append(event)
            sources.append(counts)
        return [
            (*everyone, *((events[source], count) for source, count in signature)) for signature in signatures(sources)
        ]

    def _largest(self, measure: Callable[[Composition, float], float]) -> float:
        """Return the largest epsilon over the classes of units; costly ones are skipped where a bound is enough."""
        composed = list(
            {
                accounting.composition(
                    (event.under(self.relation), 1 if event.cumulative else count) for event, count in each
                )
                for each in self._classes()
            }
        )
        bounds = accounting.epsilon_bounds(composed, self.delta)
        largest, measured = 0.0, list[Composition]()
        for index in bounds.argsort()[::-1]:
            each = composed[index]
            if bounds[index] <= largest:
                break
            if any(accounting.covers(other, each) for other in measured):
                continue
            measured.append(each)
            if (measure.__name__, each) not in self._known:
                self._known[measure.__name__, each] = measure(each, self.delta)
            largest = max(largest, self._known[measure.__name__, each])
        return largest
