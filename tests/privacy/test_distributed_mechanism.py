"""Skellam noise as a mechanism: sums of what clients encode, and the noise in them."""

from __future__ import annotations

import numpy as np
import pytest

from fedalign.errors import UserError
from fedalign.privacy.distributed import Skellam
from fedalign.privacy.mechanism import Scale
from fedalign.privacy.rounding import Rounding
from fedalign.privacy.scheme import Sampling, Scheme
from fedalign.rng import Streams

MECHANISM = Skellam(Rounding(0.01, 0.6))
PUBLIC = Streams(3, "exchange/pull", 1)
SIZE = 4096


def vectors(clients: int, size: int = SIZE) -> np.ndarray:
    drawn = np.random.default_rng(0).standard_normal((clients, size))
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def decoded(given: np.ndarray, scale: Scale, minimum: int, mechanism: Skellam = MECHANISM) -> np.ndarray:
    parts = [mechanism.encode(v, scale, minimum, PUBLIC, np.random.default_rng(i)) for i, v in enumerate(given, 10)]
    return mechanism.decode(np.sum(parts, axis=0), given.shape[1], scale, minimum, PUBLIC)


def test_without_noise_a_sum_is_exact_up_to_rounding() -> None:
    given = vectors(5, 100)
    error = decoded(given, Scale(1.0, 0.0), 3) - given.sum(0)
    assert np.linalg.norm(error) < 5 * 0.15
    fine = decoded(given, Scale(1.0, 0.0), 3, Skellam(Rounding(1e-5, 0.6))) - given.sum(0)
    assert np.linalg.norm(fine) < np.linalg.norm(error) / 10


@pytest.mark.parametrize(("clients", "minimum"), [(4, 4), (8, 4)])
def test_the_noise_of_the_smallest_cohort_is_what_was_asked_for_and_more_clients_add_more(
    clients: int, minimum: int
) -> None:
    given, scale = vectors(clients), Scale(0.5, 3.0)
    noise = decoded(0.5 * given, scale, minimum) - 0.5 * given.sum(0)
    assert noise.std() == pytest.approx(3.0 * 0.5 * 1.01 * np.sqrt(clients / (minimum - 1)), rel=0.05)


def test_a_vector_beyond_the_bound_is_clipped_once_more() -> None:
    given = 100 * vectors(1, 64)
    assert np.linalg.norm(decoded(given, Scale(1.0, 0.0), 1)) < 1.3


def test_every_client_and_every_round_has_noise_of_its_own() -> None:
    zero, scale = np.zeros(64), Scale(1.0, 5.0)
    one, other = (MECHANISM.encode(zero, scale, 3, PUBLIC, np.random.default_rng(i)) for i in (1, 2))
    assert (one != other).any()


def test_rotations_are_shared_within_a_round_and_differ_between_rounds() -> None:
    given, scale = vectors(2, 64), Scale(1.0, 0.0)
    parts = [MECHANISM.encode(v, scale, 2, PUBLIC, np.random.default_rng(0)) for v in given]
    right = MECHANISM.decode(parts[0] + parts[1], 64, scale, 2, PUBLIC)
    wrong = MECHANISM.decode(parts[0] + parts[1], 64, scale, 2, PUBLIC.at(round=2))
    assert np.linalg.norm(right - given.sum(0)) < 0.5 < np.linalg.norm(wrong - given.sum(0))


def test_nothing_amplifies_where_the_server_knows_the_cohort() -> None:
    for scheme in Scheme:
        assert not MECHANISM.amplified(Sampling(scheme, 100, 10.0))


def test_more_noise_costs_less() -> None:
    sampling = Sampling(Scheme.EVERYONE, 10, 10.0)
    orders = np.array([2.0, 8.0])
    loud, soft = (MECHANISM.event(z, sampling, 64).rdp(orders) for z in (4.0, 1.0))
    assert (loud < soft).all()


def test_the_release_is_the_sum_itself() -> None:
    total = np.ones(3)
    released, _ = MECHANISM.release(total, Scale(1.0, 9.0), np.random.default_rng(0), np.zeros((0, 3)))
    np.testing.assert_array_equal(released, total)


def test_too_few_bits_are_refused_before_the_run() -> None:
    MECHANISM.check_width(4096, 64, 3, 1000, 1.0)
    with pytest.raises(UserError, match=r"sums over 1000 clients need \d+ bits"):
        Skellam(Rounding(1e-6, 0.6)).check_width(2**20, 32, 3, 1000, 4000.0)


@pytest.mark.parametrize("changed", [Rounding(0.1, 0.6), Rounding(0.01, 0.9)])
def test_rounding_options_change_what_is_sent(changed: Rounding) -> None:
    given, scale = vectors(1, 64)[0], Scale(1.0, 1.0)
    one, other = (m.encode(given, scale, 3, PUBLIC, np.random.default_rng(0)) for m in (MECHANISM, Skellam(changed)))
    assert (one != other).any()


def test_what_is_sent_has_the_length_that_the_rotation_needs() -> None:
    assert [MECHANISM.encoded_length(size) for size in (1, 5, 8, 9)] == [1, 8, 8, 16]
