"""What is served under a stated preference: a text, which experts wrote it, what it is worth, and a page of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedalign.report.expert_page import WeighedText, expert_page


@dataclass(frozen=True)
class Shares:
    """Who wrote a text: its tokens as text, and the weights of experts that each was drawn under.

    Parameters
    ----------
    experts : tuple of str, length n
    pieces : tuple of str, length S
        Joined they are the text.
    weights : tuple of tuples of float, shape (S, n)
    """

    experts: tuple[str, ...]
    pieces: tuple[str, ...]
    weights: tuple[tuple[float, ...], ...]

    @property
    def mean(self) -> dict[str, float]:
        """Return the mean weight of every expert over the tokens."""
        columns = zip(*self.weights, strict=True)
        return {name: sum(column) / len(self.weights) for name, column in zip(self.experts, columns, strict=True)}


@dataclass(frozen=True)
class Rewards:
    """What a text is worth, in [0, 1], as in training and evaluation.

    Parameters
    ----------
    sides : mapping from side to float
        The sides that are wanted, one a dimension as a rule; all of them where nothing is stated.
    combined : float or None
        To the preference; None where nothing is stated.
    """

    sides: Mapping[str, float]
    combined: float | None


@dataclass(frozen=True)
class StatedText:
    """One continuation.

    Parameters
    ----------
    prompt : str
    preference : str
        As it was asked for.
    text : str
    shares : Shares or None
        None where no weights say who wrote.
    rewards : Rewards or None
        Where they were asked for.
    """

    prompt: str
    preference: str
    text: str
    shares: Shares | None
    rewards: Rewards | None

    @property
    def label(self) -> str:
        """What the text is shown under."""
        return self.preference

    @property
    def shown(self) -> str:
        """The text, and what is known of it."""
        return "\n".join([self.text.strip(), *self.details])

    @property
    def details(self) -> list[str]:
        """What is known of the text, in lines: its reward, and its experts' mean weights."""
        lines = []
        if self.rewards is not None:
            whole = "" if self.rewards.combined is None else f" {self.rewards.combined:.3f}"
            lines.append(f"(reward{whole}: {_named(self.rewards.sides)})")
        if self.shares is not None:
            lines.append(f"(weights: {_named(self.shares.mean)})")
        return lines

    def to_json(self) -> dict[str, Any]:
        """Return the text as plain data."""
        told: dict[str, Any] = {"prompt": self.prompt, "preference": self.preference, "text": self.text}
        if self.shares is not None:
            columns = zip(*self.shares.weights, strict=True)
            told["mean_weights"] = self.shares.mean
            told["tokens"] = list(self.shares.pieces)
            told["weights"] = {name: list(c) for name, c in zip(self.shares.experts, columns, strict=True)}
        if self.rewards is not None:
            told["rewards"] = dict(self.rewards.sides)
            told["reward"] = self.rewards.combined
        return told


def weights_page(texts: Sequence[object]) -> str:
    """Return a page with the tokens of texts in the colours of their experts, as HTML.

    Parameters
    ----------
    texts : sequence of StatedText
        At least one; all with weights.
    """
    told = [text for text in texts if isinstance(text, StatedText)]
    weighed = [
        WeighedText(text.prompt, text.preference, text.shares.pieces, text.shares.weights)
        for text in told
        if text.shares is not None
    ]
    experts = next(text.shares.experts for text in told if text.shares is not None)
    count = f"{len(weighed)} text" + ("" if len(weighed) == 1 else "s")
    return expert_page("Which expert wrote", f"{count}, {len(experts)} experts", experts, weighed)


def _named(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f}" for name, value in values.items() if value >= 0.0005)
