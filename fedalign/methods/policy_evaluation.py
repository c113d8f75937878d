"""How well a policy follows preferences: responses under every group's latent, compared by a judge."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedalign.methods.judges import Judge, Verdicts
from fedalign.methods.policy_writer import PolicyWriter, Written
from fedalign.metrics.generation import distinct_n
from fedalign.metrics.record import MetricSum
from fedalign.rng import Streams

FOLLOW = "follow"


@dataclass(frozen=True)
class PolicyEvaluation:
    """How a policy is scored; the ``evaluation`` block of its training.

    Parameters
    ----------
    judge : Judge
        Knows every group of the data as a preference.
    baseline : {"empty", "reference"}
        What a response must beat to follow a preference: an empty text, which for the oracle of the synthetic world
        asks on which side the response is, or what the frozen model writes.
    clients : float
        Share of the clients that write for an evaluation, the same ones in every round and arm of a seed.
    prompts : int
        Held-out prompts of each of their people, at most.
    temperature : float
        0 takes the likeliest token.
    """

    judge: Judge
    baseline: Literal["empty", "reference"]
    clients: Annotated[float, Field(gt=0, le=1)]
    prompts: Annotated[int, Field(ge=1)]
    temperature: Annotated[float, Field(ge=0)]

    def takes(self, client: str, seed: int) -> bool:
        """Say whether a client writes for evaluations."""
        return float(Streams(seed, client=client).numpy("evaluation/client").random()) < self.clients


@dataclass(frozen=True)
class Preferences:
    """Whom a policy is to please.

    Parameters
    ----------
    groups : mapping from group to Tensor, shape (d,)
        Mean latents.
    own_group : str
        Group of the person whose prompts are continued.
    own : Tensor, shape (d,)
        The person's latent.
    """

    groups: Mapping[str, Tensor]
    own_group: str
    own: Tensor


def follow_sums(
    writer: PolicyWriter,
    settings: PolicyEvaluation,
    prompts: Sequence[str],
    preferences: Preferences,
    generator: torch.Generator,
) -> Iterator[MetricSum]:
    """Yield sums of what a judge says of the responses to some prompts, by the group that they were to please.

    Parameters
    ----------
    writer : PolicyWriter
        A policy that takes no z writes one response a prompt, which is judged for every group.
    settings : PolicyEvaluation
    prompts : sequence of str, length n
    preferences : Preferences
    generator : torch.Generator

    Yields
    ------
    MetricSum
        ``follow`` under the group's mean latent, ``follow_own`` under the person's own, ``switch_rate`` against the
        latent of the opposed group, ``policy_kl`` (nats a response), ``distinct_2`` (share of a response's word pairs
        that are not repetitions) and ``unreadable`` verdicts.
    """
    groups = sorted(preferences.groups)
    latents = torch.stack([*(preferences.groups[group] for group in groups), preferences.own])
    written = _responses(writer, settings.temperature, prompts, latents, generator)
    texts = dict(zip(groups, written, strict=False))
    other = [""] * len(prompts)
    if settings.baseline == "reference":
        other = writer.write(prompts, None, settings.temperature, generator, reference=True).texts
    judge = settings.judge
    for group, (response, kl) in texts.items():
        yield from _judged(FOLLOW, group, judge.scores(group, prompts, response.texts, other))
        yield MetricSum("policy_kl", group, float(kl.sum()), float(len(prompts)))
        distinct = sum(distinct_n([text], 2) for text in response.texts)
        yield MetricSum("distinct_2", group, distinct, float(len(prompts)))
        rival = opposed_group(preferences.groups, group)
        if rival is not None:
            verdicts = judge.scores(group, prompts, response.texts, texts[rival][0].texts)
            yield from _judged("switch_rate", group, verdicts)
    own = preferences.own_group
    yield from _judged("follow_own", own, judge.scores(own, prompts, written[-1][0].texts, other))


def opposed_group(means: Mapping[str, Tensor], group: str) -> str | None:
    """Return the group whose mean latent is farthest from ``group``'s; None if there is no other."""
    others = [name for name in sorted(means) if name != group]
    return max(others, key=lambda name: float((means[name] - means[group]).square().sum()), default=None)


def _responses(
    writer: PolicyWriter, temperature: float, prompts: Sequence[str], latents: Tensor, generator: torch.Generator
) -> list[tuple[Written, Tensor]]:
    """Return what is written under each latent, with its divergence; once for all if the policy takes none."""
    found = []
    for z in latents if writer.policy.latent else latents[:1]:
        told = z.expand(len(prompts), -1) if writer.policy.latent else None
        written = writer.write(prompts, told, temperature, generator)
        found.append((written, writer.divergence(written.tokens, told)))
    return found * (len(latents) // len(found))


def _judged(name: str, group: str, verdicts: Verdicts) -> Iterator[MetricSum]:
    """Yield a win rate over the verdicts that can be read, and how many cannot."""
    readable = verdicts.first[~verdicts.first.isnan()]
    if len(readable):
        yield MetricSum(name, group, float(readable.sum()), float(len(readable)))
    if len(verdicts.first):
        yield MetricSum("unreadable", group, float(verdicts.unreadable), float(len(verdicts.first)))
