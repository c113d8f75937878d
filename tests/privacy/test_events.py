"""Events: what each may be accounted under, with which sensitivity, and what it looks like in a file."""

import json
import math

import dp_accounting
import numpy as np
import pytest
from dp_accounting import rdp

from fedalign.errors import UserError
from fedalign.privacy.events import (
    Event,
    FixedSizeGaussianEvent,
    GaussianEvent,
    MatrixGaussianEvent,
    PoissonGaussianEvent,
    Relation,
)
from fedalign.privacy.skellam import SkellamEvent

ORDERS = np.array([1.5, 2.0, 8.0, 64.0])
EVENTS = [
    GaussianEvent(1.1),
    PoissonGaussianEvent(0.1, 0.7),
    FixedSizeGaussianEvent(1000, 100, 2.0),
    MatrixGaussianEvent(3.0, math.sqrt(7)),
    SkellamEvent(5.0, 2.0, 31.0),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_json_round_trip_is_exact(event):
    assert Event.from_json(json.loads(json.dumps(event.to_json()))) == event


@pytest.mark.parametrize(
    "facts",
    [
        {"event": "LaplaceEvent", "scale": 1.0},
        {"event": "Event"},
        {"event": "GaussianEvent", "sigma": 1.0},
        {"event": "GaussianEvent", "noise_multiplier": -1.0},
        {},
    ],
)
def test_what_is_not_known_is_refused(facts):
    with pytest.raises(UserError, match="privacy ledger"):
        Event.from_json(facts)


@pytest.mark.parametrize("event", [each for each in EVENTS if not isinstance(each, SkellamEvent)])
def test_noise_of_zero_is_an_infinite_curve(event):
    silent = type(event)(**{**event.__dict__, "noise_multiplier": 0.0})
    assert np.isinf(silent.rdp(ORDERS)).all()


@pytest.mark.parametrize(
    "make",
    [
        lambda: GaussianEvent(-0.1),
        lambda: GaussianEvent(math.nan),
        lambda: GaussianEvent(math.inf),
        lambda: PoissonGaussianEvent(0.0, 1.0),
        lambda: PoissonGaussianEvent(1.1, 1.0),
        lambda: FixedSizeGaussianEvent(10, 11, 1.0),
        lambda: FixedSizeGaussianEvent(10, 0, 1.0),
        lambda: MatrixGaussianEvent(1.0, 0.0),
    ],
)
def test_impossible_events_are_refused(make):
    with pytest.raises(ValueError):
        make()


def test_poisson_is_refused_under_replace_one():
    with pytest.raises(UserError, match="only under add_or_remove"):
        PoissonGaussianEvent(0.1, 1.0).under(Relation.REPLACE_ONE)


def test_mistake_3_fixed_size_is_refused_under_add_or_remove():
    with pytest.raises(UserError, match="only under replace_one"):
        FixedSizeGaussianEvent(1000, 100, 1.0).under(Relation.ADD_OR_REMOVE)


def test_mistake_3_fixed_size_has_twice_the_sensitivity():
    accountant = rdp.RdpAccountant(ORDERS, dp_accounting.NeighboringRelation.REPLACE_ONE)
    accountant.compose(dp_accounting.SampledWithoutReplacementDpEvent(1000, 100, dp_accounting.GaussianDpEvent(0.5)))
    event = FixedSizeGaussianEvent(1000, 100, 1.0).under(Relation.REPLACE_ONE)
    np.testing.assert_allclose(event.rdp(ORDERS), accountant.rdp)


def test_fixed_size_of_everyone_is_a_gaussian_of_half_the_noise():
    event = FixedSizeGaussianEvent(10, 10, 1.0)
    assert event.under(Relation.REPLACE_ONE) == GaussianEvent(0.5)
    np.testing.assert_allclose(event.rdp(ORDERS), GaussianEvent(0.5).rdp(ORDERS))


@pytest.mark.parametrize("event", [GaussianEvent(2.0), MatrixGaussianEvent(6.0, 3.0)])
def test_replacing_halves_the_noise_multiplier(event):
    assert event.under(Relation.ADD_OR_REMOVE) is event
    assert event.gaussian == 2.0
    assert event.under(Relation.REPLACE_ONE).gaussian == 1.0


def test_replacing_costs_skellam_four_times_the_gaussian_part():
    event = SkellamEvent(0.0, 1.0, 1e6)
    np.testing.assert_allclose(event.under(Relation.REPLACE_ONE).rdp(ORDERS), 4 * event.rdp(ORDERS), rtol=1e-5)


def test_poisson_of_rate_one_is_gaussian():
    assert PoissonGaussianEvent(1.0, 2.0).gaussian == 2.0
    assert PoissonGaussianEvent(0.5, 2.0).gaussian is None


def test_a_matrix_event_goes_on_only_with_the_same_noise_and_no_less_sensitivity():
    event = MatrixGaussianEvent(2.0, 1.5)
    assert event.continued_by(MatrixGaussianEvent(2.0, 1.5))
    assert event.continued_by(MatrixGaussianEvent(2.0, 1.6))
    assert not event.continued_by(MatrixGaussianEvent(2.0, 1.4))
    assert not event.continued_by(MatrixGaussianEvent(2.1, 1.6))
    assert not event.continued_by(GaussianEvent(2.0))
