"""Policies that write, made of types' adapters: what they share, and what types make of what they write."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fedalign.contribution import State
from fedalign.errors import UserError
from fedalign.methods.policy_writer import Written
from fedalign.methods.type_adapters import AdapterTypes
from fedalign.methods.type_model import count, type_of
from fedalign.models.text import ResponseBatch


@dataclass(frozen=True)
class Writing:
    """How policies write what they are judged by, or taught from.

    Parameters
    ----------
    samples : int
        Texts for each prompt.
    max_new_tokens : int
        Longest text.
    temperature : float
        1 draws from the policy itself, so that a mean over texts estimates an expectation under it; another draws from
        a flatter or sharper one. The likeliest text (0) would be no draw at all.
    batch : int
        Texts written at once.
    """

    samples: Annotated[int, Field(ge=1)]
    max_new_tokens: Annotated[int, Field(ge=1)]
    temperature: Annotated[float, Field(gt=0)]
    batch: Annotated[int, Field(ge=1)]

    def parts(self, prompts: Sequence[str]) -> Iterator[Sequence[str]]:
        """Yield every prompt as often as it is written to, as many at once as are written together."""
        rows = [prompt for prompt in prompts for _ in range(self.samples)]
        for start in range(0, len(rows), self.batch):
            yield rows[start : start + self.batch]


class TextPolicy(ABC):
    """Something that writes, and knows how likely it finds a text."""

    @abstractmethod
    def write(self, prompts: Sequence[str], writing: Writing, generator: torch.Generator) -> Written:
        """Continue every prompt once, at the temperature and up to the length of ``writing``."""

    @abstractmethod
    def log_probability(self, tokens: ResponseBatch) -> Tensor:
        """Return the log-probability of every response, shape (B,), without gradients."""


class AdapterPolicy(TextPolicy):
    """The base model with one adapter: a type's, or one that was distilled.

    Parameters
    ----------
    model : AdapterTypes
        The workspace; it holds the adapter after every call.
    parameters : mapping from name to Tensor
    """

    def __init__(self, model: AdapterTypes, parameters: Mapping[str, Tensor]) -> None:
        self._model, self._parameters = model, parameters

    def write(self, prompts: Sequence[str], writing: Writing, generator: torch.Generator) -> Written:
        """Continue every prompt."""
        self._model.load(self._parameters)
        return self._model.writer.write(
            prompts, None, writing.temperature, generator, max_new_tokens=writing.max_new_tokens
        )

    @torch.no_grad()
    def log_probability(self, tokens: ResponseBatch) -> Tensor:
        """Return the adapter's log-probability of every response, shape (B,)."""
        self._model.load(self._parameters)
        return self._model.writer.log_probability(tokens, None)


def type_policies(model: AdapterTypes, state: State) -> list[AdapterPolicy]:
    """Return the policy of each type of a state."""
    return [AdapterPolicy(model, type_of(state, number)) for number in range(count(state))]


@torch.no_grad()
def policy_rewards(
    model: AdapterTypes,
    state: State,
    policy: TextPolicy,
    prompts: Sequence[str],
    writing: Writing,
    generator: torch.Generator,
) -> Tensor:
    """Return what every type finds of what a policy writes.

    The implicit reward of DPO but for its factor beta, over the very tokens that were drawn: type i's is the mean over
    texts of ``log pi_i(y|x) - log pi_ref(y|x)``. What it lacks is the same for all policies.

    Parameters
    ----------
    model : AdapterTypes
    state : State
        With all types.
    policy : TextPolicy
    prompts : sequence of str
        At least one.
    writing : Writing
    generator : torch.Generator

    Returns
    -------
    float64 Tensor, shape (K,)
    """
    written = [policy.write(part, writing, generator).tokens for part in writing.parts(prompts)]
    reference = torch.cat([model.writer.reference_log_probability(tokens) for tokens in written])
    found = [torch.cat([own.log_probability(tokens) for tokens in written]) for own in type_policies(model, state)]
    return (torch.stack(found).double() - reference.double()).mean(1).cpu()


def worst_regrets(
    model: AdapterTypes,
    state: State,
    policies: Mapping[str, TextPolicy],
    prompts: Sequence[str],
    writing: Writing,
    generator: torch.Generator,
) -> dict[str, tuple[float, float]]:
    """Return the mean over types of their regret under each policy, and the worst type's, on the same prompts.

    A type's regret is its implicit reward of what its own policy writes less that of what the policy writes, in nats a
    response; the worst is at least 0.
    """
    everyone = enumerate(type_policies(model, state))
    best = torch.stack([policy_rewards(model, state, own, prompts, writing, generator)[k] for k, own in everyone])
    found = {}
    for name, policy in policies.items():
        regrets = best - policy_rewards(model, state, policy, prompts, writing, generator)
        found[name] = (float(regrets.mean()), max(0.0, float(regrets.max())))
    return found


def read_public_prompts(path: Path, key: str) -> list[str]:
    """Return the prompts of a text file, one a line; empty lines are left out.

    Parameters
    ----------
    path : Path
    key : str
        The setting that names it.

    Raises
    ------
    UserError
        If it cannot be read, or holds none.
    """
    try:
        lines = path.expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{key}={path}: cannot be read as UTF-8 text ({error}); give a file of prompts") from None
    prompts = [line for line in lines if line.strip()]
    if not prompts:
        raise UserError(f"{key}={path}: holds no prompt; write one a line")
    return prompts
