"""How good the texts of a language model are: their reward, how far it has moved, and how varied what it writes is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedalign.data.corpus import CorpusShard, Example
from fedalign.methods.policy_writer import Written
from fedalign.methods.rollouts import uniform, write
from fedalign.methods.text_lengths import Lengths
from fedalign.methods.text_reward import TextReward
from fedalign.metrics.generation import ROUGE, distinct_n, mean_interval, rouge, win
from fedalign.metrics.record import MetricSum
from fedalign.models.policy import ConditionalPolicy
from fedalign.models.text import TextCodec
from fedalign.objectives.ppo import token_log_probabilities
from fedalign.rng import Streams

Scores = Callable[[Sequence[str], Written], Tensor]
"""From prompts and what was written to them to rewards, shape (B,)."""

MOMENTS = "moments/"
_REFERENCE_NLL = "unseen/reference_nll"
_NLL = "nll"


@dataclass(frozen=True)
class TextEvaluation:
    """How texts are scored; the ``evaluation`` block of the method.

    Parameters
    ----------
    prompts : int
        Test prompts of each unseen client, at most.
    batch : int
        Of these, how many are written to at once.
    temperature : float
        0 takes the likeliest token.
    judge : TextReward or None
        A reward that training never sees, by which responses win or lose.
    baseline : {"pretrained", "response"}
        What they win against: what the model wrote before any training, with the same random numbers, or the
        response in the data.
    rouge : bool
        Whether responses are compared with those in the data (ROUGE-1, -2 and -L).
    """

    prompts: Annotated[int, Field(ge=1)]
    batch: Annotated[int, Field(ge=1)]
    temperature: Annotated[float, Field(ge=0)]
    judge: TextReward | None
    baseline: Literal["pretrained", "response"]
    rouge: bool


def reward_scores(reward: TextReward) -> Scores:
    """Return the scores that a reward of texts gives."""
    return lambda prompts, written: reward.score(prompts, written.texts)


@dataclass
class TextScorer:
    """Has a policy write to test prompts, and says what comes of it.

    Parameters
    ----------
    settings : TextEvaluation
    policy : ConditionalPolicy
        The workspace; it writes with what is loaded.
    codec : TextCodec
    lengths : Lengths
    """

    settings: TextEvaluation
    policy: ConditionalPolicy
    codec: TextCodec
    lengths: Lengths
    _before: dict[tuple[str, int, int], list[str]] = field(default_factory=dict)

    def chosen(self, shard: CorpusShard) -> Sequence[Example]:
        """Return the test examples that are written to."""
        return shard.test[: self.settings.prompts]

    @property
    def bounded_metrics(self) -> frozenset[str]:
        """Metrics between 0 and 1, which noisy sums can tell."""
        names = ["distinct_1", "distinct_2", *(ROUGE if self.settings.rouge else ())]
        if self.settings.judge is not None:
            names.append("win_rate")
        return frozenset(f"unseen/{name}" for name in names)

    def parts(self, examples: Sequence[Example]) -> Iterator[Sequence[Example]]:
        """Yield examples as many at once as are computed together."""
        for start in range(0, len(examples), self.settings.batch):
            yield examples[start : start + self.settings.batch]

    @torch.no_grad()
    def evaluate(
        self, examples: Sequence[Example], client: str, seed: int, scores: Scores | None, reference: ConditionalPolicy
    ) -> tuple[list[MetricSum], dict[str, Tensor]]:
        """Return metric sums by group, and moments of the rewards.

        Parameters
        ----------
        examples : sequence of Example
            At least one.
        client : str
        seed : int
            The same draws in every round and phase of a seed.
        scores : Scores or None
            The reward; None leaves it out.
        reference : ConditionalPolicy
            What the policy's distance is measured from, and the perplexity of its texts.
        """
        draws = self._draws(len(examples), client, seed)
        found: dict[str, list[Tensor]] = {}
        for number, part in enumerate(self.parts(examples)):
            start = number * self.settings.batch
            own = None if draws is None else draws[start : start + len(part)]
            for name, each in self._values(part, own, (client, seed, start), scores, reference):
                found.setdefault(name, []).append(each.cpu().double())
        values = {name: torch.cat(pieces) for name, pieces in found.items()}
        groups = [example.group for example in examples]
        tokens, nll = values["length"], values.pop(_NLL)
        sums = [s for name, column in values.items() for s in by_group(f"unseen/{name}", groups, column)]
        sums += [
            MetricSum(_REFERENCE_NLL, group, float(total), float(count))
            for group, total, count in zip(groups, nll, tokens, strict=True)
        ]
        return sums, _moments(groups, values["reward"]) if scores is not None else {}

    def _values(
        self,
        examples: Sequence[Example],
        draws: Tensor | None,
        place: tuple[str, int, int],
        scores: Scores | None,
        reference: ConditionalPolicy,
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield what is said of the response to each prompt, shape (B,), by name."""
        prompts = [example.prompt for example in examples]
        written = write(self.policy, self.codec, self.lengths, prompts, draws, self.settings.temperature)
        yield from self._distances(written, reference)
        yield "distinct_1", torch.tensor([distinct_n([text], 1) for text in written.texts])
        yield "distinct_2", torch.tensor([distinct_n([text], 2) for text in written.texts])
        if self.settings.rouge:
            yield from rouge([example.response for example in examples], written.texts).items()
        if self.settings.judge is not None:
            yield "win_rate", self._wins(self.settings.judge, examples, written, draws, place)
        if scores is not None:
            yield "reward", scores(prompts, written)

    def _draws(self, count: int, client: str, seed: int) -> Tensor | None:
        if self.settings.temperature == 0:
            return None
        numbers = Streams(seed, client=client).numpy("evaluation/texts").integers(2**62, size=count)
        return uniform([int(n) for n in numbers], self.lengths.response)

    def _distances(self, written: Written, reference: ConditionalPolicy) -> Iterator[tuple[str, Tensor]]:
        """Yield the divergence from the reference along each response, its likelihood there, and its length."""
        tokens, inside = written.tokens, written.tokens.response_mask[:, 1:]
        policy = self.policy(tokens.ids, tokens.attention_mask, None)[:, :-1].float().log_softmax(2)
        logits = reference(tokens.ids, tokens.attention_mask, None)
        other = logits[:, :-1].float().log_softmax(2)
        yield "kl", ((policy.exp() * (policy - other)).sum(2) * inside).sum(1)
        yield _NLL, -token_log_probabilities(logits, tokens.ids, tokens.response_mask).sum(1)
        yield "length", tokens.response_mask.sum(1)

    def _wins(
        self,
        judge: TextReward,
        examples: Sequence[Example],
        written: Written,
        draws: Tensor | None,
        place: tuple[str, int, int],
    ) -> Tensor:
        prompts = [example.prompt for example in examples]
        if self.settings.baseline == "response":
            other = [example.response for example in examples]
        else:
            if place not in self._before:
                before = write(self.policy, self.codec, self.lengths, prompts, draws, self.settings.temperature, True)
                self._before[place] = before.texts
            other = self._before[place]
        return win(judge.score(prompts, written.texts), judge.score(prompts, other))


def by_group(name: str, groups: Sequence[str], values: Tensor) -> Iterator[MetricSum]:
    """Yield the sum of values, shape (B,), of each group."""
    for group in sorted(set(groups)):
        own = torch.tensor([g == group for g in groups])
        yield MetricSum(name, group, float(values.cpu().double()[own].sum()), float(own.sum()))


def overall(values: dict[str, float], tensors: Mapping[str, Tensor]) -> dict[str, float]:
    """Return values over all groups with the perplexity, the worst group's reward and the mean reward's interval.

    Parameters
    ----------
    values : dict from metric to mean
    tensors : mapping from name to Tensor
        Moments of the rewards by group, as :class:`TextScorer` gives them.
    """
    found = dict(values)
    if _REFERENCE_NLL in found:
        found["unseen/perplexity"] = math.exp(found[_REFERENCE_NLL])
    if "unseen/test_nll" in found:
        found["unseen/test_perplexity"] = math.exp(found["unseen/test_nll"])
    moments = [tensor.tolist() for name, tensor in tensors.items() if name.startswith(MOMENTS)]
    if moments:
        found["unseen/reward_worst"] = min(total / n for total, _, n in moments)
        total, squares, n = (sum(column) for column in zip(*moments, strict=True))
        half = mean_interval(total, squares, n).half_width
        if half is not None:
            found["unseen/reward_interval"] = half
    return found


def _moments(groups: Sequence[str], rewards: Tensor) -> dict[str, Tensor]:
    """Return sum, sum of squares and number of the rewards of each group."""
    found = {}
    for group in sorted(set(groups)):
        own = rewards.cpu().double()[torch.tensor([g == group for g in groups])]
        found[MOMENTS + group] = torch.stack([own.sum(), own.square().sum(), torch.tensor(float(len(own)))])
    return found
