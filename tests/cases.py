"""Which of a test's many cases are tried every time, and which with the slow tests only."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def mostly_slow(cases: Iterable[Any], fast: Collection[Any]) -> list[Any]:
    """Return the cases of a parametrized test, of which all but a representative few are slow.

    Parameters
    ----------
    cases : iterable
        Values, or tuples of values where the test has several parameters.
    fast : collection
        The cases that are not slow.

    Raises
    ------
    ValueError
        If one of ``fast`` is no case: it would not be tried at all.
    """
    cases = list(cases)
    unknown = [case for case in fast if case not in cases]
    if unknown:
        raise ValueError(f"no such cases: {unknown}")
    return [case if case in fast else _slow(case) for case in cases]


def _slow(case: Any) -> Any:
    values = case if isinstance(case, tuple) else (case,)
    return pytest.param(*values, marks=pytest.mark.slow)
