"""An audit in words: each verdict says what was found, and what that does not show."""

from __future__ import annotations

import pytest

from fedalign.privacy.audit import AuditResult
from fedalign.privacy.audit_bound import Bound
from fedalign.privacy.canary_audit import Normal
from fedalign.report.audit_report import COLUMNS, audit_rows, audit_sentence


def result(claimed: float | None, *epsilons: float) -> AuditResult:
    bounds = tuple(Bound(f"b{i}", e, 5.0, 0.975, "x" * i, "all right") for i, e in enumerate(epsilons))
    return AuditResult(claimed, 1e-5, 0.95, 4, 3, bounds, float("inf"), Normal(1.0, 1.0), Normal(0.0, 1.0))


@pytest.mark.parametrize(
    ("claimed", "epsilons", "begins", "holds"),
    [
        (2.0, (1.25, 1.0), "Consistent: epsilon is at least 1.25 at delta 1e-05 (97.5 % confidence)", "not prove"),
        (2.0, (2.25, 1.0), "Violated: epsilon is at least 2.25", "above the claimed 2.00"),
        (2.0, (1.0, 2.5), "Doubtful", "does not decide"),
        (7.0, (1.0, 2.0), "Consistent, but the audit could not fail", "5.00 at most"),
        (None, (1.0, 2.0), "No guarantee is claimed", "at least 1.00"),
        (float("inf"), (1.0,), "Consistent, but the audit could not fail", "claimed infinite"),
    ],
)
def test_the_sentence_tells_the_verdict_apart(
    claimed: float | None, epsilons: tuple[float, ...], begins: str, holds: str
) -> None:
    told = audit_sentence(result(claimed, *epsilons))
    assert told.startswith(begins)
    assert holds in told


def test_the_table_has_the_deciding_bound_first_and_the_estimate_last() -> None:
    rows = audit_rows(result(2.0, 1.25, 1.0))
    assert rows[0] == ("b0", "1.25", "97.5 %", "5.00", "nothing", "all right")
    assert rows[1][4] == "x"
    assert rows[-1][:2] == ("estimate, no bound", "infinite")
    assert {len(row) for row in rows} == {len(COLUMNS)}
