"""The rules that drop pairs, each with its count, and the split by hash."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedalign.data.pair_rows import PairRow, clean_pairs, split_of
from fedalign.data.pairs import Pair
from fedalign.errors import UserError

ROW = PairRow("prompt", "good", "bad", "all", "ann", "train")


@pytest.mark.parametrize(
    ("row", "count"),
    [
        (PairRow(" \n", "good", "bad", "all"), "prompt_empty"),
        (PairRow("p", "", "bad", "all"), "response_empty"),
        (PairRow("p", "good", "\t ", "all"), "response_empty"),
        (PairRow("p", "same", "same", "all"), "responses_equal"),
        (PairRow("p", "same ", "\nsame", "all"), "responses_equal"),
        (PairRow("p", "a", "b", "all", tie=True), "tie"),
        (ROW, "judgment_repeated"),
        # The same judgment on the other side of the split would be a leak.
        (PairRow("prompt", "good", "bad", "all", "ann", "test"), "judgment_repeated"),
    ],
)
def test_what_is_dropped_is_counted(row: PairRow, count: str) -> None:
    result = clean_pairs([ROW, row], 0.2, "drop")
    assert result.pairs == [Pair("prompt", "good", "bad", "train", "all", "ann")]
    assert result.dropped == {count: 1}


@pytest.mark.parametrize(
    "row",
    [
        PairRow("prompt", "bad", "good", "all", "ann", "train"),
        PairRow("prompt", "good", "bad", "all", "ben", "train"),
        PairRow("prompt", "good", "bad", "all", None, "train"),
        PairRow("prompt", "good", "bad", "other", "ann", "train"),
        PairRow("prompt", "good", "bad", "all", "ann", "train", tie=True),
    ],
)
def test_another_judgment_is_no_repeat(row: PairRow) -> None:
    result = clean_pairs([ROW, row], 0.2, "keep")
    assert len(result.pairs) == 2 and result.dropped == {}
    assert result.pairs[1].tie == row.tie


def test_texts_are_kept_as_they_are() -> None:
    assert clean_pairs([PairRow(" p ", " a", "b\n", "all")], 0.0, "keep").pairs == [
        Pair(" p ", " a", "b\n", "train", "all")
    ]


def test_the_readers_own_counts_are_added() -> None:
    assert clean_pairs([ROW, ROW], 0.2, "keep", {"other": 3}).dropped == {"judgment_repeated": 1, "other": 3}


def test_nothing_left_is_an_error() -> None:
    with pytest.raises(UserError, match=r"no usable pair is left; removed so far: \{'responses_equal': 1\}"):
        clean_pairs([PairRow("p", "a", "a", "all")], 0.2, "keep")
    with pytest.raises(UserError, match="the input is empty"):
        clean_pairs([], 0.2, "keep")


@given(prompt=st.text(), fraction=st.floats(0.0, 0.99))
def test_the_split_is_a_hash_of_the_prompt(prompt: str, fraction: float) -> None:
    uniform = int(hashlib.sha256(prompt.encode()).hexdigest()[:16], 16) / 2**64
    if abs(uniform - fraction) > 1e-12:
        assert split_of(prompt, fraction) == ("test" if uniform < fraction else "train")


def test_the_split_holds_out_the_fraction() -> None:
    splits = [split_of(f"prompt {i}", 0.2) for i in range(5000)]
    assert abs(splits.count("test") / 5000 - 0.2) < 0.02
    rows = [PairRow(f"prompt {i}", "a", "b", "all") for i in range(50)]
    assert [pair.split for pair in clean_pairs(rows, 0.2, "keep").pairs] == splits[:50]
