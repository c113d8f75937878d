"""What the policies of a finished language run write, and what that is truly worth to every type of annotator."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fedalign.contribution import State
from fedalign.data.annotator_types import true_utility
from fedalign.data.review_texts import filler_score, review_prompts, style_score, tone_score
from fedalign.data.synthetic_rankings import SyntheticRankings
from fedalign.methods.log_linear import LogLinearPolicy
from fedalign.methods.policy_writer import Written
from fedalign.methods.text_policies import TextPolicy, Writing, policy_rewards, type_policies
from fedalign.methods.type_adapters import AdapterTypes
from fedalign.methods.type_model import PRIOR
from fedalign.models.text import ResponseBatch
from fedalign.objectives.regret import maxmin_weights, minmax_weights, regret_matrix
from fedalign.rng import Streams
from simulations.emdpo.distil import distilled_policy
from simulations.emdpo.finished import opened

PROMPTS = 128
"""Public prompts, the same for all runs; policies write them under the same random numbers."""
WRITING = Writing(samples=1, max_new_tokens=28, temperature=1.0, batch=64)
BASE, MERGED, DISTILLED = "base", "log_linear", "distilled"
"""Names of policies that are no type's: the frozen model, the types' merge at the weights of MMRA, and one adapter."""


class BasePolicy(TextPolicy):
    """The frozen model.

    Parameters
    ----------
    model : AdapterTypes
    """

    def __init__(self, model: AdapterTypes) -> None:
        self._writer = model.writer

    def write(self, prompts: Sequence[str], writing: Writing, generator: torch.Generator) -> Written:
        """Continue every prompt."""
        longest = writing.max_new_tokens
        return self._writer.write(prompts, None, writing.temperature, generator, reference=True, max_new_tokens=longest)

    @torch.no_grad()
    def log_probability(self, tokens: ResponseBatch) -> Tensor:
        """Return the frozen model's log-probability of every response, shape (B,)."""
        return self._writer.reference_log_probability(tokens)


def policies(path: Path) -> dict[str, float]:
    """Return what every policy's texts are truly worth, and the mixtures that nobody's true type was needed for.

    ``utility/<policy>/<type>`` is the mean true utility of a policy's texts to a type of annotators, ``mean/<part>/
    <policy>`` that of what it is made of, ``perplexity/<policy>`` that of the texts under the base model,
    ``reward/<i>/<j>`` type i's mean implicit reward of policy j's texts, ``weight/<mixture>/<policy>`` a mixture, and
    ``share/<type>`` how many of the annotators are of a type. A policy is a learnt type's number, or has a name.
    """
    run = opened(path)
    model, data = run.phase.model, run.config.data
    assert isinstance(model, AdapterTypes)
    assert isinstance(data, SyntheticRankings)
    prompts = scored_prompts()
    own = type_policies(model, run.state)
    rewards = rewards_of(model, run.state, prompts)
    mixtures = mixtures_of(rewards, run.state[PRIOR])
    writers: dict[str, TextPolicy] = {str(number): policy for number, policy in enumerate(own)}
    writers[BASE] = BasePolicy(model)
    if len(own) > 1:
        writers[MERGED] = LogLinearPolicy(model, run.state, mixtures["mmra"])
    found = {f"share/{kind.name}": kind.share / sum(other.share for other in data.types) for kind in data.types}
    found |= {f"reward/{i}/{j}": value for i, row in enumerate(rewards.tolist()) for j, value in enumerate(row)}
    for mixture, weights in mixtures.items():
        found |= {f"weight/{mixture}/{k}": weight for k, weight in enumerate(weights.tolist())}
    for name, policy in writers.items():
        found |= texts_of(name, policy, model, data, prompts)
    return found


def distilled(path: Path) -> dict[str, float]:
    """Return what the texts of one adapter are truly worth that was distilled at the weights of MMRA."""
    run = opened(path)
    model, data = run.phase.model, run.config.data
    assert isinstance(model, AdapterTypes)
    assert isinstance(data, SyntheticRankings)
    prompts = scored_prompts()
    mixtures = mixtures_of(rewards_of(model, run.state, prompts), run.state[PRIOR])
    policy = distilled_policy(run, mixtures["mmra"], prompts, WRITING)
    return texts_of(DISTILLED, policy, model, data, prompts)


def scored_prompts() -> list[str]:
    """Return the prompts that all policies of all runs continue."""
    return review_prompts(PROMPTS, Streams(0).numpy("prompts"))


def rewards_of(model: AdapterTypes, state: State, prompts: Sequence[str]) -> Tensor:
    """Return every type's mean implicit reward of every type's policy, float64 of shape (K, K)."""
    own = type_policies(model, state)
    return torch.stack([policy_rewards(model, state, policy, prompts, WRITING, _same()) for policy in own], 1)


def texts_of(
    name: str, policy: TextPolicy, model: AdapterTypes, data: SyntheticRankings, prompts: Sequence[str]
) -> dict[str, float]:
    """Return what a policy's texts are worth and made of, and how likely they are, by the policy's name."""
    generator = _same()
    parts = [policy.write(part, WRITING, generator) for part in WRITING.parts(prompts)]
    texts = [text for part in parts for text in part.texts]
    found = {f"utility/{name}/{kind}": value for kind, value in utilities_of(texts, data).items()}
    found |= {f"mean/{part}/{name}": value for part, value in parts_of(texts).items()}
    return {**found, f"perplexity/{name}": perplexity(model, parts)}


def mixtures_of(rewards: Tensor, shares: Tensor) -> dict[str, Tensor]:
    """Return weights of types by how they are mixed, float64 of shape (K,) each.

    Parameters
    ----------
    rewards : Tensor, shape (K, K)
        Row i: type i's mean implicit reward of each type's policy.
    shares : Tensor, shape (K,)
        Of annotators.
    """
    absolute, relative = (regret_matrix(rewards, torch.ones(len(rewards)), normalise) for normalise in (False, True))
    return {
        "shares": shares.double() / shares.double().sum(),
        "mmra": minmax_weights(absolute)[0],
        "mmra_normalised": minmax_weights(relative)[0],
        "maxmin": maxmin_weights(rewards)[0],
    }


def utilities_of(texts: Sequence[str], data: SyntheticRankings) -> dict[str, float]:
    """Return what texts are worth to each type of annotators, by its name, on average."""
    worth = true_utility(data.types, data.quality_weight)
    return {kind.name: float(np.mean([worth(kind.name, text) for text in texts])) for kind in data.types}


def parts_of(texts: Sequence[str]) -> dict[str, float]:
    """Return what utilities are made of: mean signs of tone and of style, and the share of texts with junk."""
    return {
        "tone": float(np.mean([np.sign(tone_score(text)) for text in texts])),
        "style": float(np.mean([np.sign(style_score(text)) for text in texts])),
        "junk": float(np.mean([filler_score(text) > 0 for text in texts])),
    }


@torch.no_grad()
def perplexity(model: AdapterTypes, parts: Sequence[Written]) -> float:
    """Return the base model's perplexity of texts, over all of their tokens: broken text has a high one."""
    likely = sum(float(model.writer.reference_log_probability(part.tokens).double().sum()) for part in parts)
    return float(np.exp(-likely / sum(int(part.tokens.response_mask.sum()) for part in parts)))


def _same() -> torch.Generator:
    return Streams(0).torch("answers")
