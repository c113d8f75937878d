"""Canary units: a step of DP-SGD moves the parameters along their directions, as far as the clip lets them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedalign.privacy.canaries import Canaries
from fedalign.privacy.canary_units import CanaryLocalPrivacy
from fedalign.privacy.dp_sgd import UnitLosses, private_gradients
from fedalign.privacy.local import DPSGD
from fedalign.privacy.noise import SeededNoise
from fedalign.rng import Streams

PLACE = Streams(1, "gpo", 2, "ada")
CANARIES = Canaries(count=20, norm=10.0, seed=3, opposed=False)


class Still(UnitLosses):
    """Three units that pull nowhere, and remember who was asked for."""

    units = 3

    def __init__(self, network: nn.Linear) -> None:
        self.network, self.asked = network, list[int]()

    def losses(self, chosen: Tensor, step: int) -> Tensor:
        self.asked += chosen.tolist()
        return torch.stack([0.0 * self.network.weight.sum() + 0.0 * self.network.bias.sum() for _ in chosen])


def network() -> nn.Linear:
    layer = nn.Linear(30, 20)
    layer.register_parameter("frozen", nn.Parameter(torch.ones(4), requires_grad=False))
    return layer


def gradient(used: nn.Linear, rate: float, clip: float = 0.5, noise: float = 0.0) -> tuple[np.ndarray, Still]:
    own = Still(used)
    privacy = CanaryLocalPrivacy(DPSGD("user", clip, rate, "loop"), noise, SeededNoise(), CANARIES)
    with private_gradients(used, own, privacy, PLACE) as writer:
        writer.write(0)
    assert used.weight.grad is not None and used.bias.grad is not None
    return torch.cat([used.weight.grad.flatten(), used.bias.grad]).double().numpy(), own


def test_a_step_is_the_sum_of_the_included_directions_at_the_clip() -> None:
    """The mean is over all units, held-out canaries too, whose number is public."""
    found, own = gradient(network(), 1.0)
    rows = np.stack([CANARIES.direction(number, "gpo", 620) for number in range(20)])
    # A step goes against the gradient, and so along the directions.
    assert np.allclose(found, -0.5 * rows[CANARIES.included].sum(0) / (3 + 20), atol=1e-6)
    assert own.asked == [0, 1, 2]


def test_canaries_pull_as_hard_as_the_bound_of_the_phase_and_harder() -> None:
    """Else a canary would not be clipped where a phase has a wider bound, and a missing clip would not show."""
    used = network()
    settings = DPSGD("user", 0.5, 1.0, "loop", clips={PLACE.phase: 2.0})
    joined = CanaryLocalPrivacy(settings, 0.0, SeededNoise(), CANARIES).joined(Still(used), used, PLACE)
    included = 3 + int(np.flatnonzero(CANARIES.included)[0])
    joined.losses(torch.tensor([included]), 0).sum().backward()
    assert used.weight.grad is not None and used.bias.grad is not None
    pull = torch.cat([used.weight.grad.flatten(), used.bias.grad]).norm()
    assert float(pull) == pytest.approx(2.0 * CANARIES.norm, rel=1e-5)


def test_canaries_are_drawn_into_batches_like_everyone() -> None:
    rows = np.stack([CANARIES.direction(number, "gpo", 620) for number in range(20)])
    found, _ = gradient(network(), 0.5)
    shares = np.linalg.lstsq(rows.T, -found * 0.5 * 23 / 0.5, rcond=None)[0]
    assert np.allclose(shares, shares.round(), atol=1e-4)
    assert set(shares.round()) == {0.0, 1.0}
    assert not shares.round()[~CANARIES.included].any()


@pytest.mark.parametrize("clip", [0.1, 7.0])
def test_a_canary_is_longer_than_the_clip_at_any(clip: float) -> None:
    found, _ = gradient(network(), 1.0, clip)
    reference, _ = gradient(network(), 1.0, 1.0)
    assert np.allclose(found, clip * reference, atol=1e-6)


def test_canaries_of_other_stages_are_silent() -> None:
    """They are units all the same, so that neither batches nor the mean depend on stages."""
    staged = Canaries(20, 10.0, 3, False, (("rl",), ("sft",)))
    used = network()
    privacy = CanaryLocalPrivacy(
        DPSGD("user", 0.5, 1.0, "loop"), 0.0, SeededNoise(), staged, stages={"gpo": "sft", "prior": None}
    )
    for phase, chosen in (("gpo", staged.included & staged.within("sft")), ("prior", staged.included)):
        with private_gradients(used, Still(used), privacy, Streams(1, phase, 2, "ada")) as writer:
            writer.write(0)
        assert used.weight.grad is not None and used.bias.grad is not None
        found = torch.cat([used.weight.grad.flatten(), used.bias.grad]).double().numpy()
        rows = np.stack([staged.direction(number, phase, 620) for number in range(20)])
        assert np.allclose(found, -0.5 * rows[chosen].sum(0) / (3 + 20), atol=1e-6)
