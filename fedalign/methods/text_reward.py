"""What a response is worth to whom a policy is trained for: the contract, and rewards that count words."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedalign.data.review_texts import filler_score, style_score, tone_score, word_count

KEY = "method.reward"
"""Where the settings of a reward stand in the configuration, for error messages."""

Scored = Literal["response", "text"]
"""What a reward reads: the response alone, or the prompt with the response behind it, as one text."""


class TextReward(ABC):
    """Scores responses to prompts; one subclass a kind, a frozen dataclass of its settings.

    A score depends on its own prompt and response alone: no statistics of a batch and none of earlier batches enter,
    as the sensitivity of a private policy update requires.

    Attributes
    ----------
    name : str
        Names the kind in metrics.
    """

    name: ClassVar[str]

    @property
    def exact(self) -> bool:
        """Whether a text's score does not move by a bit with the texts that are scored beside it."""
        return True

    @abstractmethod
    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        """Return the rewards, float32 of shape (B,), finite for any text, an empty one included.

        Parameters
        ----------
        prompts, responses : sequences of str, each of length B

        Raises
        ------
        UserError
            If what the reward needs (a model, a file) cannot be had.
        """

    def prepare(self) -> None:
        """Load what scoring needs, so that what is missing is said before anything is trained.

        Raises
        ------
        UserError
            As ``score``.
        """
        self.score([""], [""])


def scored_texts(scored: Scored, prompts: Sequence[str], responses: Sequence[str]) -> list[str]:
    """Return what a reward reads; nothing is put between a prompt and its response.

    Raises
    ------
    ValueError
        If there are not as many responses as prompts.
    """
    pairs = zip(prompts, responses, strict=True)
    return [prompt + response if scored == "text" else response for prompt, response in pairs]


@dataclass(frozen=True)
class Vader(TextReward):
    """The compound score of VADER (Hutto & Gilbert 2014), a lexicon of sentiment with rules for negation and emphasis.

    It needs no download and no accelerator, reads English only, and lies in [-1, 1], 0 for a text without sentiment.
    It saturates: a few strong words are as good as many.

    Parameters
    ----------
    scored : {"response", "text"}
    """

    name: ClassVar[str] = "vader"

    scored: Scored

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        """Return the compound scores."""
        analyzer = _vader()
        texts = scored_texts(self.scored, prompts, responses)
        return torch.tensor([analyzer.polarity_scores(text)["compound"] for text in texts], dtype=torch.float32)


@functools.lru_cache(maxsize=1)
def _vader() -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()


@dataclass(frozen=True)
class Tone(TextReward):
    """The known reward of the synthetic review world: praise words less criticism words, and less junk.

    Parameters
    ----------
    limit : float
        The words of tone count up to this many either way, so that repeating them does not pay without end.
    filler : float
        What each junk word costs.
    """

    name: ClassVar[str] = "tone"

    limit: Annotated[float, Field(gt=0.0)]
    filler: Annotated[float, Field(ge=0.0)]

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        """Return the tones of the responses."""
        texts = scored_texts("response", prompts, responses)
        return torch.tensor([self._value(text) for text in texts], dtype=torch.float32)

    def _value(self, text: str) -> float:
        return _clipped(tone_score(text), self.limit) - self.filler * filler_score(text)


@dataclass(frozen=True)
class Style(TextReward):
    """The style of the synthetic review worlds: plain words less ornate words.

    Parameters
    ----------
    limit : float
        The words of style count up to this many either way, so that repeating them does not pay without end.
    """

    name: ClassVar[str] = "style"

    limit: Annotated[float, Field(gt=0.0)]

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        """Return the styles of the responses."""
        texts = scored_texts("response", prompts, responses)
        return torch.tensor([_clipped(style_score(text), self.limit) for text in texts], dtype=torch.float32)


@dataclass(frozen=True)
class Length(TextReward):
    """How long a response is: its words above the middle, in [-1, 1].

    Parameters
    ----------
    middle : float
        Words of a response that is worth 0.
    half : float
        Words above it, or below, from where on a response is worth 1, or -1.
    """

    name: ClassVar[str] = "length"

    middle: Annotated[float, Field(ge=0.0)]
    half: Annotated[float, Field(gt=0.0)]

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        """Return the lengths of the responses."""
        texts = scored_texts("response", prompts, responses)
        values = [_clipped((word_count(text) - self.middle) / self.half, 1.0) for text in texts]
        return torch.tensor(values, dtype=torch.float32)


def _clipped(value: float, limit: float) -> float:
    return min(max(value, -limit), limit)


@dataclass(frozen=True)
class Learnt(TextReward):
    """What the run's own reward model has learnt by then; stands for it in the configuration alone."""

    name: ClassVar[str] = "learnt"

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        """Refuse: the phase that follows the reward model asks that model."""
        raise TypeError("a learnt reward has no scores of its own")
