"""Confidence limits of a share, against SciPy's exact binomial test."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from fedalign.privacy.confidence import clopper_pearson_lower, clopper_pearson_upper


@pytest.mark.parametrize(("successes", "trials"), [(0, 7), (1, 7), (3, 10), (10, 10), (17, 1000), (999, 1000)])
@pytest.mark.parametrize("alpha", [0.025, 0.1])
def test_limits_are_those_of_the_exact_binomial_interval(successes: int, trials: int, alpha: float) -> None:
    expected = stats.binomtest(successes, trials).proportion_ci(1 - 2 * alpha, method="exact")
    assert clopper_pearson_upper(successes, trials, alpha) == pytest.approx(expected.high, rel=1e-9)
    assert clopper_pearson_lower(successes, trials, alpha) == pytest.approx(expected.low, rel=1e-7, abs=1e-12)


@pytest.mark.parametrize("share", [0.01, 0.3])
def test_the_upper_limit_misses_the_true_share_as_rarely_as_it_says(share: float) -> None:
    counts = np.arange(51)
    missed = clopper_pearson_upper(counts, 50, 0.05) < share
    assert 0 <= stats.binom.pmf(counts, 50, share)[missed].sum() <= 0.05
