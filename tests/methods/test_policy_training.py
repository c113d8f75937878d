"""What a client learns from in a round: drawn prompts, encoded responses, and a loss against one written by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from fedalign.config import parse, resolve
from fedalign.data.encoders.hashing import HashingEncoder
from fedalign.methods.fedvpa import FedVPA
from fedalign.methods.latent_labels import Labelled
from fedalign.methods.policy_training import Lesson, PolicyTraining, draw_prompts, encode_responses, lesson_loss
from fedalign.methods.policy_writer import Written
from fedalign.models.text import ResponseBatch

from .judgments import random_person


@pytest.fixture(scope="module")
def settings() -> PolicyTraining:
    method = parse(resolve(["experiment=fedvpa_policy", "method.policy.completions=2"])).method
    assert isinstance(method, FedVPA) and method.policy is not None
    return method.policy


class Fixed:
    """A policy whose log-probability of a text is its first token times 1 + z."""

    def log_probability(self, tokens: ResponseBatch, z: Tensor | None) -> Tensor:
        return -tokens.ids[:, 0].float() * (1 if z is None else 1 + z[:, 0])


def lesson(told: Tensor | None) -> Lesson:
    """Two prompts with two responses each; the second prompt's are labelled both ways."""
    ids = torch.tensor([[1, 5], [2, 5], [3, 5], [4, 0]])
    mask = torch.tensor([[1, 1], [1, 1], [1, 1], [1, 0]])
    labelled = Labelled(*torch.tensor([[0, 1, 1], [0, 0, 1], [0, 0, 1], [1, 1, 0]]))
    return Lesson(
        Written(ResponseBatch(ids, mask, mask), [""] * 4), torch.tensor([-1.0, -1.5, -2.0, -2.5]), told, labelled
    )


@pytest.mark.parametrize("with_z", [True, False])
@pytest.mark.parametrize("likelihood", [0.0, 0.7])
def test_the_loss_is_dpo_and_the_likelihood_of_what_was_chosen(
    settings: PolicyTraining, with_z: bool, likelihood: float
) -> None:
    told = torch.tensor([[[0.5], [1.0]], [[2.0], [-0.5]]]) if with_z else None
    chosen, beta = replace(settings, likelihood=likelihood, beta=0.3, batch=3), 0.3
    loss, right = lesson_loss(Fixed(), lesson(told), chosen, torch.Generator())  # type: ignore[arg-type]
    # (z, first token and reference of the chosen, the same of the rejected, length of the chosen)
    rows = [(0.5, 1, -1.0, 2, -1.5, 2), (2.0, 3, -2.0, 4, -2.5, 2), (-0.5, 4, -2.5, 3, -2.0, 1)]
    expected, wins = 0.0, 0
    for z, c, c_reference, r, r_reference, length in rows:
        factor = 1 + z if with_z else 1.0
        margin = beta * ((-c * factor - c_reference) - (-r * factor - r_reference))
        wins += margin > 0
        expected += float(torch.nn.functional.softplus(torch.tensor(-margin))) + likelihood * c * factor / length
    assert float(loss) == pytest.approx(expected / 3, rel=1e-5)
    assert right == pytest.approx(wins / 3)


def test_a_batch_is_at_most_as_large_as_asked(settings: PolicyTraining) -> None:
    values = {
        round(float(lesson_loss(Fixed(), lesson(None), replace(settings, batch=1), generator)[0]), 5)  # type: ignore[arg-type]
        for generator in (torch.Generator().manual_seed(i) for i in range(20))
    }
    assert len(values) == 3


def test_prompts_are_training_prompts_with_their_own_person_s_preferences() -> None:
    people = [random_person("ann", 5, 0, test=2), random_person("bob", 4, 1, test=1)]
    latents = {"ann": torch.tensor([[1.0]]), "bob": torch.tensor([[2.0]])}
    prompts, found = draw_prompts(people, latents, 10, torch.Generator().manual_seed(0))
    known = {j.prompts[i]: latents[j.person] for j in people for i in j.train.tolist()}
    assert sorted(prompts) == sorted(known)
    assert all(torch.equal(z, known[prompt]) for prompt, z in zip(prompts, found, strict=True))
    fewer, _ = draw_prompts(people, latents, 2, torch.Generator().manual_seed(0))
    assert len(set(fewer)) == 2
    assert {tuple(draw_prompts(people, latents, 2, torch.Generator().manual_seed(i))[0]) for i in range(9)} > {
        tuple(fewer)
    }


def test_responses_are_read_behind_the_end_of_their_prompt() -> None:
    encoder = HashingEncoder("{question} {option}", 64, True)
    found = encode_responses(encoder, ["a long prompt"], ["an answer"], 6)
    expected: Any = encoder.encode(["prompt an answer"], lambda n: None)
    assert torch.equal(found, torch.from_numpy(expected))
