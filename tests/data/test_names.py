"""Suggestions for misspelt names."""

from __future__ import annotations

import pytest

from fedalign.data.names import suggest


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Germny", "; did you mean 'Germany'?"),
        ("INDIA (current NATIONAL sample)", "; did you mean 'India (Current national sample)'?"),
        ("zzz", "; known: 'Germany', 'India (Current national sample)'"),
    ],
)
def test_suggest(name: str, expected: str) -> None:
    assert suggest(name, ["Germany", "India (Current national sample)"]) == expected


def test_long_lists_are_cut_and_empty_ones_say_nothing() -> None:
    assert suggest("zzz", [f"name{i}" for i in range(10)]).endswith("'name7' and 2 more")
    assert suggest("zzz", []) == ""
