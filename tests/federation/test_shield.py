"""What leaves a client: bounded, checked, and without what is not to be told."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedalign.contribution import Contribution
from fedalign.federation.messages import Terms
from fedalign.federation.shield import NORM_BIT, check, metric_scalars, shield, shield_metrics
from fedalign.metrics.record import MetricSum, decode, encode
from fedalign.privacy.adaptive_clipping import AdaptiveClip
from fedalign.privacy.client_level import ClientLevel
from fedalign.privacy.local import DPSGD
from fedalign.privacy.metric_release import WithheldMetrics
from fedalign.template import Template

from .guarded import PLAIN_SUM, protection, secure_sum

TEMPLATE = Template({"delta/w": (3,), "counts": (2,)})
TERMS = Terms(bound=0.5)
ADAPTIVE = ClientLevel(0.5, {}, {}, 1.0, AdaptiveClip(0.5, 0.2, 0.05))


def told(
    delta: Any = (1.0, 2.0, 2.0), weight: float = 1.0, dtype: torch.dtype = torch.float64, **more: float
) -> Contribution:
    return Contribution({"delta/w": torch.tensor(delta, dtype=dtype)}, {"weight": weight, **more})


EXTREME = {
    "zero": told((0.0, 0.0, 0.0)),
    "huge": told((1e30, -1e30, 1e30)),
    "huge in float32": told((1e30, -1e30, 1e30), dtype=torch.float32),
    "fp16": told((6e4, 6e4, 6e4), dtype=torch.float16),
    "tiny": told((1e-30, 0.0, 0.0)),
    "huge weight": told((1e30, 0.0, 0.0), weight=1e30),
    "no weight": told((5.0, 0.0, 0.0), weight=0.0),
    "missing tensors": Contribution(scalars={"weight": 1.0}),
    "huge counts": Contribution({"counts": torch.full((2,), 1e30)}, {"weight": 1.0}),
}


@pytest.mark.parametrize("kind", EXTREME)
def test_what_travels_is_within_the_bound_whatever_was_told(kind: str) -> None:
    shielded = shield(EXTREME[kind], TEMPLATE, protection(), TERMS)
    travels = shielded.to_contribution(TEMPLATE)
    assert travels.norm() <= 0.5 * (1 + 1e-6)
    assert travels.scalars == {"weight": 1.0}
    TEMPLATE.check(travels)


@given(
    delta=st.lists(st.floats(-1e30, 1e30), min_size=3, max_size=3),
    weight=st.floats(0, 1e30),
    bound=st.floats(1e-3, 1e3),
)
def test_no_contribution_and_no_weight_passes_the_bound(delta: list[float], weight: float, bound: float) -> None:
    travels = shield(told(delta, weight), TEMPLATE, protection(), Terms(bound=bound)).to_contribution(TEMPLATE)
    assert travels.norm() <= bound * (1 + 1e-6)


STRANGE = {
    "NaN": told((math.nan, 0.0, 0.0)),
    "Inf": told((math.inf, 0.0, 0.0)),
    "wrong shape": told((1.0, 2.0)),
    "extra tensor": Contribution({"delta/w": torch.ones(3), "delta/v": torch.ones(3)}, {"weight": 1.0}),
    "negative weight": told(weight=-1.0),
    "infinite weight": told(weight=math.inf),
    "NaN weight": told(weight=math.nan),
    "fp16 overflow": told((7e4, 0.0, 0.0), dtype=torch.float16),
}


@pytest.mark.parametrize("kind", STRANGE)
@pytest.mark.parametrize("privacy", [protection(), secure_sum()], ids=["central", "secure_sum"])
def test_what_must_not_be_added_does_not_leave(kind: str, privacy: Any) -> None:
    with pytest.raises(ValueError, match=r"delta|weight"):
        shield(STRANGE[kind], TEMPLATE, privacy, TERMS)
    with pytest.raises(ValueError, match=r"delta|weight"):
        check(STRANGE[kind], TEMPLATE)


def test_without_a_template_nothing_is_known_to_be_strange() -> None:
    assert check(STRANGE["NaN"], None) is STRANGE["NaN"]


METRICS = encode([MetricSum("train/loss", "ada", 0.5, 1.0)])


def test_metrics_of_training_leave_only_where_they_are_open() -> None:
    with_metrics = told(**METRICS, secret=3.0)
    assert shield(with_metrics, TEMPLATE, protection(), TERMS).metrics == METRICS
    for privacy in (protection(metrics=WithheldMetrics()), secure_sum()):
        assert shield(with_metrics, TEMPLATE, privacy, TERMS).metrics == {}


def test_other_scalars_never_leave() -> None:
    travels = shield(told(secret=3.0), TEMPLATE, protection(), TERMS).to_contribution(TEMPLATE)
    assert set(travels.scalars) == {"weight"}


def test_a_metric_that_is_no_number_is_found_on_the_client() -> None:
    """On the server it would take all clients of a node along."""
    broken = told(**encode([MetricSum("train/loss", "ada", math.nan, 1.0)]))
    with pytest.raises(ValueError, match=r"train/loss.* is nan"):
        shield(broken, TEMPLATE, protection(), TERMS)


@pytest.mark.parametrize(("length", "bit"), [(0.4, 0.5), (0.5, 0.5), (0.6, -0.5), (1e30, -0.5), (0.0, 0.5)])
def test_the_norm_bit_is_of_the_norm_before_clipping_and_of_this_rounds_bound(length: float, bit: float) -> None:
    shielded = shield(told((length, 0.0, 0.0)), TEMPLATE, protection(clip=ADAPTIVE), TERMS)
    assert shielded.extras == {"weight": 1.0, NORM_BIT: bit}


def test_the_bound_is_that_of_the_terms() -> None:
    vector = shield(told((9.0, 0.0, 0.0)), TEMPLATE, protection(), Terms(bound=2.0)).vector
    assert np.linalg.norm(vector) == pytest.approx(2.0)


def test_a_secure_sum_without_noise_changes_nothing() -> None:
    shielded = shield(told(weight=4.0), TEMPLATE, secure_sum(), Terms())
    assert shielded.vector.tolist() == [1.0, 2.0, 2.0, 0.0, 0.0]
    assert shielded.extras == {"weight": 4.0}


def test_beside_local_noise_numbers_of_examples_are_not_told() -> None:
    local = protection(**{**PLAIN_SUM, "epsilon": 1.0, "delta": 1e-5, "local": DPSGD("user", 1.0, 0.5, "loop")})
    given = Contribution({"delta/w": torch.tensor([4.0, 8.0, 8.0]), "counts": torch.ones(2)}, {"weight": 4.0})
    shielded = shield(given, TEMPLATE, local, Terms())
    assert shielded.vector.tolist() == [1.0, 2.0, 2.0, 1.0, 1.0]
    assert shielded.extras == {"weight": 1.0}
    nothing = shield(told((0.0, 0.0, 0.0), weight=0.0), TEMPLATE, local, Terms())
    assert nothing.extras["weight"] == 0.0


NAMES = ("a", "b")


def test_a_client_tells_one_value_a_metric_the_mean_over_its_groups() -> None:
    sums = encode([MetricSum("a", "g", 1.0, 2.0), MetricSum("a", "h", 3.0, 4.0), MetricSum("c", "g", 9.0, 9.0)])
    assert shield_metrics(Contribution(scalars=sums), NAMES, True).tolist() == [0.625, 1.0, 0.0, 0.0]


@given(
    values=st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=3),
    n=st.one_of(st.floats(1e-3, 1e6), st.just(0.0)),
)
def test_private_values_are_cut_to_one_client_bound(values: list[float], n: float) -> None:
    sums = encode([MetricSum("a", f"g{i}", value, n) for i, value in enumerate(values)])
    vector = shield_metrics(Contribution(scalars=sums), NAMES, True)
    assert np.isfinite(vector).all()
    assert np.linalg.norm(vector) <= math.sqrt(2 * len(NAMES))


def test_values_are_not_cut_where_nothing_is_promised() -> None:
    sums = encode([MetricSum("a", "g", -7.0, 2.0)])
    assert shield_metrics(Contribution(scalars=sums), NAMES, False).tolist() == [-3.5, 1.0, 0.0, 0.0]


def test_values_travel_under_one_name_for_everybody() -> None:
    (one, other) = decode(metric_scalars(np.array([0.5, 1.0, 0.25, 2.0]), NAMES))
    assert one == MetricSum("a", "all", 0.5, 1.0)
    assert other == MetricSum("b", "all", 0.25, 2.0)
