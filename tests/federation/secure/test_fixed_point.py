"""The fixed-point code: its rounding, its borders, and sums that never wrap unnoticed."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedalign.federation.secure.fixed_point import FixedPoint, ModularIntegers, word_type

codes = st.builds(FixedPoint, st.sampled_from([32, 64]), st.integers(0, 24), st.integers(1, 200))


@given(code=codes, data=st.data())
def test_a_sum_of_encoded_values_is_their_sum_to_the_stated_error(code: FixedPoint, data: st.DataObject) -> None:
    values = data.draw(st.lists(st.floats(-code.largest, code.largest), min_size=1, max_size=min(code.parties, 20)))
    words = [code.encode(np.array([value])) for value in values]
    (decoded,) = code.decode(np.sum(words, axis=0, dtype=word_type(code.bits)))
    exact = sum(map(Fraction, values))
    error = abs(Fraction(float(decoded)) - exact)
    assert error <= Fraction(code.quantisation_error(len(values))) + Fraction(2) ** -53 * abs(Fraction(float(decoded)))


@given(code=codes, sign=st.sampled_from([1, -1]))
def test_the_largest_value_fits_for_all_parties_and_the_next_one_is_refused(code: FixedPoint, sign: int) -> None:
    largest = code.largest
    assert Fraction(largest) * 2**code.fraction_bits * code.parties < 2 ** (code.bits - 1)
    whole_cohort = code.encode(np.array([sign * largest])) * word_type(code.bits).type(code.parties)
    assert math.copysign(1, code.decode(whole_cohort)[0]) == sign
    assert code.decode(whole_cohort)[0] == pytest.approx(sign * largest * code.parties, rel=1e-15)
    with pytest.raises(ValueError, match="a value exceeds"):
        code.encode(np.array([0.0, sign * math.nextafter(largest, math.inf)]))


@given(code=codes)
def test_the_border_leaves_no_room_unused(code: FixedPoint) -> None:
    # One unit of the last place, of the word or of float64, above the border the sum could reach 2^(bits - 1).
    step = max(Fraction(2) ** -code.fraction_bits, Fraction(math.ulp(code.largest)))
    assert (Fraction(code.largest) + step) * 2**code.fraction_bits * code.parties >= 2 ** (code.bits - 1) - 1


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("bits", [32, 64])
def test_what_is_no_number_is_refused(bits: int, bad: float) -> None:
    with pytest.raises(ValueError, match="NaN or infinite"):
        FixedPoint(bits, 16, 2).encode(np.array([0.0, bad]))


def test_a_refusal_does_not_repeat_the_private_value() -> None:
    with pytest.raises(ValueError) as caught:
        FixedPoint(32, 16, 2).encode(np.array([987654321.0]))
    assert "98765" not in str(caught.value)


def test_sixty_four_bits_carry_all_fifty_three_of_a_float() -> None:
    code = FixedPoint(64, 53, 10)
    values = np.random.default_rng(0).uniform(0.5, 1, 1000)
    np.testing.assert_array_equal(code.decode(code.encode(values)), values)


def test_a_sum_beyond_fifty_three_bits_decodes_to_the_nearest_float() -> None:
    code = FixedPoint(64, 10, 2)
    term = 2**60 + 1
    words = code.integers.encode(np.array([term], dtype=np.int64), check=True) * np.uint64(2)
    assert int(code.integers.decode(words)[0]) == 2 * term
    assert code.decode(words)[0] == float(Fraction(2 * term, 2**10))


def test_single_precision_is_encoded_exactly() -> None:
    values = np.array([0.1, -2.5e-3], dtype=np.float32)
    np.testing.assert_array_equal(FixedPoint(64, 40, 3).decode(FixedPoint(64, 40, 3).encode(values)), values)


@given(bits=st.sampled_from([32, 64]), parties=st.integers(1, 100), sign=st.sampled_from([1, -1]))
def test_integers_are_checked_at_the_border(bits: int, parties: int, sign: int) -> None:
    code = ModularIntegers(bits, parties)
    assert code.limit * parties < 2 ** (bits - 1) <= (code.limit + 1) * parties
    at = np.array([sign * code.limit], dtype=np.int64)
    assert int(code.decode(code.encode(at, check=True))[0]) == int(at[0])
    if code.limit + 1 < 2**63:
        with pytest.raises(ValueError, match="exceeds"):
            code.encode(at + sign, check=True)


@given(bits=st.sampled_from([32, 64]), values=st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=9))
def test_unchecked_integers_add_up_modulo_the_width(bits: int, values: list[int]) -> None:
    code = ModularIntegers(bits, 9)
    words = code.encode(np.array(values, dtype=np.int64), check=False)
    (decoded,) = code.decode(np.sum(words, keepdims=True, dtype=words.dtype))
    assert (int(decoded) - sum(values)) % 2**bits == 0
    assert -(2 ** (bits - 1)) <= decoded < 2 ** (bits - 1)


def test_other_types_are_refused() -> None:
    code = ModularIntegers(32, 2)
    with pytest.raises(ValueError, match="int64 expected"):
        code.encode(np.array([1.0]), check=True)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="uint32 expected"):
        code.decode(np.array([1], dtype=np.uint64))


@given(values=st.lists(st.floats(-1, 1), min_size=1, max_size=40), fraction_bits=st.integers(2, 30))
def test_towards_zero_no_vector_gets_longer(values: list[float], fraction_bits: int) -> None:
    code = FixedPoint(64, fraction_bits, 10)
    vector = np.array(values)
    back = code.decode(code.encode(vector, towards_zero=True))
    assert np.linalg.norm(back) <= np.linalg.norm(vector)
    np.testing.assert_allclose(back, vector, atol=2.0**-fraction_bits)
