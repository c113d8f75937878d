"""Vectors as words: sums come back, noise is in them where clients add it, and nothing wraps unseen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fedalign.federation.messages import Instruction, Terms
from fedalign.federation.vectors import WordCode, public_streams
from fedalign.privacy.distributed import Skellam
from fedalign.privacy.rounding import Rounding
from fedalign.rng import Streams

from .guarded import SECAGG

EXACT = WordCode(SECAGG, None)
NOISY = WordCode(SECAGG, Skellam(Rounding(0.001, 0.6)))
PUBLIC = Streams(5, "exchange/0", 1)
SIZE = 50


def secret(number: int = 0) -> np.random.Generator:
    return np.random.default_rng(number)


@pytest.mark.parametrize("bits", [32, 64])
def test_a_sum_of_words_is_the_sum_of_the_vectors(bits: int) -> None:
    code = WordCode(replace(SECAGG, bits=bits, fraction_bits=16), None)
    vectors, terms = secret().normal(size=(7, SIZE)), Terms(cohort=7, size=SIZE)
    words = [code.encode(vector, terms, PUBLIC, secret()) for vector in vectors]
    summed = np.sum(words, axis=0, dtype=words[0].dtype)
    np.testing.assert_allclose(code.decode(summed, terms, PUBLIC), vectors.sum(0), atol=7 * 2.0**-17)


def test_more_fraction_bits_are_more_exact() -> None:
    vector, terms, errors = secret().normal(size=SIZE), Terms(cohort=3, size=SIZE), []
    for bits in (4, 16, 32):
        code = WordCode(replace(SECAGG, fraction_bits=bits), None)
        errors.append(np.abs(code.decode(code.encode(vector, terms, PUBLIC, secret()), terms, PUBLIC) - vector).max())
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] <= 2.0**-33


@pytest.mark.parametrize("value", [2.0**31, np.nan, np.inf])
def test_what_would_wrap_is_refused_on_the_client(value: float) -> None:
    with pytest.raises(ValueError, match=r"exceeds|NaN or infinite"):
        EXACT.encode(np.array([value]), Terms(cohort=4, size=1), PUBLIC, secret())


def test_a_larger_cohort_leaves_each_client_less_room() -> None:
    value = np.array([2.0**28])
    EXACT.encode(value, Terms(cohort=4, size=1), PUBLIC, secret())
    with pytest.raises(ValueError, match="exceeds"):
        EXACT.encode(value, Terms(cohort=40, size=1), PUBLIC, secret())


def test_noise_is_for_the_smallest_cohort_under_the_bound_of_the_terms() -> None:
    size, terms = 2**14, Terms(2.0, 3.0, 3, 2**14)
    words = [NOISY.encode(np.zeros(size), terms, PUBLIC, secret(i)) for i in range(3)]
    noise = NOISY.decode(np.sum(words, axis=0, dtype=np.uint64), terms, PUBLIC)
    assert noise.std() == pytest.approx(3.0 * 2.0 * 1.001 * np.sqrt(3 / 2), rel=0.02)


def test_without_noise_the_sum_comes_back_through_the_rotation() -> None:
    vectors, terms = secret().normal(size=(3, SIZE)) / 100, Terms(1.0, 0.0, 3, SIZE)
    words = [NOISY.encode(vector, terms, PUBLIC, secret(i)) for i, vector in enumerate(vectors)]
    decoded = NOISY.decode(np.sum(words, axis=0, dtype=np.uint64), terms, PUBLIC)
    np.testing.assert_allclose(decoded, vectors.sum(0), atol=0.1)


def test_lengths() -> None:
    assert (EXACT.length(50), NOISY.length(50)) == (50, 64)


def test_an_empty_cohort_has_a_code_too() -> None:
    terms = Terms(cohort=0, size=SIZE)
    assert not EXACT.decode(EXACT.encode(np.zeros(SIZE), terms, PUBLIC, secret()), terms, PUBLIC).any()


def test_what_all_draw_alike_follows_from_seed_phase_and_round() -> None:
    draws = {
        public_streams(seed, Instruction("{}", phase, number)).integer("rotation")
        for seed in (1, 2)
        for phase in (0, 1)
        for number in (1, 2)
    }
    assert len(draws) == 8
    assert public_streams(1, Instruction("{}", 0, 1, ("a",))) == public_streams(1, Instruction("{}", 0, 1, ("b",)))
