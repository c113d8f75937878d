"""An audit's outcome as text: one sentence, and a table of the bounds."""

from __future__ import annotations

import math

from fedalign.privacy.audit import AuditResult

COLUMNS = ("bound", "epsilon", "confidence", "at most", "assumes", "how")


def audit_sentence(result: AuditResult) -> str:
    """Return the outcome in one line, with what it does not show."""
    main = result.main
    found = f"epsilon is at least {main.epsilon:.2f} at delta {result.delta:g} ({100 * main.confidence:g} % confidence)"
    if result.claimed is None:
        return f"No guarantee is claimed; {found}"
    claim = f"the claimed {_epsilon(result.claimed)}"
    if result.verdict == "violated":
        return f"Violated: {found}, above {claim}"
    if result.verdict == "doubtful":
        return f"Doubtful: {found}, below {claim}, but a bound that does not decide lies above it"
    if not result.can_fail:
        ceiling = f"could show {main.ceiling:.2f} at most: use more"
        return f"Consistent, but the audit could not fail: {found}; against {claim}, so many canaries {ceiling}"
    return f"Consistent: {found}, not above {claim}; this does not prove the claim"


def audit_rows(result: AuditResult) -> list[tuple[str, ...]]:
    """Return the table's rows under ``COLUMNS``, the deciding bound first and the estimate last."""
    rows = [
        (
            bound.name,
            _epsilon(bound.epsilon),
            f"{100 * bound.confidence:g} %",
            _epsilon(bound.ceiling),
            bound.assumes or "nothing",
            bound.detail,
        )
        for bound in result.bounds
    ]
    return [*rows, ("estimate, no bound", _epsilon(result.estimate), "", "", "scores are normal", "")]


def _epsilon(value: float) -> str:
    return f"{value:.2f}" if math.isfinite(value) else "infinite"
