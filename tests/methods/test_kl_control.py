"""The adaptive weight of the divergence, against Ziegler et al.'s controller."""

from __future__ import annotations

import pytest
import torch

from fedalign.contribution import Contribution
from fedalign.methods.kl_control import AdaptiveKL
from fedalign.metrics.record import MetricSum, encode


def told(*sums: tuple[str, float, float]) -> Contribution:
    return Contribution(scalars=encode([MetricSum("train/kl", *each) for each in sums]))


@pytest.mark.parametrize(
    ("mean", "factor"),
    [
        (6.0, 1.0),
        (6.6, 1 + 0.1 * 50 / 1000),
        (5.4, 1 - 0.1 * 50 / 1000),
        # Errors count up to a fifth.
        (60.0, 1 + 0.2 * 50 / 1000),
        (-3.0, 1 - 0.2 * 50 / 1000),
    ],
)
def test_the_weight_follows_the_divergence(mean: float, factor: float) -> None:
    control = AdaptiveKL(target=6.0, horizon=1000.0)
    # The mean is over all responses, whichever groups they are of.
    total = told(("x", mean * 10, 10.0), ("y", mean * 40, 40.0))
    assert float(control.next(torch.tensor(0.2), total)) == pytest.approx(0.2 * factor, rel=1e-6)


def test_it_stays_where_nothing_is_told_and_never_falls_below_zero() -> None:
    control = AdaptiveKL(target=6.0, horizon=1.0)
    assert control.next(torch.tensor(0.2), Contribution()) == torch.tensor(0.2)
    assert float(control.next(torch.tensor(0.2), told(("x", 0.0, 50.0)))) == 0.0
