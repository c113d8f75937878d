"""Metrics of generated texts, by hand and by brute force."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedalign.metrics.generation import (
    ROUGE,
    distinct_n,
    empty_share,
    mean_interval,
    repetition,
    rouge,
    win,
)

WORDS = st.lists(st.sampled_from("abc"), max_size=9)
VALUES = st.lists(st.floats(-5, 5), min_size=2, max_size=30)


@pytest.mark.parametrize(
    ("texts", "n", "share"),
    [
        ([], 2, 1.0),
        (["", "word"], 2, 1.0),
        (["a b c"], 2, 1.0),
        (["a b a b a"], 2, 0.5),
        (["a b a b a"], 1, 0.4),
        # Two texts repeat each other, and nothing runs from the end of one to the beginning of the other.
        (["a b", "a b", "b a"], 2, 2 / 3),
        (["ein schöner  Film\n", "ein\tschöner Abend"], 2, 3 / 4),
    ],
)
def test_distinct_runs_by_hand(texts: list[str], n: int, share: float) -> None:
    assert distinct_n(texts, n) == pytest.approx(share)


@given(texts=st.lists(WORDS, max_size=5), n=st.integers(1, 4))
def test_distinct_runs_by_counting(texts: list[list[str]], n: int) -> None:
    # One letter a word, so that a run of words is a piece of a string.
    joined = ["".join(words) for words in texts]
    runs = [text[i : i + n] for text in joined for i in range(max(len(text) - n + 1, 0))]
    expected = len(set(runs)) / len(runs) if runs else 1.0
    assert distinct_n([" ".join(words) for words in texts], n) == pytest.approx(expected)


@given(words=WORDS)
def test_repetition_counts_the_runs_that_came_before(words: list[str]) -> None:
    runs = list(zip(words, words[1:], words[2:], strict=False))
    again = sum(run in runs[:i] for i, run in enumerate(runs))
    assert repetition(" ".join(words)) == pytest.approx(again / len(runs) if runs else 0.0)


def test_repetition_tells_a_loop_from_prose() -> None:
    assert repetition("the film was good " * 10) == pytest.approx(1 - 4 / 38)
    assert repetition("the film was good and I liked it") == 0.0


def test_empty_texts_are_counted() -> None:
    assert empty_share(["", " \n\t", "word", "é"]) == 0.5
    with pytest.raises(ValueError, match="no texts"):
        empty_share([])


def test_rouge_by_hand() -> None:
    # Words: 3 of the reference's 6 among 4 written; pairs: "the cat" of 5 and of 3; in order: the cat mat.
    found = rouge(["the cat sat on the mat"], ["The cat, a mat!"], stem=False)
    assert found["rouge1"].item() == pytest.approx(2 * (3 / 4) * (3 / 6) / (3 / 4 + 3 / 6))
    assert found["rouge2"].item() == pytest.approx(2 * (1 / 3) * (1 / 5) / (1 / 3 + 1 / 5))
    assert found["rougeL"].item() == pytest.approx(2 * (3 / 4) * (3 / 6) / (3 / 4 + 3 / 6))
    assert tuple(found) == ROUGE


def test_rouge_counts_a_repeated_word_as_often_as_the_reference_has_it() -> None:
    found = rouge(["the the cat"], ["the the the the"], stem=False)
    assert found["rouge1"].item() == pytest.approx(2 * (2 / 4) * (2 / 3) / (2 / 4 + 2 / 3))


def test_rouge_l_keeps_the_order() -> None:
    found = rouge(["a b c d"], ["d c b a"])
    assert found["rouge1"].item() == 1.0
    assert found["rougeL"].item() == pytest.approx(1 / 4)


def test_stems_meet_only_when_asked() -> None:
    assert rouge(["she was acting"], ["she was acted"], stem=True)["rouge1"].item() == 1.0
    assert rouge(["she was acting"], ["she was acted"], stem=False)["rouge1"].item() == pytest.approx(2 / 3)


def test_rouge_of_nothing_is_zero_and_texts_are_scored_apart() -> None:
    references, texts = ["a film", "", "a film", "ночь"], ["a film", "a film", "", "ночь"]
    assert rouge(references, texts)["rougeL"].tolist() == [1.0, 0.0, 0.0, 0.0]
    assert rouge([], [])["rouge1"].shape == (0,)
    with pytest.raises(ValueError):
        rouge(["a"], [])


def test_wins_by_hand() -> None:
    first, second = torch.tensor([2.0, 1.0, -1.0, math.inf]), torch.tensor([1.0, 1.0, 0.0, 3.0])
    assert win(first, second).tolist() == [1.0, 0.5, 0.0, 1.0]
    assert (win(first, second) + win(second, first)).tolist() == [1.0] * 4


@pytest.mark.parametrize("second", [torch.zeros(2), torch.tensor([math.nan])])
def test_what_cannot_be_compared_is_an_error(second: torch.Tensor) -> None:
    with pytest.raises(ValueError):
        win(torch.zeros(1), second)


@given(values=VALUES, level=st.sampled_from([0.5, 0.95, 0.99]))
def test_interval_from_sums_is_students(values: list[float], level: float) -> None:
    found = mean_interval(sum(values), sum(v * v for v in values), len(values), level)
    error = statistics.stdev(values) / math.sqrt(len(values))
    assert found.mean == pytest.approx(statistics.fmean(values), abs=1e-9)
    assert found.half_width == pytest.approx(error * stats.t(len(values) - 1).ppf(1 - (1 - level) / 2), abs=1e-5)


def test_an_interval_covers_the_mean_as_often_as_it_says() -> None:
    draws = torch.randn(4000, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 3
    found = [mean_interval(float(row.sum()), float(row.square().sum()), 5) for row in draws]
    covered = sum(abs(f.mean - 3) <= (f.half_width or 0.0) for f in found) / len(found)
    # Four standard errors of a share of 4,000; the normal quantile would cover 0.88 of them.
    assert covered == pytest.approx(0.95, abs=0.014)


def test_intervals_at_the_edges() -> None:
    assert mean_interval(2.5, 6.25, 1) == (2.5, None)
    # Three times 0.1: rounding leaves the squares short.
    assert mean_interval(0.1 + 0.1 + 0.1, 3 * 0.1**2, 3).half_width == pytest.approx(0.0, abs=1e-8)
    with pytest.raises(ValueError, match="no values"):
        mean_interval(0.0, 0.0, 0)
