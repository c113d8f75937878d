"""Who says which of two responses serves a stated preference: the world itself, or a reward model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from fedalign.data.names import suggest
from fedalign.data.schema import Encoder
from fedalign.data.synthetic_pairs import attribute_score, group_signs
from fedalign.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Verdicts:
    """A judge's word on N pairs of responses.

    Parameters
    ----------
    first : float tensor, shape (N,)
        Probability that the first response serves the preference better: 1/2 where the judge sees no difference
        or contradicts itself, NaN where it gave no answer that can be read.
    """

    first: Tensor

    @property
    def unreadable(self) -> int:
        """How many pairs got no answer that can be read."""
        return int(self.first.isnan().sum())

    @property
    def win_rate(self) -> float:
        """Mean over the pairs with an answer; NaN if there is none. Report ``unreadable`` beside it."""
        return float(self.first[~self.first.isnan()].mean())


class Judge(ABC):
    """Compares responses under a named preference."""

    @abstractmethod
    def scores(self, preference: str, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Verdicts:
        """Return how likely each first response serves the preference better than the second.

        Parameters
        ----------
        preference : str
            E.g. a group of the data.
        prompts, first, second : sequences of str, each of length N
            Position carries no meaning: a judge that cares about it corrects for that itself.

        Raises
        ------
        UserError
            If the judge does not know the preference.
        """


@dataclass(frozen=True)
class OracleJudge(Judge):
    """The truth of the synthetic pair world: counts the words that a group of that world wants."""

    def scores(self, preference: str, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Verdicts:
        """Return 1, 0, or 1/2 where neither response has more of what is wanted."""
        wanted = known_preference(preference, {**group_signs(1), **group_signs(2)})
        leads = [_fit(wanted, a) - _fit(wanted, b) for a, b in zip(first, second, strict=True)]
        return Verdicts((torch.tensor(leads, dtype=torch.float64).sign() + 1) / 2)


def _fit(wanted: Mapping[str, int], text: str) -> int:
    return sum(sign * attribute_score(attribute, text) for attribute, sign in wanted.items())


class RewardJudge(Judge):
    """A reward model that the policy was not trained on.

    Parameters
    ----------
    rewards : mapping from preference to callable
        Takes features, float32 of shape (N, dim), and returns rewards, shape (N,), on the log-odds scale.
    encoder : Encoder
        The one that the reward model was trained with.
    text : callable
        ``text(prompt, response)`` is what the encoder reads, as in that training.
    """

    def __init__(
        self, rewards: Mapping[str, Callable[[Tensor], Tensor]], encoder: Encoder, text: Callable[[str, str], str]
    ) -> None:
        self._rewards, self._encoder, self._text = rewards, encoder, text

    def scores(self, preference: str, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Verdicts:
        """Return the Bradley-Terry probability that the first response has the higher reward."""
        reward = known_preference(preference, self._rewards)
        texts = [self._text(p, r) for rs in (first, second) for p, r in zip(prompts, rs, strict=True)]
        with torch.inference_mode():
            rewards = reward(torch.from_numpy(self._encoder.encode(texts, lambda n: None))).double()
        return Verdicts(torch.sigmoid(rewards[: len(first)] - rewards[len(first) :]))


def known_preference(preference: str, known: Mapping[str, T]) -> T:
    """Return what belongs to a preference.

    Raises
    ------
    UserError
        If it is unknown, with the nearest known one.
    """
    if preference not in known:
        raise UserError(f"the judge knows no preference {preference!r}{suggest(preference, known)}")
    return known[preference]
