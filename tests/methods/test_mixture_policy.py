"""Mixtures of whole policies, and what types make of what a policy writes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fedalign.contribution import State
from fedalign.methods.mixture_policy import MixturePolicy
from fedalign.methods.policy_writer import Written
from fedalign.methods.text_policies import Writing, policy_rewards, type_policies, worst_regrets
from fedalign.methods.type_adapters import AdapterTypes
from fedalign.methods.type_model import type_of
from fedalign.methods.type_rewards import text_rewards
from tests.language_models import random_model
from tests.methods.type_worlds import PROMPTS, WRITING, adapters

Types = tuple[AdapterTypes, State]


@pytest.fixture(scope="module")
def types(tmp_path_factory: pytest.TempPathFactory) -> Types:
    """Return three types that write differently."""
    return adapters(random_model("gpt2", tmp_path_factory.mktemp("mixture")), 3)


def generator(seed: int = 0) -> torch.Generator:
    """Return a generator of one's own."""
    return torch.Generator().manual_seed(seed)


def responses(written: Written) -> list[list[int]]:
    """Return the tokens of each response."""
    masks = written.tokens.response_mask.bool()
    return [row[mask].tolist() for row, mask in zip(written.tokens.ids, masks, strict=True)]


def test_every_text_is_that_of_the_type_that_was_drawn(types: Types) -> None:
    model, state = types
    mixture = MixturePolicy(model, state, torch.tensor([0.3, 0.3, 0.4]))
    prompts = [*PROMPTS, *PROMPTS]
    written = mixture.write(prompts, WRITING, generator(1))
    again = generator(1)
    drawn = mixture.draw(len(prompts), again)
    assert set(drawn.tolist()) == {0, 1, 2}
    found, texts = responses(written), written.texts
    for number, policy in enumerate(type_policies(model, state)):
        rows = (drawn == number).nonzero()[:, 0].tolist()
        own = policy.write([prompts[i] for i in rows], WRITING, again)
        assert [found[i] for i in rows] == responses(own)
        assert [texts[i] for i in rows] == own.texts
    assert len(written.tokens.response_mask.argmax(1).unique()) == 1  # type: ignore[no-untyped-call]
    # Every prompt stands before its own text.
    ids, mask = model.codec.prompts(prompts, 8)
    before = written.tokens.attention_mask.bool() & ~written.tokens.response_mask.bool()
    shown = [row[own].tolist() for row, own in zip(written.tokens.ids, before, strict=True)]
    assert shown == [row[own.bool()].tolist() for row, own in zip(ids, mask, strict=True)]


def test_merged_rows_are_scored_as_they_were_alone(types: Types) -> None:
    model, state = types
    written = MixturePolicy(model, state, torch.tensor([0.5, 0.0, 0.5])).write(PROMPTS, WRITING, generator(2))
    policy = type_policies(model, state)[0]
    together = policy.log_probability(written.tokens)
    for row, prompt in enumerate(PROMPTS):
        ids = written.tokens.ids[row][written.tokens.attention_mask[row].bool()][None]
        first = len(model.codec.prompts([prompt], 8)[0][0])
        model.load(type_of(state, 0))
        with torch.no_grad():
            logits = model.policy(ids, torch.ones_like(ids), None)[0].log_softmax(1)
        alone = sum(float(logits[t - 1, ids[0, t]]) for t in range(first, ids.shape[1]))
        assert float(together[row]) == pytest.approx(alone, abs=1e-4)


def test_likelihood_is_the_mean_of_the_types_likelihoods(types: Types) -> None:
    model, state = types
    weights = torch.tensor([0.2, 0.0, 0.8])
    mixture = MixturePolicy(model, state, weights)
    tokens = mixture.write(PROMPTS, WRITING, generator()).tokens
    each = torch.stack([policy.log_probability(tokens).double() for policy in type_policies(model, state)])
    torch.testing.assert_close(mixture.log_probability(tokens).exp(), (weights[:, None] * each.exp()).sum(0))


def test_types_are_drawn_as_often_as_they_weigh(types: Types) -> None:
    weights = torch.tensor([0.1, 0.6, 0.3])
    drawn = MixturePolicy(*types, weights).draw(20_000, generator())
    share = torch.bincount(drawn, minlength=3) / len(drawn)
    # 4 standard errors.
    assert bool(((share - weights).abs() < 4 * (weights * (1 - weights) / len(drawn)).sqrt()).all())


def test_rewards_are_log_ratios_of_the_tokens_that_were_drawn(types: Types) -> None:
    model, state = types
    writing = Writing(samples=2, max_new_tokens=5, temperature=1.0, batch=5)
    policy = type_policies(model, state)[1]
    found = policy_rewards(model, state, policy, PROMPTS, writing, generator(3))
    again = generator(3)
    ratios: list[Tensor] = []
    for part in writing.parts(PROMPTS):
        tokens = policy.write(part, writing, again).tokens
        reference = model.writer.reference_log_probability(tokens)
        ratios.append(torch.stack([p.log_probability(tokens) - reference for p in type_policies(model, state)]))
    each = torch.cat(ratios, 1)
    assert each.shape == (3, 2 * len(PROMPTS))
    torch.testing.assert_close(found, each.double().mean(1), atol=1e-5, rtol=1e-5)


def test_columns_of_the_matrix_are_policies_and_rows_the_types_that_judge(types: Types) -> None:
    model, state = types
    matrix, again = text_rewards(model, state, PROMPTS, WRITING, generator(6)), generator(6)
    for number, policy in enumerate(type_policies(model, state)):
        torch.testing.assert_close(
            matrix[:, number], policy_rewards(model, state, policy, PROMPTS, WRITING, again), atol=1e-5, rtol=1e-5
        )
    assert not torch.allclose(matrix, matrix.T)


def test_own_reward_estimates_the_divergence_from_the_reference(types: Types) -> None:
    model, state = types
    writing = Writing(samples=200, max_new_tokens=4, temperature=1.0, batch=200)
    policy = type_policies(model, state)[0]
    found = float(policy_rewards(model, state, policy, PROMPTS[:2], writing, generator())[0])
    tokens = policy.write(PROMPTS[:2] * 200, writing, generator(1)).tokens
    model.load(type_of(state, 0))
    each = model.writer.divergence(tokens, None)
    ratio = policy.log_probability(tokens) - model.writer.reference_log_probability(tokens)
    error = 4 * float((ratio.var() / 400 + each.var() / 400).sqrt())
    assert found == pytest.approx(float(each.mean()), abs=error)
    assert error < 0.5 * found


def test_equal_types_have_equal_rewards_and_no_regret(types: Types) -> None:
    model, state = types
    same = {name: state[name.replace("types.1.", "types.0.").replace("types.2.", "types.0.")] for name in state}
    mixture = MixturePolicy(model, same, torch.full((3,), 1 / 3))
    rewards = policy_rewards(model, same, mixture, PROMPTS, WRITING, generator())
    assert float(rewards.max() - rewards.min()) == 0


def test_worst_regret_of_one_type_for_all_exceeds_that_of_their_mixture(types: Types) -> None:
    model, state = types
    writing = Writing(samples=40, max_new_tokens=6, temperature=1.0, batch=240)
    policies = {"one": type_policies(model, state)[0], "mixture": MixturePolicy(model, state, torch.full((3,), 1 / 3))}
    found = worst_regrets(model, state, policies, PROMPTS, writing, generator())
    assert found["mixture"][1] < found["one"][1]
    assert found["mixture"][0] > 0
