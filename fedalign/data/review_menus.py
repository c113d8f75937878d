"""Menus of film reviews: responses to one prompt that differ in tone and style, or in quality alone."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from fedalign.data.review_texts import Prompt, continuation

_Look = tuple[int, int, bool]
"""Tone, style, and whether it is of good quality."""

_CORNERS = ((1, 1), (-1, -1), (1, -1), (-1, 1))
"""Tone and style of a response; the first two are opposite in both, and so are the last two."""


def review_menu(prompt: Prompt, size: int, contested: bool, words: int, rng: np.random.Generator) -> tuple[str, ...]:
    """Draw a menu in random order; all its responses are different and have the same number of characters.

    Parameters
    ----------
    prompt : Prompt
    size : int
        How many responses, at least two.
    contested : bool
        True: they differ in tone and in style and have no junk. False: they are alike in both, and at least one has
        junk and one has none.
    words : int
        How many words of its tone a response has.
    rng : Generator

    Returns
    -------
    tuple of str, length ``size``
    """
    looks = _contested_looks(size, rng) if contested else _uncontested_looks(size, rng)
    return _same_length(prompt, [looks[i] for i in rng.permutation(size)], words, rng)


def _contested_looks(size: int, rng: np.random.Generator) -> list[_Look]:
    """Return looks of good quality: two that are opposite in tone and style, then as different ones as there are."""
    opposite, others = (_CORNERS[:2], _CORNERS[2:]) if rng.random() < 0.5 else (_CORNERS[2:], _CORNERS[:2])
    rest = [others[i] for i in rng.permutation(2)]
    return [(tone, style, True) for tone, style in itertools.islice(itertools.cycle((*opposite, *rest)), size)]


def _uncontested_looks(size: int, rng: np.random.Generator) -> list[_Look]:
    """Return looks of one tone and style: one without junk, one with junk, then either."""
    tone, style = _CORNERS[int(rng.integers(len(_CORNERS)))]
    qualities = [True, False, *(bool(rng.random() < 0.5) for _ in range(size - 2))]
    return [(tone, style, good) for good in qualities]


def _same_length(prompt: Prompt, looks: Sequence[_Look], words: int, rng: np.random.Generator) -> tuple[str, ...]:
    """Draw texts of each look until there are different ones of the same length, one of each look."""
    drawn: list[dict[int, str]] = [{} for _ in looks]
    while True:
        for texts, (tone, style, good) in zip(drawn, looks, strict=True):
            text = continuation(prompt, {"tone": tone, "style": style}, good, words, rng)
            texts[len(text)] = text
        for length in set(drawn[0]).intersection(*drawn[1:]):
            menu = tuple(texts[length] for texts in drawn)
            if len(set(menu)) == len(menu):
                return menu
