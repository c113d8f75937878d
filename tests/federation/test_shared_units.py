"""Which phases share units: against what each unit sees by itself."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedalign.federation.exposure import Exposure, Part
from fedalign.federation.shared_units import components, composition_of, parts_of
from fedalign.privacy.scheme import Sampling, Scheme

EVERYONE = Sampling(Scheme.EVERYONE, 6, 6.0)
UNITS = "abcdef"


def phases(*parts: str | None) -> list[Exposure]:
    """Return phases over the units named by letters; None is over all."""
    return [
        Exposure(str(n), 1, EVERYONE, 8, 0, 1, None if part is None else Part(str(n), frozenset(part)))
        for n, part in enumerate(parts)
    ]


def histories(exposures: Sequence[Exposure]) -> dict[str, set[str]]:
    """Return the phases that each unit may be in."""
    return {
        unit: {e.name for e in exposures if e.part is None or unit in e.part.units}
        for unit in {*UNITS, *(u for e in exposures if e.part for u in e.part.units)}
    }


@pytest.mark.parametrize(
    ("parts", "groups", "word"),
    [
        (["ab", "cd"], 2, "parallel"),
        (["ab", "ab"], 1, "sequential"),
        (["abc", "cd"], 1, "sequential"),
        (["ab", "bc", "cd"], 1, "mixed"),
        (["ab", "cd", "b"], 2, "mixed"),
        (["ab", "cd", None], 1, "mixed"),
        ([None, "cd"], 1, "sequential"),
        ([None, None], 1, "sequential"),
        (["ab"], 1, "sequential"),
        ([None], 1, "sequential"),
        (["ab", "cd", "ef"], 3, "parallel"),
        (["ab", "cd", "bc"], 1, "mixed"),
    ],
)
def test_costs_come_together_as_units_do(parts: list[str | None], groups: int, word: str) -> None:
    exposures = phases(*parts)
    assert (len(components(exposures)), composition_of(exposures)) == (groups, word)


@given(st.lists(st.none() | st.sets(st.sampled_from(UNITS), min_size=1), min_size=1, max_size=5))
def test_groups_and_words_follow_from_what_single_units_see(parts: list[set[str] | None]) -> None:
    exposures = phases(*(None if part is None else "".join(part) for part in parts))
    groups = components(exposures)
    assert sorted(e.name for group in groups for e in group) == sorted(e.name for e in exposures)
    group_of = {e.name: place for place, group in enumerate(groups) for e in group}
    seen = histories(exposures)
    assert all(len({group_of[name] for name in phases_of}) <= 1 for phases_of in seen.values())
    links = {frozenset((a, b)) for phases_of in seen.values() for a in phases_of for b in phases_of}
    for group in groups:
        reached = {group[0].name}
        while more := {b for link in links if link & reached for b in link} - reached:
            reached |= more
        assert reached == {e.name for e in group}
    longest = max(len(phases_of) for phases_of in seen.values())
    expected = "sequential" if longest == len(exposures) else "parallel" if longest == 1 else "mixed"
    assert composition_of(exposures) == expected


def test_a_part_is_named_once() -> None:
    assert list(parts_of(phases("ab", None, "cd"))) == ["0", "2"]
