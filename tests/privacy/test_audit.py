"""The audit as a whole: a Gaussian mechanism whose epsilon is known, and what the audit says of claims about it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import dp_accounting
import numpy as np
import pytest

from fedalign.build import build
from fedalign.errors import UserError
from fedalign.privacy.audit import AuditResult, AuditSettings, audit
from fedalign.privacy.audit_bound import Bound, CanaryScores
from fedalign.privacy.canary_audit import CanaryBound, Normal
from fedalign.privacy.one_run_audit import OneRunBound, one_run_bound
from fedalign.privacy.roc_audit import GdpBound, RocBound
from tests.cases import mostly_slow

DELTA = 1e-5
SHARES = (0.0, 0.01, 0.05, 0.2, 0.5)
SETTINGS = AuditSettings(
    confidence=0.95,
    main="one_run",
    one_run=OneRunBound((0.9, 0.5, 0.2, 0.1)),
    roc=RocBound(SHARES),
    gdp=GdpBound(SHARES),
    canary=CanaryBound(100),
)
ALONE = replace(SETTINGS, roc=None, gdp=None, canary=None)


def run(sigma: float, count: int, generator: np.random.Generator) -> CanaryScores:
    """Return scores of a mechanism with noise of deviation ``sigma`` and sensitivity 1; a coin includes each canary."""
    coins = generator.random(count) < 0.5
    scores = coins + sigma * generator.standard_normal(count)
    return CanaryScores(scores[coins], scores[~coins], fair_coins=True)


def result(claimed: float | None, *epsilons: float) -> AuditResult:
    bounds = tuple(Bound(f"bound {i}", e, 5.0, 0.975, "", "") for i, e in enumerate(epsilons))
    return AuditResult(claimed, DELTA, 0.95, 10, 12, bounds, 9.0, Normal(1.0, 1.0), Normal(0.0, 1.0))


@pytest.mark.parametrize("sigma", mostly_slow([0.4, 1.0, 3.0], [1.0]))
def test_a_true_claim_is_consistent_as_often_as_the_confidence_says(sigma: float) -> None:
    generator = np.random.default_rng(0)
    truth = dp_accounting.get_epsilon_gaussian(sigma, DELTA)
    verdicts = [
        audit(run(sigma, 300, generator), SETTINGS, delta=DELTA, claimed=truth, generator=generator).verdict
        for _ in range(40)
    ]
    assert verdicts.count("consistent") >= 0.95 * 40


def test_the_deciding_bound_alone_stays_below_the_truth() -> None:
    generator = np.random.default_rng(1)
    truth = dp_accounting.get_epsilon_gaussian(1.0, DELTA)
    decides = OneRunBound((0.9, 0.5, 0.2, 0.1))
    bounds = [decides.epsilon(run(1.0, 300, generator), DELTA, 0.05, generator)[0] for _ in range(200)]
    assert np.mean(np.array(bounds) > truth) <= 0.05
    assert np.mean(bounds) > 0.15 * truth


@pytest.mark.parametrize("claimed", [1.0, 4.0])
def test_a_tenth_of_the_claimed_noise_is_found(claimed: float) -> None:
    sigma = dp_accounting.get_sigma_gaussian(claimed, DELTA)
    generator = np.random.default_rng(2)
    for _ in range(10):
        found = audit(run(sigma / 10, 1000, generator), ALONE, delta=DELTA, claimed=claimed, generator=generator)
        assert found.can_fail
        assert found.verdict == "violated"


def test_a_large_claim_needs_more_canaries_or_a_bound_that_knows_the_noise() -> None:
    claimed = 8.0
    scores = run(dp_accounting.get_sigma_gaussian(claimed, DELTA) / 10, 1000, np.random.default_rng(3))
    few = audit(scores, ALONE, delta=DELTA, claimed=claimed, generator=np.random.default_rng(0))
    assert (few.verdict, few.can_fail) == ("consistent", False)
    assert few.main.epsilon == pytest.approx(few.main.ceiling, abs=0.05)
    by_noise = replace(ALONE, main="gdp", one_run=None, gdp=GdpBound(SHARES))
    known = audit(scores, by_noise, delta=DELTA, claimed=claimed, generator=np.random.default_rng(0))
    assert (known.verdict, known.can_fail) == ("violated", True)


def test_the_ceiling_is_the_bound_of_a_perfect_attack() -> None:
    scores = CanaryScores(np.zeros(50), np.zeros(50), fair_coins=True)
    every = replace(ALONE, one_run=OneRunBound((1.0,)))
    main = audit(scores, every, delta=DELTA, claimed=1.0, generator=np.random.default_rng(0)).main
    assert (main.epsilon, main.confidence) == (0.0, pytest.approx(0.95))
    assert main.ceiling == pytest.approx(one_run_bound(100, 100, 100, DELTA))


@pytest.mark.parametrize("main", ["one_run", "roc", "gdp", "canary"])
def test_the_error_probability_is_divided_in_advance_and_the_main_bound_comes_first(main: Any) -> None:
    allotted = replace(SETTINGS, main=main).allotted()
    assert allotted[0] == (getattr(SETTINGS, main), pytest.approx(0.025))
    assert len(allotted) == 4
    assert sum(alpha for _, alpha in allotted) == pytest.approx(0.05)
    assert ALONE.allotted() == [(ALONE.one_run, pytest.approx(0.05))]


@pytest.mark.parametrize(
    ("claimed", "epsilons", "verdict"),
    [
        (2.0, (1.0, 1.9), "consistent"),
        (2.0, (2.0, 2.0), "consistent"),
        (2.0, (2.1, 0.0), "violated"),
        (2.0, (1.0, 2.1), "doubtful"),
        (None, (1.0, 2.1), "no claim"),
        (float("inf"), (1.0, 2.1), "consistent"),
    ],
)
def test_the_verdict(claimed: float | None, epsilons: tuple[float, ...], verdict: str) -> None:
    assert result(claimed, *epsilons).verdict == verdict


def test_what_cannot_be_refuted_is_told() -> None:
    assert result(4.9, 1.0).can_fail
    assert not result(5.0, 1.0).can_fail
    assert not result(None, 1.0).can_fail


def test_the_estimate_is_not_among_the_bounds_of_the_verdict() -> None:
    assert result(2.0, 1.0).estimate > 2.0
    assert result(2.0, 1.0).verdict == "consistent"


def test_json_is_strict_and_complete() -> None:
    scores = run(1.0, 100, np.random.default_rng(4))
    found = audit(scores, SETTINGS, delta=DELTA, claimed=float("inf"), generator=np.random.default_rng(0))
    told = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert told["epsilon_claimed"] is None
    assert told["epsilon_lower_bound"] == found.main.epsilon == told["bounds"][0]["epsilon"]
    assert told["verdict"] == "consistent" and told["can_fail"] is False
    assert told["canaries"] == {"included": len(scores.included), "held_out": len(scores.held_out)}
    assert [b["name"] for b in told["bounds"]] == ["one run", "error rates", "Gaussian trade-off", "Gaussian fit"]
    assert told["bounds"][3]["ceiling"] is None
    assert told["fit"]["included"]["mean"] == pytest.approx(scores.included.mean())


def test_the_same_generator_gives_the_same_result() -> None:
    scores = run(1.0, 200, np.random.default_rng(5))
    first, second = (
        audit(scores, SETTINGS, delta=DELTA, claimed=4.0, generator=np.random.default_rng(7)) for _ in range(2)
    )
    assert first == second


def test_settings_are_built_from_a_config_node() -> None:
    node: dict[str, Any] = {
        "confidence": 0.95,
        "main": "one_run",
        "one_run": {"shares": [0.9, 0.5, 0.2, 0.1]},
        "roc": {"shares": list(SHARES)},
        "gdp": {"shares": list(SHARES)},
        "canary": {"resamples": 100},
    }
    assert build(node, AuditSettings, "audit") == SETTINGS
    assert build({**node, "roc": None, "gdp": None, "canary": None}, AuditSettings, "audit") == ALONE
    for wrong in ({"confidence": 0.3}, {"main": "best"}, {"one_run": {"shares": [0.0]}}, {"canary": {"resamples": 3}}):
        with pytest.raises(UserError):
            build({**node, **wrong}, AuditSettings, "audit")
    with pytest.raises(UserError, match=r"audit\.main=roc"):
        build({**node, "main": "roc", "roc": None}, AuditSettings, "audit")


@pytest.mark.parametrize("delta", [0.0, 1.0])
def test_a_delta_that_is_no_probability_is_refused(delta: float) -> None:
    scores = run(1.0, 50, np.random.default_rng(0))
    with pytest.raises(UserError, match="delta="):
        audit(scores, SETTINGS, delta=delta, claimed=1.0, generator=np.random.default_rng(0))


@pytest.mark.parametrize(
    ("included", "message"),
    [
        (np.ones(1), "at least two"),
        (np.zeros((3, 2)), "at least two"),
        (np.array([1.0, np.nan, np.inf]), "2 of 3"),
    ],
)
def test_scores_that_cannot_be_audited_are_refused(included: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        CanaryScores(included, np.zeros(5), fair_coins=True)
