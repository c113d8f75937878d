"""Which responses a step learns from: every prompt once an epoch, with all of its responses, in a seed's order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedalign.methods.reuse import Drawn, Reuse

from .scripted_experts import algorithm


def served(epochs: int, minibatches: int, prompts: int, steps: int, seed: int = 7) -> list[tuple[str, list[int]]]:
    """Return what some steps learn from; batches of responses are called a, b and so on."""
    drawn = 0

    def draw() -> Drawn[str]:
        nonlocal drawn
        drawn += 1
        return Drawn("abcdefgh"[drawn - 1], prompts, seed + drawn)

    reuse = Reuse(algorithm("rloo", epochs=epochs, minibatches=minibatches, completions=3), draw)
    found = []
    for _ in range(steps):
        kept, rows = reuse.next()
        found.append((kept, rows.tolist()))
    return found


@given(st.integers(1, 3), st.integers(1, 6), st.integers(1, 7))
def test_every_epoch_meets_every_prompt_once_with_all_of_its_responses(epochs: int, parts: int, prompts: int) -> None:
    own = min(parts, prompts)
    found = served(epochs, parts, prompts, 2 * epochs * own)
    assert [kept for kept, _ in found] == ["a"] * (epochs * own) + ["b"] * (epochs * own)
    for start in range(0, len(found), own):
        rows = [row for _, part in found[start : start + own] for row in part]
        assert sorted(rows) == list(range(3 * prompts))
        # Of each prompt the three responses, one after the other.
        assert all(rows[i : i + 3] == list(range(rows[i], rows[i] + 3)) for i in range(0, len(rows), 3))
        assert all(row % 3 == 0 for row in rows[::3])
    sizes = {len(rows) // 3 for _, rows in found}
    assert max(sizes) - min(sizes) <= 1


def test_responses_are_drawn_when_they_are_asked_for_and_no_sooner() -> None:
    assert [kept for kept, _ in served(2, 2, 4, 5)] == ["a", "a", "a", "a", "b"]
    assert [kept for kept, _ in served(1, 1, 4, 3)] == ["a", "b", "c"]


def test_five_prompts_in_four_parts_are_four_steps() -> None:
    assert [len(rows) // 3 for _, rows in served(1, 4, 5, 4)] == [2, 1, 1, 1]


@pytest.mark.parametrize("epochs", [1, 3])
def test_an_order_is_its_seed_s_and_each_epoch_s_own(epochs: int) -> None:
    assert served(epochs, 2, 7, 2 * epochs) == served(epochs, 2, 7, 2 * epochs)
    assert served(epochs, 2, 7, 2 * epochs) != served(epochs, 2, 7, 2 * epochs, seed=8)
    rows = [tuple(rows) for _, rows in served(epochs, 1, 7, epochs)]
    assert len(set(rows)) == epochs
