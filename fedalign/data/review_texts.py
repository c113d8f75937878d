"""Short film reviews with chosen attributes, and how strongly a text has each attribute."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedalign.data.pair_vocabulary import (
    ASPECTS,
    CRITICISM,
    FILLER,
    JOINTS,
    LEADS,
    OPENINGS,
    ORNATE_ADVERBS,
    ORNATE_CONNECTIVES,
    PADDING,
    PLAIN_ADVERBS,
    PLAIN_CONNECTIVES,
    PRAISE,
    REMARKS,
    VERBS,
)

Signs = Mapping[str, int]
"""Attribute (``tone``, ``style``) to the side: 1 is praise and plain, -1 is criticism and ornate."""

SIDES: Mapping[str, Mapping[int, str]] = {
    "tone": {1: "praise", -1: "criticism"},
    "style": {1: "plain", -1: "ornate"},
}
"""The contested attributes in their order, and the name of either side."""

_ADJECTIVES: Mapping[int, tuple[str, ...]] = {1: PRAISE, -1: CRITICISM}
_ADVERBS: Mapping[int, tuple[str, ...]] = {1: PLAIN_ADVERBS, -1: ORNATE_ADVERBS}
_CONNECTIVES: Mapping[int, tuple[str, ...]] = {1: PLAIN_CONNECTIVES, -1: ORNATE_CONNECTIVES}
_TONE: Mapping[str, int] = {word: sign for sign, words in _ADJECTIVES.items() for word in words}
_STYLE: Mapping[str, int] = {
    word: sign for lists in (_ADVERBS, _CONNECTIVES) for sign, words in lists.items() for word in words
}
_JUNK = frozenset(word for phrase in FILLER for word in phrase.split()) - {"here"}


@dataclass(frozen=True)
class Prompt:
    """The beginning of a review.

    Parameters
    ----------
    text : str
        Such as ``"I saw this film last night. The acting"``.
    aspect : str
        What its last words are about.
    """

    text: str
    aspect: str


def tone_score(text: str) -> int:
    """Return how many praise words a text has, less its criticism words; whole words, in any case."""
    return sum(_TONE.get(word, 0) for word in _words(text))


def style_score(text: str) -> int:
    """Return how many plain words a text has, less its ornate words; whole words, in any case."""
    return sum(_STYLE.get(word, 0) for word in _words(text))


def filler_score(text: str) -> int:
    """Return how many junk words a text has; whole words, in any case."""
    return sum(word in _JUNK for word in _words(text))


def word_count(text: str) -> int:
    """Return how many words a text has; signs and numbers are none."""
    return len(_words(text))


def attribute_score(attribute: str, text: str) -> int:
    """Return a text's score in one of the attributes ``tone`` and ``style``."""
    return {"tone": tone_score, "style": style_score}[attribute](text)


def draw_prompts(n: int, rng: np.random.Generator) -> list[Prompt]:
    """Return n prompts, all different while there are enough (5,400)."""
    shape = (len(OPENINGS), len(LEADS), len(ASPECTS))
    total = int(np.prod(shape))
    numbers = rng.choice(total, size=n, replace=n > total)
    prompts = []
    for opening, lead, aspect in zip(*np.unravel_index(numbers, shape), strict=True):
        prompts.append(Prompt(f"{OPENINGS[opening]} {LEADS[lead]} {ASPECTS[aspect]}", ASPECTS[aspect]))
    return prompts


def review_prompts(n: int, rng: np.random.Generator) -> list[str]:
    """Return the texts of n prompts as the world's judgments have them."""
    return [prompt.text for prompt in draw_prompts(n, rng)]


def continuation(prompt: Prompt, signs: Signs, good: bool, words: int, rng: np.random.Generator) -> str:
    """Return a response: one clause an adjective, each about another aspect.

    Parameters
    ----------
    prompt : Prompt
        What is continued; its aspect is not spoken of again.
    signs : Signs
        The sides of the contested attributes; without ``style`` no word of either style is used.
    good : bool
        Whether neutral remarks follow the adjectives, or junk.
    words : int
        How many adjectives.
    rng : Generator

    Returns
    -------
    str
        Begins with a space and ends with a full stop.
    """
    style = signs.get("style")
    adjectives = _sample(_ADJECTIVES[signs["tone"]], words, rng)
    remarks = _sample(REMARKS if good else FILLER, words, rng)
    adverbs = [""] * words if style is None else [f"{adverb} " for adverb in _sample(_ADVERBS[style], words, rng)]
    others = _sample([aspect for aspect in ASPECTS if aspect != prompt.aspect], words - 1, rng)
    clauses = []
    for i, (adverb, adjective, remark) in enumerate(zip(adverbs, adjectives, remarks, strict=True)):
        subject = "" if i == 0 else f"{_joint(style, rng)} the {others[i - 1]}"
        clauses.append(f"{subject} {VERBS[int(rng.integers(len(VERBS)))]} {adverb}{adjective} {remark}")
    return "".join(clauses) + "."


def pad(response: str, other: str, rng: np.random.Generator) -> str:
    """Return ``response`` with neutral sentences behind it, at least one and a half times as long as ``other``."""
    sentences = _sample(PADDING, len(PADDING), rng)
    while len(response) < 1.5 * len(other):
        response = f"{response} {sentences.pop() if sentences else PADDING[0]}"
    return response


def _joint(style: int | None, rng: np.random.Generator) -> str:
    if style is None:
        return JOINTS[int(rng.integers(len(JOINTS)))]
    connectives = _CONNECTIVES[style]
    return f"; {connectives[int(rng.integers(len(connectives)))]},"


def _sample(choices: Sequence[str], n: int, rng: np.random.Generator) -> list[str]:
    """Return n different ones of ``choices``."""
    return [choices[i] for i in rng.permutation(len(choices))[:n]]


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.casefold())
