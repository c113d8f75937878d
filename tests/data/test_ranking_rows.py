"""Ranks become tiers; what cannot be used is dropped and counted; the split is by the prompt's hash."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedalign.data.pair_rows import split_of
from fedalign.data.ranking_rows import RankingRow, clean_rankings, tiers_of
from fedalign.data.rankings import Ranking
from fedalign.errors import UserError

ROW = RankingRow("prompt", ("a", "b", "c"), (1, 2, 3), "all", "ann", "train")
KEPT = Ranking("prompt", ("a", "b", "c"), (0, 1, 2), "train", "all", "ann")

Ranks = st.lists(st.none() | st.integers(-3, 3) | st.floats(-1, 1), min_size=1, max_size=7)


@given(ranks=Ranks)
def test_tiers_keep_the_order_and_have_no_gaps(ranks: list[float | None]) -> None:
    tiers = tiers_of(ranks)
    assert set(tiers) == set(range(len(set(tiers))))
    for own, tier in zip(ranks, tiers, strict=True):
        for other, place in zip(ranks, tiers, strict=True):
            before = own is not None and (other is None or own < other)
            assert (tier < place) == before


@pytest.mark.parametrize(
    ("ranks", "tiers"),
    [
        ((1, 2, 3), (0, 1, 2)),
        ((3, 1, 2), (2, 0, 1)),
        ((10, -0.5, 10), (1, 0, 1)),
        ((None, 1, None, 2), (2, 0, 2, 1)),
        ((None, 1, 7, 7), (2, 0, 1, 1)),
    ],
)
def test_ranks_may_be_any_numbers(ranks: tuple[float | None, ...], tiers: tuple[int, ...]) -> None:
    row = RankingRow("p", tuple("abcd"[: len(ranks)]), ranks, split="test")
    assert clean_rankings([row], 0.2).rankings == [Ranking("p", row.responses, tiers, "test", "all")]


def row(responses: tuple[str, ...], ranks: tuple[float | None, ...], prompt: str = "p") -> RankingRow:
    return RankingRow(prompt, responses, ranks, "all", "ann", "train")


@pytest.mark.parametrize(
    ("other", "counts"),
    [
        (row(("a", "b"), (1, 2), " \n"), {"prompt_empty": 1}),
        (row(("a", ""), (1, 2)), {"response_empty": 1, "responses_few": 1}),
        (row(("\t", " ", "a"), (1, 2, 3)), {"response_empty": 2, "responses_few": 1}),
        (row(("a", "a ", "b"), (1, 2, 3)), {"responses_repeated": 1}),
        (row(("a", "a", "b"), (1, 2, 3)), {"responses_repeated": 1}),
        (row(("a", "a", "b"), (1, None, 3)), {"responses_repeated": 1}),
        (row(("a", "\na"), (1, 1)), {"response_merged": 1, "responses_few": 1}),
        (row(("a", "b"), (None, None)), {"unranked": 1}),
        (row(("a", "", "b"), (None, 1, None)), {"response_empty": 1, "unranked": 1}),
        (row(("a", "b", "c"), (2, 2, 2)), {"all_tied": 1}),
        (row(("a", "", "b"), (2, 1, 2)), {"response_empty": 1, "all_tied": 1}),
        (row(tuple("abcdefghi"), (1,) * 8 + (2,)), {"ties_many": 1}),
        (row(tuple("abcdefghi"), (1,) * 8 + (None,)), {"ties_many": 1}),
        (ROW, {"judgment_repeated": 1}),
        # The same judgment in another order, in other numbers or on the other side of the split is the same judgment.
        (RankingRow("prompt", ("c", "a", "b"), (None, 0, 0.5), "all", "ann", "test"), {"judgment_repeated": 1}),
    ],
)
def test_what_is_dropped_is_counted(other: RankingRow, counts: dict[str, int]) -> None:
    result = clean_rankings([ROW, other], 0.2)
    assert result.rankings == [KEPT] and result.dropped == counts


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt": "q"},
        {"ranks": (2, 1, 3)},
        {"ranks": (1, 2, 2)},
        {"group": "other"},
        {"annotator": "ben"},
        {"annotator": None},
        {"responses": ("a", "b", "d")},
    ],
)
def test_another_judgment_is_no_repeat(changes: dict[str, Any]) -> None:
    result = clean_rankings([ROW, RankingRow(**{**vars(ROW), **changes})], 0.2)
    assert len(result.rankings) == 2 and result.dropped == {}


@pytest.mark.parametrize(
    ("before", "responses", "tiers", "counts"),
    [
        (row(("a", " ", "b", "c"), (1, 2, 3, None)), ("a", "b", "c"), (0, 1, 2), {"response_empty": 1}),
        (row(("a", "b", "a", "b"), (1, 2, 1, 2)), ("a", "b"), (0, 1), {"response_merged": 2}),
        (row((" a", "b", "a\n"), (1, 2, 1)), (" a", "b"), (0, 1), {"response_merged": 1}),
    ],
)
def test_a_judgment_loses_what_says_nothing(
    before: RankingRow, responses: tuple[str, ...], tiers: tuple[int, ...], counts: dict[str, int]
) -> None:
    result = clean_rankings([before], 0.2)
    assert result.rankings == [Ranking("p", responses, tiers, "train", "all", "ann")] and result.dropped == counts


@given(ranks=Ranks, texts=st.lists(st.sampled_from(["", " ", "a", "a ", "b", "c", "d"]), min_size=7, max_size=7))
def test_what_is_kept_is_as_promised(ranks: list[float | None], texts: list[str]) -> None:
    read = RankingRow("p", tuple(texts[: len(ranks)]), tuple(ranks))
    kept = clean_rankings([ROW, read], 0.0).rankings[1:]
    for ranking in kept:
        texts = [response.strip() for response in ranking.responses]
        assert len(texts) == len(set(texts)) >= 2 and all(texts)
        assert set(ranking.tiers) == set(range(max(ranking.tiers) + 1)) and max(ranking.tiers) >= 1
        assert set(ranking.responses) <= set(read.responses)


def test_ties_in_the_last_tier_may_be_many() -> None:
    found = clean_rankings([row(tuple("abcdefghijkl"), (1,) * 7 + (2,) * 5)], 0.2)
    assert found.rankings[0].tiers == (0,) * 7 + (1,) * 5 and found.dropped == {}


def test_rows_without_a_split_are_split_by_the_prompt() -> None:
    rows = [RankingRow(f"prompt {i}", ("a", "b"), (1, 2)) for i in range(50)]
    splits = [ranking.split for ranking in clean_rankings(rows, 0.3).rankings]
    assert splits == [split_of(f"prompt {i}", 0.3) for i in range(50)] and set(splits) == {"train", "test"}


def test_the_readers_own_counts_are_added() -> None:
    assert clean_rankings([ROW, ROW], 0.2, {"other": 3}).dropped == {"judgment_repeated": 1, "other": 3}


def test_nothing_left_is_an_error() -> None:
    with pytest.raises(UserError, match=r"no usable ranking is left; removed so far: \{'all_tied': 1\}"):
        clean_rankings([row(("a", "b"), (1, 1))], 0.2)
    with pytest.raises(UserError, match="the input is empty"):
        clean_rankings([], 0.2)
