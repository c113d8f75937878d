"""DP-SGD's step: batches, noise, and what the mean is over."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fedalign.privacy.dp_sgd import UnitLosses, poisson_batch, private_gradients
from fedalign.privacy.local import DPSGD, GradSample, LocalPrivacy
from fedalign.privacy.noise import NoiseSource, SeededNoise, SystemNoise
from fedalign.rng import Streams

PLACE = Streams(3, "reward", 2, "client")
WIDE = 1e6


class Rows(UnitLosses):
    """Squared errors of a linear network on rows; remembers which were asked for."""

    def __init__(self, network: nn.Linear, count: int, scale: float = 1.0) -> None:
        generator = torch.Generator().manual_seed(0)
        self.network, self.scale = network, scale
        self.data = torch.randn(count, network.in_features, generator=generator)
        self.asked: list[list[int]] = []

    @property
    def units(self) -> int:
        return len(self.data)

    def losses(self, chosen: Tensor, step: int) -> Tensor:
        self.asked.append(chosen.tolist())
        return self.scale * self.network(self.data[chosen]).square().mean(1)


def privacy(
    rate: float, noise: float, clip: float = WIDE, mode: GradSample = "hooks", source: NoiseSource | None = None
) -> LocalPrivacy:
    return LocalPrivacy(DPSGD("example", clip, rate, mode), noise, source or SeededNoise())


def network(inputs: int = 4, outputs: int = 3) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Linear(inputs, outputs)


def steps(used: nn.Linear, units: UnitLosses, chosen: LocalPrivacy, count: int, place: Streams = PLACE) -> Tensor:
    """Return the flat gradients of some steps, float64, shape (count, parameters)."""
    found = []
    with private_gradients(used, units, chosen, place) as gradients:
        for step in range(count):
            gradients.write(step)
            found.append(torch.cat([p.grad.flatten() for p in used.parameters() if p.grad is not None]))
    return torch.stack(found).double()


@pytest.mark.parametrize("mode", ["loop", "hooks", "functorch"])
def test_without_noise_and_clipping_it_is_the_gradient_of_the_mean(mode: GradSample) -> None:
    """Law 4."""
    used = network()
    units = Rows(used, 6)
    (found,) = steps(used, units, privacy(1.0, 0.0, mode=mode), 1)
    used.zero_grad()
    units.losses(torch.arange(6), 0).mean().backward()
    expected = torch.cat([p.grad.flatten() for p in used.parameters() if p.grad is not None])
    torch.testing.assert_close(found.float(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("source", [SeededNoise(), SystemNoise()])
def test_the_noise_has_the_standard_deviation_that_is_accounted_for(source: NoiseSource) -> None:
    used = network(500, 400)
    units = Rows(used, 20, scale=0.0)
    (found,) = steps(used, units, privacy(0.3, 1.7, 0.5, source=source), 1)
    assert float(found.std()) == pytest.approx(1.7 * 0.5 / (0.3 * 20), rel=0.02)
    assert abs(float(found.mean())) < 5 * float(found.std()) / math.sqrt(len(found))


def test_noise_comes_on_top_of_the_clipped_sum_whatever_that_is() -> None:
    used = network(300, 300)
    plain = steps(used, Rows(used, 20), privacy(0.5, 0.0, 0.1), 1)
    noisy = steps(used, Rows(used, 20), privacy(0.5, 2.0, 0.1), 1)
    assert float((noisy - plain).std()) == pytest.approx(2.0 * 0.1 / 10, rel=0.02)
    assert bool(plain.any())


def test_the_mean_is_over_the_expected_batch_not_the_one_that_came() -> None:
    """Mistake 4: the same clipped units count the same, however many others came."""
    used = network()
    units = Rows(used, 40, scale=1e3)
    found = steps(used, units, privacy(0.25, 0.0, 0.5), 30)
    first, check, *others = units.asked
    assert check == first[:1], "one unit by itself, to check what hooks give"
    batches = [first, *others]
    assert len({len(batch) for batch in batches}) > 3
    for gradient, batch in zip(found, batches, strict=True):
        parts = torch.zeros_like(gradient)
        for unit in batch:
            used.zero_grad()
            units.losses(torch.tensor([unit]), 0).sum().backward()
            own = torch.cat([p.grad.flatten() for p in used.parameters() if p.grad is not None]).double()
            parts += 0.5 * own / own.norm()
        torch.testing.assert_close(gradient, parts / 10, rtol=1e-4, atol=1e-6)


@given(units=st.integers(1, 300), rate=st.floats(0.01, 1.0), seed=st.integers(0, 10))
def test_a_batch_is_rising_numbers_of_units(units: int, rate: float, seed: int) -> None:
    found = poisson_batch(units, rate, np.random.default_rng(seed)).tolist()
    assert found == sorted(set(found))
    assert all(0 <= unit < units for unit in found)
    assert rate < 1 or len(found) == units


def test_batches_are_poisson_and_not_a_shuffled_epoch() -> None:
    """Mistake 1: sizes vary as independent draws do, units come again, and batches may be empty."""
    generator = np.random.default_rng(0)
    batches = [poisson_batch(10, 0.2, generator).tolist() for _ in range(4000)]
    sizes = np.array([len(batch) for batch in batches])
    assert sizes.mean() == pytest.approx(2.0, rel=0.05)
    assert sizes.var() == pytest.approx(10 * 0.2 * 0.8, rel=0.1)
    assert (sizes == 0).mean() == pytest.approx(0.8**10, rel=0.2)
    together = np.mean([{0, 1} <= set(batch) for batch in batches])
    assert together == pytest.approx(0.04, rel=0.25)
    again = np.mean([0 in one and 0 in other for one, other in itertools.pairwise(batches)])
    assert again == pytest.approx(0.04, rel=0.25)


def test_an_empty_batch_gives_noise_alone() -> None:
    used = network(200, 200)
    units = Rows(used, 3)
    (found,) = steps(used, units, privacy(1e-6, 1.0, 1.0), 1)
    assert units.asked == []
    assert float(found.std()) == pytest.approx(1 / 3e-6, rel=0.02)
    (nothing,) = steps(used, units, privacy(1e-6, 0.0, 1.0), 1)
    assert not bool(nothing.any())


@pytest.mark.parametrize("source", [SeededNoise(), SystemNoise()])
def test_noise_of_steps_rounds_and_clients_is_uncorrelated(source: NoiseSource) -> None:
    """Mistake 11."""
    used = network(200, 200)
    chosen = privacy(0.5, 1.0, 1.0, source=source)
    places = [PLACE, PLACE.at(round=3), PLACE.at(client="other")]
    found = torch.cat([steps(used, Rows(used, 4, scale=0.0), chosen, 2, place) for place in places])
    correlations = torch.corrcoef(found) - torch.eye(len(found))
    assert float(correlations.abs().max()) < 0.03


def test_seeded_runs_repeat_and_secret_ones_do_not() -> None:
    """The batches too: whoever could draw them again would know who took part."""
    used = network()
    asked = []
    for source in (SeededNoise(), SeededNoise(), SystemNoise(), SystemNoise()):
        units = Rows(used, 40)
        gradients = steps(used, units, privacy(0.5, 1.0, 1.0, source=source), 2)
        asked.append((units.asked, gradients.tolist()))
    assert asked[0] == asked[1]
    assert asked[2][0] != asked[3][0]
    assert asked[2][1] != asked[3][1]
    assert asked[0][0] != asked[2][0]


def test_a_unit_changes_the_sum_by_no_more_than_the_bound() -> None:
    """Neighbouring data: whatever replaces a unit, its part before noise is within C over the expected batch."""
    used = network()
    generator = torch.Generator().manual_seed(1)
    others = Rows(used, 8, scale=100.0)
    for scale in (0.0, 1e-3, 1.0, 1e15, math.nan, math.inf):
        with_unit, without = Rows(used, 8, scale=100.0), others
        with_unit.data[7] = scale * torch.randn(4, generator=generator)
        (one,) = steps(used, with_unit, privacy(1.0, 0.0, 0.3), 1)
        without.losses = lambda chosen, step: (  # type: ignore[method-assign]
            100.0 * used(others.data[chosen]).square().mean(1) * (chosen != 7)
        )
        (other,) = steps(used, without, privacy(1.0, 0.0, 0.3), 1)
        assert float((one - other).norm()) <= 0.3 / 8 * (1 + 1e-5)


def test_hooks_are_taken_off_when_a_round_fails() -> None:
    used = network()

    class Broken(Rows):
        def losses(self, chosen: Tensor, step: int) -> Tensor:
            raise KeyError("data")

    with pytest.raises(KeyError), private_gradients(used, Broken(used, 3), privacy(1.0, 1.0), PLACE) as gradients:
        gradients.write(0)
    assert not hasattr(used, "autograd_grad_sample_hooks")
    assert not hasattr(used.weight, "grad_sample")


def test_noise_is_that_of_the_phase() -> None:
    """A phase that is not named has the noise of all others."""
    chosen = LocalPrivacy(
        DPSGD("example", 1.0, 1.0, "hooks"), 2.0, SeededNoise(), noise_multipliers={"sft": 5.0, "reward": 0.0}
    )
    found = {}
    for phase in ("sft", "reward", "other"):
        used = network(200, 200)
        silent = Rows(used, 4, scale=0.0)
        found[phase] = float(steps(used, silent, chosen, 1, Streams(3, phase, 2, "client")).std()) * 4
    assert found["reward"] == 0
    assert found["sft"] == pytest.approx(5.0, rel=0.03)
    assert found["other"] == pytest.approx(2.0, rel=0.03)
    assert (chosen.noise_in("sft"), chosen.noise_in("other")) == (5.0, 2.0)


def test_rate_and_bound_are_those_of_the_phase() -> None:
    """Batches are drawn, the sum divided, and gradients and noise bounded by what is charged for the phase."""
    settings = DPSGD("example", 1.0, 1.0, "hooks", rates={"sft": 0.25}, clips={"sft": 4.0})
    chosen = LocalPrivacy(settings, 3.0, SeededNoise())
    quiet = replace(chosen, noise_multiplier=0.0)
    drawn, spread, length = {}, {}, {}
    for phase in ("sft", "other"):
        place = Streams(3, phase, 2, "client")
        used = network(60, 60)
        units = Rows(used, 400)
        steps(used, units, quiet, 1, place)
        # What checks the way gradients are found asks for few.
        drawn[phase] = max(len(asked) for asked in units.asked)
        silent = Rows(network(100, 100), 400, scale=0.0)
        spread[phase] = float(steps(silent.network, silent, chosen, 1, place).std()) * 400
        lone = Rows(network(), 1, scale=1e6)
        length[phase] = float(steps(lone.network, lone, quiet, 30, place).norm(dim=1).max())
    assert drawn["other"] == 400
    assert drawn["sft"] == pytest.approx(100, abs=4.5 * (400 * 0.25 * 0.75) ** 0.5)
    assert spread["other"] == pytest.approx(3.0, rel=0.05)
    assert spread["sft"] == pytest.approx(3.0 * 4.0 / 0.25, rel=0.05)
    assert length["other"] == pytest.approx(1.0, rel=1e-5)
    assert length["sft"] == pytest.approx(4.0 / 0.25, rel=1e-5)
