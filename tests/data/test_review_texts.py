"""The review texts: they carry the attributes they were asked for and no others, and scores count whole words."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedalign.data import pair_vocabulary as vocabulary
from fedalign.data.review_texts import (
    attribute_score,
    continuation,
    draw_prompts,
    filler_score,
    pad,
    review_prompts,
    style_score,
    tone_score,
)

CONTESTED = {
    "praise": vocabulary.PRAISE,
    "criticism": vocabulary.CRITICISM,
    "plain": vocabulary.PLAIN_ADVERBS + vocabulary.PLAIN_CONNECTIVES,
    "ornate": vocabulary.ORNATE_ADVERBS + vocabulary.ORNATE_CONNECTIVES,
}
NEUTRAL = (
    *vocabulary.REMARKS,
    *vocabulary.VERBS,
    *vocabulary.JOINTS,
    *vocabulary.ASPECTS,
    *vocabulary.OPENINGS,
    *vocabulary.LEADS,
    *vocabulary.PADDING,
)


def test_there_are_enough_words_and_none_stands_for_two_things() -> None:
    assert min(len(vocabulary.PRAISE), len(vocabulary.CRITICISM)) >= 60
    assert min(len(CONTESTED["plain"]), len(CONTESTED["ornate"])) >= 40
    everything = [word for words in CONTESTED.values() for word in words]
    assert len(set(everything)) == len(everything)
    assert all(re.fullmatch("[a-z]+", word) for word in everything)


def test_neutral_texts_have_no_attribute() -> None:
    for text in NEUTRAL:
        assert (tone_score(text), style_score(text), filler_score(text)) == (0, 0, 0), text
    for text in vocabulary.FILLER:
        assert (tone_score(text), style_score(text)) == (0, 0) and filler_score(text) > 0, text


def test_scores_count_whole_words_in_any_case() -> None:
    assert tone_score("Brilliant, BRILLIANT and (superb): not brilliantly done") == 3
    assert tone_score("awful acting, a great cast, a boring plot") == -1
    assert tone_score("") == 0
    assert style_score("Moreover, it was REALLY fine; hence so-so") == 1
    assert attribute_score("tone", "awful") == tone_score("awful") == -1
    assert attribute_score("style", "moreover") == style_score("moreover") == -1
    assert filler_score("Blah blah; click here, I click") == 4


@given(
    seed=st.integers(0, 2**32),
    tone=st.sampled_from([-1, 1]),
    style=st.sampled_from([None, -1, 1]),
    good=st.booleans(),
    words=st.integers(1, 8),
)
def test_a_continuation_has_what_was_asked_for(seed: int, tone: int, style: int | None, good: bool, words: int) -> None:
    rng = np.random.default_rng(seed)
    prompt = draw_prompts(1, rng)[0]
    signs = {"tone": tone} if style is None else {"tone": tone, "style": style}
    text = continuation(prompt, signs, good, words, rng)
    assert tone_score(text) == tone * words
    # An adverb for each adjective, a connective between clauses.
    assert style_score(text) == (0 if style is None else style * (2 * words - 1))
    assert (filler_score(text) == 0) == good
    assert text.startswith(" ") and text.endswith(".") and "  " not in text
    assert f"the {prompt.aspect} " not in text
    assert tone_score(prompt.text) == style_score(prompt.text) == 0


def test_prompts_differ_while_there_are_enough() -> None:
    number = len(vocabulary.OPENINGS) * len(vocabulary.LEADS) * len(vocabulary.ASPECTS)
    assert number == 5400
    assert len(set(review_prompts(number, np.random.default_rng(0)))) == number
    assert len(review_prompts(number + 1, np.random.default_rng(0))) == number + 1
    assert review_prompts(5, np.random.default_rng(1)) == [p.text for p in draw_prompts(5, np.random.default_rng(1))]


@pytest.mark.parametrize("other", [1, 100, 5000])
def test_padding_lengthens_and_says_nothing(other: int) -> None:
    text = " was awful here."
    padded = pad(text, "x" * other, np.random.default_rng(0))
    assert padded.startswith(text) and len(padded) >= 1.5 * other
    assert (tone_score(padded), style_score(padded), filler_score(padded)) == (-1, 0, 0)


def test_openings_and_aspects_read_as_sentences() -> None:
    assert all(opening[0].isupper() and opening.endswith(".") for opening in vocabulary.OPENINGS)
    for name in ("OPENINGS", "LEADS", "ASPECTS", "REMARKS", "FILLER", "PADDING"):
        entries = getattr(vocabulary, name)
        assert all(a != b for a, b in itertools.combinations(entries, 2)), name
