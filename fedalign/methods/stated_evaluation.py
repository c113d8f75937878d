"""How well texts serve stated preferences: rewards by dimension, wins over an even mixture, coherence, weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fedalign.data.corpus import CorpusShard, Example
from fedalign.methods.reference_texts import ReferenceTexts
from fedalign.methods.rollouts import uniform
from fedalign.methods.stated_preference import Preferences, SideRewards, combined
from fedalign.methods.stated_writer import StatedText, StatedWriter
from fedalign.methods.text_evaluation import by_group
from fedalign.metrics.generation import win
from fedalign.metrics.record import MetricSum
from fedalign.objectives.ppo import token_log_probabilities
from fedalign.rng import Streams

_NLL, _LENGTH = "base_nll", "length"


@dataclass(frozen=True)
class StatedEvaluation:
    """How texts are scored; the ``evaluation`` block of the method.

    Parameters
    ----------
    prompts : int
        Test prompts of each unseen client, at most.
    batch : int
        Of these, how many are written to at once.
    temperature : float
        Of the experts; 0 takes the likeliest tokens.
    """

    prompts: Annotated[int, Field(ge=1)]
    batch: Annotated[int, Field(ge=1)]
    temperature: Annotated[float, Field(ge=0)]


class StatedScorer:
    """Has a writer continue test prompts under their preferences, and says what comes of it.

    Rewards compare with the same reference texts whatever writes, and texts are drawn with the same random numbers, so
    that arms and rounds of one seed are scored alike.

    Parameters
    ----------
    settings : StatedEvaluation
    preferences : Preferences
    rewards : SideRewards or None
        None where nothing says what texts are worth.
    references : ReferenceTexts
    """

    def __init__(
        self,
        settings: StatedEvaluation,
        preferences: Preferences,
        rewards: SideRewards | None,
        references: ReferenceTexts,
    ) -> None:
        self.settings, self.preferences = settings, preferences
        self._rewards, self._references = rewards, references
        self._even: dict[tuple[str, int, int, tuple[Example, ...]], list[str]] = {}

    def forget(self) -> None:
        """Forget the texts that others are compared with: the experts are others."""
        self._even.clear()

    @property
    def bounded_metrics(self) -> frozenset[str]:
        """Metrics between 0 and 1, which noisy sums can tell."""
        names = [f"weight_{name}" for name in self.preferences.names]
        if self._rewards is not None:
            names += ["reward", "win_rate", "satisfied", *(f"reward_{name}" for name in self.preferences.dimensions)]
        return frozenset(f"unseen/{name}" for name in names)

    def chosen(self, shard: CorpusShard) -> Sequence[Example]:
        """Return the test examples that are written to: those whose preference leaves something to decide."""
        stated = [e for e in shard.test if int((self.preferences.vector(e.group, "group") > 0).sum()) > 1]
        return stated[: self.settings.prompts]

    @torch.no_grad()
    def evaluate(self, writer: StatedWriter, examples: Sequence[Example], client: str, seed: int) -> list[MetricSum]:
        """Return metric sums by preference.

        Parameters
        ----------
        writer : StatedWriter
        examples : sequence of Example
            At least one, each of which states something.
        client : str
        seed : int
        """
        draws = self._draws(len(examples), client, seed)
        found: dict[str, list[Tensor]] = {}
        for start in range(0, len(examples), self.settings.batch):
            part = examples[start : start + self.settings.batch]
            own = None if draws is None else draws[start : start + len(part)]
            for name, each in self._values(writer, part, own, (client, seed, start)):
                found.setdefault(name, []).append(each.cpu().double())
        values = {name: torch.cat(pieces) for name, pieces in found.items()}
        groups = [example.group for example in examples]
        nll, tokens = values.pop(_NLL), values[_LENGTH]
        sums = [each for name, column in values.items() for each in _told(f"unseen/{name}", groups, column)]
        per_token = zip(groups, nll.tolist(), tokens.tolist(), strict=True)
        return [*sums, *(MetricSum(f"unseen/{_NLL}", group, total, n) for group, total, n in per_token)]

    @torch.no_grad()
    def texts(self, writer: StatedWriter, examples: Sequence[Example], client: str, seed: int) -> list[str]:
        """Return what is written to test prompts, as :meth:`evaluate` scores it."""
        draws = self._draws(len(examples), client, seed)
        found: list[str] = []
        for start in range(0, len(examples), self.settings.batch):
            part = examples[start : start + self.settings.batch]
            own = None if draws is None else draws[start : start + len(part)]
            vectors = torch.stack([self.preferences.vector(example.group, "group") for example in part])
            prompts = [example.prompt for example in part]
            found += writer.write(prompts, vectors, own, self.settings.temperature or 1.0).texts
        return found

    def _values(
        self, writer: StatedWriter, examples: Sequence[Example], draws: Tensor | None, drawn_for: tuple[str, int, int]
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield what is said of the response to each prompt, shape (B,), by name."""
        prompts = [example.prompt for example in examples]
        vectors = torch.stack([self.preferences.vector(example.group, "group") for example in examples])
        written = writer.write(prompts, vectors, draws, self.settings.temperature or 1.0)
        tokens = written.tokens
        found = self._references.experts.base(tokens.ids, tokens.attention_mask)
        yield _NLL, -token_log_probabilities(found, tokens.ids, tokens.response_mask).sum(1)
        yield _LENGTH, tokens.response_mask.sum(1)
        if written.log_weights is not None:
            yield from self._weights(written)
        if self._rewards is not None:
            key = (*drawn_for, tuple(examples))
            if key not in self._even:
                self._even[key] = self._references.even(prompts, vectors, draws, self.settings.temperature or 1.0)
            yield from self._worth(self._rewards, prompts, vectors, written.texts, self._even[key])

    def _worth(
        self, rewards: SideRewards, prompts: Sequence[str], vectors: Tensor, texts: list[str], even: list[str]
    ) -> Iterator[tuple[str, Tensor]]:
        measured = rewards.measured(prompts, texts)
        reference = self._references.measured(rewards, prompts)
        sides = rewards.sides(measured, reference)
        yield "reward", combined(sides, vectors)
        start = 0
        for name, dimension in self.preferences.dimensions.items():
            own = slice(start, start := start + len(dimension.sides))
            # 0 / 0 where a preference leaves a dimension alone: NaN, which is left out.
            yield f"reward_{name}", combined(sides[:, own], vectors[:, own])
        yield "satisfied", combined((signed(measured) > 0).float(), vectors)
        plain = combined(signed(measured), vectors)
        yield "win_rate", win(plain, combined(signed(rewards.measured(prompts, even)), vectors))

    def _weights(self, written: StatedText) -> Iterator[tuple[str, Tensor]]:
        """Yield the mean weight of each expert over a text's tokens, and the weights' mean entropy in nats."""
        assert written.log_weights is not None
        inside = written.tokens.response_mask[:, -written.log_weights.shape[1] :].float()
        weights, count = written.log_weights.exp(), inside.sum(1)
        yield "weight_entropy", (torch.special.entr(weights).sum(2) * inside).sum(1) / count
        means = (weights * inside[..., None]).sum(1) / count[:, None]
        for place, name in enumerate(self.preferences.names):
            yield f"weight_{name}", means[:, place]

    def _draws(self, count: int, client: str, seed: int) -> Tensor | None:
        if self.settings.temperature == 0:
            return None
        numbers = Streams(seed, client=client).numpy("evaluation/texts").integers(2**62, size=count)
        return uniform([int(n) for n in numbers], self._references.width)


def _told(name: str, groups: Sequence[str], values: Tensor) -> Iterator[MetricSum]:
    """Yield the sum of each group's values, without those that are NaN."""
    there = (~values.isnan()).nonzero()[:, 0].tolist()
    return by_group(name, [groups[i] for i in there], values[there])


def signed(measured: Tensor) -> Tensor:
    """Return each side's measure: as it is for the high side, negated for the low one; from (B, D) to (B, n)."""
    return torch.stack([measured, -measured], 2).flatten(1)


def over_preferences(values: dict[str, float], sums: Sequence[MetricSum]) -> dict[str, float]:
    """Return values over all preferences with the perplexity, and the reward of the preference that is served worst.

    Parameters
    ----------
    values : dict from metric to mean
    sums : sequence of MetricSum
        By preference.
    """
    found = dict(values)
    if f"unseen/{_NLL}" in found:
        found["unseen/perplexity"] = math.exp(found[f"unseen/{_NLL}"])
    rewards = [each.total / each.n for each in sums if each.name == "unseen/reward"]
    if rewards:
        found["unseen/reward_worst"] = min(rewards)
    return found
