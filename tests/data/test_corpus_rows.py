"""Texts as read become a corpus: drops are counted, splits are kept apart, and nobody is left without a user."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedalign.data.corpus import Corpus, Example, Split
from fedalign.data.corpus_rows import CorpusRow, corpus_of
from fedalign.errors import UserError
from fedalign.rng import Streams


def row(prompt: str = "How?", response: str = "So.", rejected: str | None = None, **other) -> CorpusRow:
    return CorpusRow(prompt, response, rejected, **{"user": "ann", "split": "train", **other})


def clean(*rows: CorpusRow, per_user: int = 2, seed: int = 0, test_fraction: float = 0.0, **dropped: int) -> Corpus:
    return corpus_of(rows, test_fraction, per_user, Streams(seed), dropped)


def test_what_is_fine_is_kept_in_order() -> None:
    corpus = clean(row(group="north"), row("", "Only.", user="ben"), row("A\n", "x", "y", split="test"))
    assert corpus.examples == [
        Example("ann", "north", "How?", " So.", None, "train"),
        Example("ben", "all", "", "Only.", None, "train"),
        Example("ann", "all", "A\n", "x", "y", "test"),
    ]
    assert corpus.dropped == {}


@pytest.mark.parametrize(
    ("prompt", "response", "text"),
    [("a b", "c", "a b c"), ("a b", " c", "a b c"), ("a b ", "c", "a b c"), ("a\n", "c", "a\nc"), ("", "c", "c")],
)
def test_prompt_and_response_together_are_the_text(prompt: str, response: str, text: str) -> None:
    example = clean(row(prompt, response, response + "!")).examples[0]
    assert example.prompt + example.response == text
    assert example.rejected is not None and example.prompt + example.rejected == text + "!"


def test_drops_are_counted() -> None:
    corpus = clean(
        row(),
        row(),
        row(response=" "),
        row(rejected=""),
        row(rejected=" So. "),
        row(user="ben"),
        row(rejected="No."),
        reader=3,
    )
    assert len(corpus.examples) == 3
    assert corpus.dropped == {"example_repeated": 1, "response_empty": 2, "responses_equal": 1, "reader": 3}


@pytest.mark.parametrize(
    ("train", "test", "leaks"),
    [
        (row(), row(split="test", user="eve"), True),
        (row("How? So", "it is."), row("How?", "So  it is.", split="test"), True),  # cut elsewhere
        (row(rejected="No."), row(response="No.", split="test"), True),
        (row(response="Yes.", rejected="No."), row(response="Oh.", rejected="Yes.", split="test"), True),
        (row(), row(response="No.", split="test"), False),
        (row(), row(prompt="Why?", split="test"), False),
    ],
)
def test_no_test_text_is_trained_on(train: CorpusRow, test: CorpusRow, leaks: bool) -> None:
    other = row("Else?", "Well.")
    for order in ([train, test], [test, train]):
        corpus = clean(*order, other)
        assert corpus.dropped == ({"in_test": 1} if leaks else {})
        assert len(corpus.examples) == (2 if leaks else 3)
        assert sum(example.split == "test" for example in corpus.examples) == 1


def test_nothing_left_to_train_on_is_refused() -> None:
    with pytest.raises(UserError, match=r"no usable text is left to train on.*'response_empty': 1"):
        clean(row(response=""), row(split="test"))
    with pytest.raises(UserError, match="the input is empty"):
        clean()


def test_a_hash_splits_by_prompt_or_by_response_where_there_is_none() -> None:
    with_prompts = clean(
        *(row(f"prompt {i}", r, split=None) for i in range(300) for r in "ab"), test_fraction=0.3
    ).examples
    sides: dict[str, set[str]] = {}
    for example in with_prompts:
        sides.setdefault(example.prompt, set()).add(example.split)
    assert all(len(own) == 1 for own in sides.values())
    without = clean(*(row("", f"text {i}", split=None) for i in range(300)), test_fraction=0.3).examples
    for examples, n in ((with_prompts, 600), (without, 300)):
        assert 0.2 < sum(example.split == "test" for example in examples) / n < 0.4


def test_users_are_made_up_where_nobody_is_known() -> None:
    splits: list[Split] = ["train"] * 7 + ["test"] * 3
    rows = [row(f"p{i}", user=None, split=split) for i, split in enumerate(splits)]
    examples = clean(*rows).examples
    assert Counter(example.user for example in examples) == {
        "user-00001": 2,
        "user-00002": 2,
        "user-00003": 2,
        "user-00004": 1,
        "test-user-00001": 2,
        "test-user-00002": 1,
    }
    assert [example.prompt for example in examples] == [r.prompt for r in rows]
    assert all(example.user.startswith("test") == (example.split == "test") for example in examples)
    assert clean(*rows).examples == examples
    assert [e.user for e in clean(*rows, seed=1).examples] != [e.user for e in examples]


def test_users_are_given_to_all_or_to_none() -> None:
    with pytest.raises(UserError, match="1 of 2 records do not say whose they are"):
        clean(row(), row(user=None))


TEXT = st.sampled_from(["", " ", "a", "b", "a b", "b a", "c"])
ROWS = st.lists(
    st.builds(
        CorpusRow,
        prompt=TEXT,
        response=TEXT,
        rejected=st.none() | TEXT,
        user=st.sampled_from(["ann", "ben"]),
        split=st.sampled_from(["train", "test"]),
    ),
    max_size=12,
)


@given(ROWS)
def test_every_row_is_kept_or_counted_and_no_test_text_is_trained_on(rows: list[CorpusRow]) -> None:
    try:
        corpus = clean(*rows)
    except UserError:
        return
    assert len(corpus.examples) + sum(corpus.dropped.values()) == len(rows)
    texts: dict[str, set[str]] = {"train": set(), "test": set()}
    for example in corpus.examples:
        for response in (example.response, example.rejected):
            if response is not None:
                texts[example.split].add(" ".join((example.prompt + response).split()))
    assert not texts["train"] & texts["test"]
