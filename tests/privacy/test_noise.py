"""Noise: its scale, its independence over rounds and clients, its sources and its resolution."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest

from fedalign.errors import UserError
from fedalign.privacy.noise import NoiseSource, SeededNoise, SystemNoise, add_gaussian, check_resolution, gaussian
from fedalign.rng import Streams

SIZE = 200_000
SOURCES = [SystemNoise(), SeededNoise()]


def draw(source: NoiseSource, streams: Streams, purpose: str = "sum", size: int = SIZE) -> np.ndarray:
    return gaussian(size, 1.0, source.generator(streams, purpose))


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("std", [1e-3, 1.7, 300.0])
def test_the_standard_deviation_is_the_one_asked_for(source: NoiseSource, std: float) -> None:
    noise = gaussian(SIZE, std, source.generator(Streams(1), "sum"))
    assert noise.dtype == np.float64
    assert noise.std() == pytest.approx(std, rel=0.02)
    assert abs(noise.mean()) < 6 * std / np.sqrt(SIZE)


@pytest.mark.parametrize("source", SOURCES)
def test_the_shape_is_gaussian(source: NoiseSource) -> None:
    assert kstest(draw(source, Streams(3), size=20_000), "norm").pvalue > 1e-6


@pytest.mark.parametrize("source", SOURCES)
def test_noise_of_rounds_clients_phases_and_purposes_is_uncorrelated(source: NoiseSource) -> None:
    places = [
        Streams(0).at(phase=phase, round=round_, client=client)
        for phase, round_, client in itertools.product(["a", "b"], [1, 2], ["", "c1"])
    ]
    rows = np.stack([draw(source, place, purpose) for place in places for purpose in ("sum", "count")])
    correlation = np.corrcoef(rows) - np.eye(len(rows))
    assert np.abs(correlation).max() < 6 / np.sqrt(SIZE)


def test_system_noise_never_repeats() -> None:
    streams, source = Streams(0), SystemNoise()
    firsts = {float(draw(source, streams, size=1)[0]) for _ in range(200)}
    assert len(firsts) == 200


def test_system_noise_takes_32_bytes_from_the_operating_system(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr("os.urandom", lambda size: asked.append(size) or bytes(range(size)))
    first, second = (draw(SystemNoise(), Streams(seed), size=4) for seed in (1, 2))
    assert asked == [32, 32]
    assert np.array_equal(first, second)  # nothing but the system's entropy takes part
    monkeypatch.setattr("os.urandom", lambda size: bytes([*range(size - 1), 0]))
    assert not np.array_equal(first, draw(SystemNoise(), Streams(1), size=4))
    monkeypatch.setattr("os.urandom", lambda size: bytes([1, *range(1, size)]))
    assert not np.array_equal(first, draw(SystemNoise(), Streams(1), size=4))


def test_seeded_noise_follows_from_the_place_and_from_nothing_else() -> None:
    source, place = SeededNoise(), Streams(7, "train", 3, "c1")
    assert np.array_equal(draw(source, place, size=9), draw(source, place, size=9))
    others = [place.at(round=4), place.at(client="c2"), place.at(phase="other"), Streams(8, "train", 3, "c1")]
    assert all(not np.array_equal(draw(source, place, size=9), draw(source, other, size=9)) for other in others)
    assert not np.array_equal(draw(source, place, size=9), place.numpy("sum").standard_normal(9))


def test_only_system_noise_is_secret() -> None:
    assert (SystemNoise().secret, SeededNoise().secret) == (True, False)


@pytest.mark.parametrize("std", [-1.0, np.nan, np.inf])
def test_a_standard_deviation_must_be_finite_and_not_negative(std: float) -> None:
    generator = np.random.default_rng(0)
    for call in (lambda: gaussian(2, std, generator), lambda: check_resolution(std, 1.0)):
        with pytest.raises(ValueError, match="standard deviation"):
            call()


@pytest.mark.parametrize(("std", "largest"), [(1e-7, 1.0), (1.0, 1e16), (1e-300, 1.0), (1.0, np.inf), (1.0, np.nan)])
def test_noise_that_float64_loses_is_refused(std: float, largest: float) -> None:
    with pytest.raises(UserError, match="lost in float64"):
        check_resolution(std, largest)


@pytest.mark.parametrize(("std", "largest"), [(1e-6, 1.0), (1.0, 1e6), (0.0, 1e300), (1e-300, 0.0), (3e8, 1.0)])
def test_noise_that_float64_carries_is_accepted(std: float, largest: float) -> None:
    check_resolution(std, largest)


@given(value=st.floats(-1e3, 1e3), std=st.floats(1e-2, 1e2), seed=st.integers(0, 99))
def test_noisy_values_lie_on_a_grid_that_the_values_do_not_shift(value: float, std: float, seed: int) -> None:
    noisy = add_gaussian(np.full(5, value), std, np.random.default_rng(seed))
    exact = value + gaussian(5, std, np.random.default_rng(seed))
    step = std * 2.0**-16
    assert np.abs(noisy - exact).max() <= step
    cells = noisy / 2.0 ** np.floor(np.log2(step))
    assert np.array_equal(cells, np.round(cells))


def test_the_grid_does_not_change_the_standard_deviation() -> None:
    values = np.linspace(-5, 5, SIZE)
    noise = add_gaussian(values, 0.37, np.random.default_rng(0)) - values
    assert noise.std() == pytest.approx(0.37, rel=0.02)


def test_no_noise_returns_a_copy_of_the_values() -> None:
    values = np.array([1.0, 1e300])
    same = add_gaussian(values, 0.0, np.random.default_rng(0))
    assert np.array_equal(same, values)
    assert same is not values
