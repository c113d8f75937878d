"""Turnout: who comes, who does not and why, when a round ends, and what the guarantee has to say to it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedalign.errors import UserError
from fedalign.federation.attendance import Attendance
from fedalign.federation.devices import HOUR_S, Device, Devices, Load
from fedalign.federation.population import Absence, Everybody, Simulated, Turnout
from fedalign.federation.sampling import (
    CyclicSampler,
    FixedSampler,
    FractionSampler,
    PoissonSampler,
    Sampler,
)
from fedalign.privacy.scheme import Sampling, Scheme
from fedalign.rng import Streams

from .toy import Halfway

MORNING = ((8 * HOUR_S, 12 * HOUR_S),)
LOAD = Load(1000, 500)


@dataclass(frozen=True)
class Known(Devices):
    """Clients that take as long as their names say, and come in the morning where these begin with m."""

    def fleet(self, clients: Sequence[str], streams: Streams) -> Mapping[str, Device]:
        return {
            client: Device(float(client.strip("m")), math.inf, math.inf, MORNING if client.startswith("m") else None)
            for client in clients
        }


def population(**changes: Any) -> Simulated:
    usual: dict[str, Any] = {
        "devices": Known(), "update_seconds": 10.0, "jitter_sigma": 0.0, "dropout": 0.0, "deadline": None,
        "over_selection": 1.0, "pause_seconds": 5.0, "start_hour": 0.0, "cohorts": "registered",
    }  # fmt: skip
    return Simulated(**{**usual, **changes})


def held(cohort: Sequence[str], clock_s: float = 0.0, round: int = 1, **changes: Any) -> Turnout:
    simulated = population(**changes)
    fleet = simulated.fleet(cohort, 3)
    return simulated.turnout(cohort, fleet, LOAD, clock_s, Streams(3, "phase", round))


def test_everybody_comes_and_the_slowest_ends_the_round() -> None:
    assert held(["3", "1", "2"]) == Turnout(("3", "1", "2"), {}, 30.0)


def test_a_deadline_ends_a_round_without_those_who_are_late() -> None:
    assert held(["3", "1", "2"], deadline=20.0) == Turnout(("1", "2"), {"3": Absence.LATE}, 20.0)
    assert held(["3", "1", "2"], deadline=31.0) == Turnout(("3", "1", "2"), {}, 30.0)
    assert held(["3"], deadline=20.0) == Turnout((), {"3": Absence.LATE}, 20.0)


def test_over_selection_ends_a_round_with_the_first_answers() -> None:
    ten = [str(number) for number in (7, 3, 9, 1, 8, 2, 10, 4, 6, 5)]
    turnout = held(ten, over_selection=1.25)
    assert turnout.present == ("7", "3", "1", "8", "2", "4", "6", "5")
    assert turnout.absent == {"9": Absence.LATE, "10": Absence.LATE}
    assert turnout.seconds == 80.0
    # The deadline comes first.
    assert held(ten, over_selection=1.25, deadline=55.0).seconds == 55.0
    assert held(ten, over_selection=1.25, deadline=55.0).count(Absence.LATE) == 5
    assert len(held([str(number) for number in range(1, 14)], over_selection=1.3).present) == 10


def test_who_is_away_is_not_waited_for() -> None:
    assert held(["m4", "1"]) == Turnout(("1",), {"m4": Absence.OFFLINE}, 10.0)
    assert held(["m4", "1"], clock_s=9 * HOUR_S) == Turnout(("m4", "1"), {}, 40.0)
    assert held(["m4", "1"], start_hour=9.0) == Turnout(("m4", "1"), {}, 40.0)
    assert held(["m4"]) == Turnout((), {"m4": Absence.OFFLINE}, 0.0)


def test_dropouts_and_jitter_have_their_distributions() -> None:
    many = ["1"] + [f"1.{number}" for number in range(4000)]
    turnout = held(many, dropout=0.3)
    share = turnout.count(Absence.DROPPED) / len(many)
    assert abs(share - 0.3) < 4 * math.sqrt(0.3 * 0.7 / len(many))
    again = held(many, dropout=0.3, round=2)
    both = sum(client in again.absent for client in turnout.absent) / len(turnout.absent)
    assert abs(both - 0.3) < 0.1
    alone = [held(["1"], round=number, jitter_sigma=0.4).seconds for number in range(1, 2000)]
    logs = np.log(np.array(alone) / 10.0)
    assert abs(logs.mean()) < 4 * 0.4 / math.sqrt(len(logs))
    assert abs(logs.std() / 0.4 - 1) < 4 / math.sqrt(2 * len(logs))


@given(
    st.lists(st.integers(1, 30), unique=True, max_size=12),
    st.one_of(st.none(), st.floats(1, 400)),
    st.floats(1, 5),
    st.floats(0, 0.9),
)
def test_a_round_is_closed_consistently(
    names: list[int], deadline: float | None, over_selection: float, dropout: float
) -> None:
    cohort = [f"m{n}" if n % 5 == 0 else str(n) for n in names]
    turnout = held(cohort, deadline=deadline, over_selection=over_selection, dropout=dropout)
    assert [c for c in cohort if c not in turnout.absent] == list(turnout.present)
    assert set(turnout.absent) <= set(cohort)
    times = {client: 10.0 * float(client.strip("m")) for client in cohort}
    late = [times[client] for client, why in turnout.absent.items() if why is Absence.LATE]
    assert all(times[client] <= turnout.seconds for client in turnout.present)
    assert all(time >= turnout.seconds for time in late)
    assert len(turnout.present) <= math.ceil(len(cohort) / over_selection)
    assert deadline is None or turnout.seconds <= deadline
    assert turnout == held(cohort, deadline=deadline, over_selection=over_selection, dropout=dropout)


def attendance(simulated: Simulated, clients: Sequence[str]) -> Attendance:
    return Attendance.of(simulated, clients, 3, lambda phase, travels: 0)


def test_the_clock_goes_on_with_rounds_and_pauses() -> None:
    clerk = attendance(population(), ["1", "m2"])
    for number, expected in ((1, 15.0), (2, 30.0)):
        turnout = clerk.hold(Halfway(), {}, ["1", "m2"], Streams(3, "phase", number))
        assert clerk.clock_s == expected
    assert clerk.facts(turnout) == {
        "simulated_seconds": 10.0, "simulated_clock": 30.0,
        "clients_offline": 1.0, "clients_dropped": 0.0, "clients_late": 0.0,
    }  # fmt: skip
    nobody = Attendance()
    assert nobody.hold(Halfway(), {}, ["x", "y"], Streams(3)) == Turnout(("x", "y"))
    assert (nobody.clock_s, nobody.facts(Turnout()), nobody.simulates) == (0.0, {}, False)


CROWD = [f"m{number}" if number % 2 else str(number) for number in range(1, 41)]
THERE = [client for client in CROWD if not client.startswith("m")]


@pytest.mark.parametrize(
    "sampler", [PoissonSampler(0.5), FractionSampler(1.0), CyclicSampler(4)], ids=["poisson", "full", "cyclic"]
)
def test_coins_groups_and_everybody_are_filtered(sampler: Sampler) -> None:
    clerk = attendance(population(cohorts="online"), CROWD)
    for number in range(1, 6):
        drawn = sampler.sample(CROWD, np.random.default_rng(number), number)
        online = clerk.draw(sampler, CROWD, np.random.default_rng(number), number)
        assert online == [client for client in drawn if client in THERE]


@pytest.mark.parametrize(("sampler", "size"), [(FixedSampler(8), 8), (FixedSampler(30), 20), (FractionSampler(0.1), 4)])
def test_a_fixed_number_is_drawn_from_those_who_are_there(sampler: Sampler, size: int) -> None:
    clerk = attendance(population(cohorts="online"), CROWD)
    drawn = [clerk.draw(sampler, CROWD, np.random.default_rng(number), number) for number in range(40)]
    assert all(len(cohort) == size and set(cohort) <= set(THERE) for cohort in drawn)
    assert all(cohort == sorted(cohort, key=CROWD.index) for cohort in drawn)
    assert {client for cohort in drawn for client in cohort} == set(THERE)
    registered = attendance(population(), CROWD)
    assert registered.draw(sampler, CROWD, np.random.default_rng(1), 1) == sampler.sample(
        CROWD, np.random.default_rng(1)
    )
    clerk.clock_s = 9 * HOUR_S
    everywhere = [clerk.draw(sampler, CROWD, np.random.default_rng(number), number) for number in range(40)]
    assert any(set(cohort) - set(THERE) for cohort in everywhere)


def test_nobody_is_drawn_from_nobody() -> None:
    clerk = attendance(population(cohorts="online"), ["m1", "m2"])
    assert clerk.draw(FixedSampler(1), ["m1", "m2"], np.random.default_rng(0), 1) == []


@pytest.mark.parametrize("scheme", Scheme)
def test_what_the_account_does_not_cover_is_refused(scheme: Scheme) -> None:
    sampling = Sampling(scheme, 40, 8.0)
    population(deadline=3.0, dropout=0.5).check_sampling(sampling)
    Everybody().check_sampling(sampling)
    online, first = population(cohorts="online"), population(over_selection=1.5)
    refusals = (
        (online, scheme in (Scheme.FIXED_SIZE, Scheme.KNOWN), r"population\.cohorts=online: .*cohorts=registered"),
        (first, scheme is Scheme.POISSON, r"population\.over_selection=1\.5: .*over_selection=1 "),
    )
    for simulated, refused, message in refusals:
        if refused:
            with pytest.raises(UserError, match=message):
                simulated.check_sampling(sampling)
        else:
            simulated.check_sampling(sampling)


@given(
    st.lists(st.integers(1, 40), unique=True, min_size=2, max_size=14),
    st.floats(1, 4),
    st.one_of(st.none(), st.floats(1, 400)),
)
def test_one_client_replaced_changes_two_answers_at_most(
    names: list[int], over_selection: float, deadline: float | None
) -> None:
    """What the account of cohorts of fixed size takes for granted: one answer more, and one less."""
    changes: dict[str, Any] = {"over_selection": over_selection, "deadline": deadline, "dropout": 0.2}
    cohort, other = [str(n) for n in names[:-1]], [str(n) for n in names[1:]]
    one, two = set(held(cohort, **changes).present), set(held(other, **changes).present)
    assert len(one - two) <= 1
    assert len(two - one) <= 1


@given(st.lists(st.integers(1, 40), unique=True, min_size=1, max_size=14), st.floats(1, 400))
def test_with_a_deadline_alone_one_client_more_changes_its_own_answer_only(names: list[int], deadline: float) -> None:
    """What the account of independent coins takes for granted."""
    cohort = [str(n) for n in names]
    more, less = (set(held(c, deadline=deadline, dropout=0.2).present) for c in (cohort, cohort[1:]))
    assert more - {cohort[0]} == less


def test_over_selection_lets_one_client_more_push_another_out() -> None:
    """Why it is refused with independent coins."""
    four, three = (set(held(c, over_selection=2).present) for c in (["1", "2", "3", "4"], ["2", "3", "4"]))
    assert four == {"1", "2"}
    assert three == {"2", "3"}


def test_a_share_of_those_drawn_is_what_poisson_sampling_is_accounted_for() -> None:
    """With coins of rate q a client that is there with probability p is in with probability q p."""
    simulated, clients = population(dropout=0.4), [str(n) for n in range(1, 201)]
    fleet = simulated.fleet(clients, 3)
    came = 0
    for number in range(1, 41):
        cohort = PoissonSampler(0.25).sample(clients, np.random.default_rng(number))
        came += len(simulated.turnout(cohort, fleet, LOAD, 0.0, Streams(3, "phase", number)).present)
    trials, rate = 40 * len(clients), 0.25 * 0.6
    assert abs(came / trials - rate) < 4 * math.sqrt(rate * (1 - rate) / trials)


def test_a_longer_line_and_a_smaller_update_shorten_a_round() -> None:
    simulated = population()
    fleet = {"1": Device(1.0, 100.0, 50.0)}

    def seconds(load: Load, **change: Any) -> float:
        return replace(simulated, **change).turnout(["1"], fleet, load, 0.0, Streams(3)).seconds

    assert seconds(Load(1000, 500)) == 10 + 10 + 10
    assert seconds(Load(1000, 125)) == 10 + 10 + 2.5
    assert seconds(Load(0, 0), update_seconds=0.0) == 0.0
