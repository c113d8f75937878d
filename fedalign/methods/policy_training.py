"""Stage 2's settings, and what a client learns from in a round: responses with their labels, and DPO's loss on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedalign.data.pairs import Judgments
from fedalign.data.schema import Encoder, Question
from fedalign.methods.latent_labels import Labelled
from fedalign.methods.local_training import LocalTraining
from fedalign.methods.policy_evaluation import PolicyEvaluation
from fedalign.methods.policy_writer import PolicyWriter, Written, rows_of
from fedalign.models.policy import PolicySpec
from fedalign.objectives.dpo import dpo_loss


@dataclass(frozen=True)
class PolicyTraining:
    """Settings of stage 2; the ``policy`` block of a variational method.

    Parameters
    ----------
    policy : PolicySpec
    rounds : int
    condition : bool
        Whether the policy is told the latent. False is the monolithic baseline: one policy for everybody.
    latent_scale : float
        Distance of the groups' mean latents from their middle, on average, when the policy is told them; the longer,
        the faster it learns to listen.
    preferences : {"own", "all"}
        Whose latents label a pair: the person's own, or its own and every group's mean.
    sample_from : {"policy", "reference"}
        Who writes the responses: the policy as it is, under latents drawn from the preferences, or the frozen model.
    prompts : int
        Prompts of a client's training judgments in a round, at most.
    completions : int
        Responses to each, of which the pair that a preference is most decided on is learnt from.
    max_prompt_tokens, max_new_tokens : int
    temperature : float
        Of the sampled responses.
    margin : float
        Pairs whose log odds are closer to 0 than this teach nothing and are left out.
    shared : float
        How much of what the average person prefers counts in a label: 1 is the selector's own log odds, 0 only what
        sets a preference apart from the mean over groups. What everybody prefers is told less reliably of responses
        unlike the data, and drowns the difference that z is to make.
    beta : float
        DPO's pull to the frozen model.
    likelihood : float
        Weight of the chosen response's negative log-likelihood, in nats a token (Pang et al. 2024); 0 is DPO. It
        keeps DPO from making the chosen response less likely, if only the rejected one becomes so faster.
    batch : int
        Pairs in a gradient step.
    server : {"average", "optimizer"}
        Whether the server adds the mean change of the adapters, or takes a step of its optimiser along it, as it does
        for the selector.
    local : LocalTraining
    evaluation : PolicyEvaluation
    """

    policy: PolicySpec
    rounds: Annotated[int, Field(ge=0)]
    condition: bool
    latent_scale: Annotated[float, Field(gt=0)]
    preferences: Literal["own", "all"]
    sample_from: Literal["policy", "reference"]
    prompts: Annotated[int, Field(ge=1)]
    completions: Annotated[int, Field(ge=2)]
    max_prompt_tokens: Annotated[int, Field(ge=1)]
    max_new_tokens: Annotated[int, Field(ge=1)]
    temperature: Annotated[float, Field(gt=0)]
    margin: Annotated[float, Field(ge=0)]
    shared: Annotated[float, Field(ge=0, le=1)]
    beta: Annotated[float, Field(gt=0)]
    likelihood: Annotated[float, Field(ge=0)]
    batch: Annotated[int, Field(ge=1)]
    server: Literal["average", "optimizer"]
    local: LocalTraining
    evaluation: PolicyEvaluation


@dataclass(frozen=True)
class Lesson:
    """What a client learns from in a round.

    Parameters
    ----------
    written : Written
        Responses, k to each of N prompts, one prompt after the other.
    reference : Tensor, shape (N * k,)
        The frozen model's log-probabilities of them.
    told : Tensor, shape (N, P, d), or None
        Preferences of each prompt's person as the policy is told them; None if it is not.
    labelled : Labelled
    """

    written: Written
    reference: Tensor
    told: Tensor | None
    labelled: Labelled


def draw_prompts(
    people: Sequence[Judgments], latents: Mapping[str, Tensor], count: int, generator: torch.Generator
) -> tuple[list[str], Tensor]:
    """Return at most ``count`` prompts of people's training judgments, and the preferences to continue each under.

    Parameters
    ----------
    people : sequence of Judgments
    latents : mapping from person to Tensor, shape (P, d)
    count : int
    generator : torch.Generator

    Returns
    -------
    prompts : list of str, length N
    latents : Tensor, shape (N, P, d)
    """
    known = [(judgments.person, judgments.prompts[i]) for judgments in people for i in judgments.train.tolist()]
    drawn = [known[i] for i in torch.randperm(len(known), generator=generator)[:count].tolist()]
    return [prompt for _, prompt in drawn], torch.stack([latents[person] for person, _ in drawn])


def encode_responses(encoder: Encoder, prompts: Sequence[str], responses: Sequence[str], tail: int) -> Tensor:
    """Return encoded responses, shape (N, dim), read as a pair source's own are."""
    texts = [
        encoder.texts(Question(prompt[-tail:], (response,)))[0]
        for prompt, response in zip(prompts, responses, strict=True)
    ]
    return torch.from_numpy(encoder.encode(texts, lambda n: None))


def lesson_loss(
    writer: PolicyWriter, lesson: Lesson, settings: PolicyTraining, generator: torch.Generator
) -> tuple[Tensor, float]:
    """Return the mean loss over a random batch of a lesson's pairs, and how many of them the policy has right."""
    labelled = lesson.labelled
    drawn = torch.randperm(len(labelled.prompt), generator=generator)[: settings.batch]
    prompt, preference = labelled.prompt[drawn], labelled.preference[drawn]
    rows = torch.cat([prompt * settings.completions + side[drawn] for side in (labelled.chosen, labelled.rejected)])
    z = None if lesson.told is None else lesson.told[prompt, preference].repeat(2, 1)
    tokens = rows_of(lesson.written.tokens, rows)
    chosen, rejected = writer.log_probability(tokens, z).chunk(2)
    reference = lesson.reference[rows].chunk(2)
    loss, margin = dpo_loss(chosen, rejected, reference[0], reference[1], settings.beta)
    length = tokens.response_mask[: len(drawn)].sum(1).clamp(min=1)
    right = float((margin > 0).float().mean())
    return (loss - settings.likelihood * chosen / length).mean(), right
