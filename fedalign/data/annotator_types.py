"""Types of annotators of film reviews: what each wants, and what any text is worth to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from fedalign.data.review_texts import filler_score, style_score, tone_score


@dataclass(frozen=True)
class AnnotatorType:
    """What a type of annotators wants.

    Parameters
    ----------
    name : str
    share : float
        Share of the annotators, relative to the sum over the types.
    tone : float
        What praise is worth to them; criticism is worth the opposite.
    style : float
        What plain words are worth to them; ornate words are worth the opposite.
    """

    name: Annotated[str, Field(min_length=1)]
    share: Annotated[float, Field(gt=0.0)]
    tone: float
    style: float


def utility(kind: AnnotatorType, text: str, quality_weight: float) -> float:
    """Return what any text is worth to a type: its wishes times the signs of the text's scores, less for junk."""
    tone, style = np.sign(tone_score(text)), np.sign(style_score(text))
    junk = float(filler_score(text) > 0)
    return float(kind.tone * tone + kind.style * style - quality_weight * junk)


def true_utility(types: Sequence[AnnotatorType], quality_weight: float) -> Callable[[str, str], float]:
    """Return the function that says what a text is worth to the type of a name, whoever or whatever wrote the text.

    Parameters
    ----------
    types : sequence of AnnotatorType
    quality_weight : float

    Returns
    -------
    callable
        ``(type's name, text) -> float``.
    """
    known = {kind.name: kind for kind in types}

    def judge(name: str, text: str) -> float:
        return utility(known[name], text, quality_weight)

    return judge
