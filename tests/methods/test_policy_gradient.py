"""The settings of the algorithms, and targets of groups of responses against sums by hand."""

from __future__ import annotations

import math

import pytest
import torch

from fedalign.methods.dprlhf import DPRLHF
from fedalign.methods.policy_gradient import Algorithm, Rollouts
from fedalign.models.text import ResponseBatch
from tests.configs import configured


def algorithm(name: str, *overrides: str) -> Algorithm:
    method = configured("method=dprlhf", f"method/algorithm@method.rl.algorithm={name}", *overrides).method
    assert isinstance(method, DPRLHF)
    assert method.rl is not None
    return method.rl.algorithm


def rollouts() -> Rollouts:
    """Two prompts with two responses each; the last has two tokens and the others three."""
    ids = torch.zeros(4, 5, dtype=torch.int64)
    mask = torch.tensor([[1, 1, 1], [1, 1, 1], [1, 1, 1], [1, 1, 0]])
    generator = torch.Generator().manual_seed(0)
    log_probs, reference = (-torch.rand(4, 3, generator=generator) for _ in range(2))
    scores = torch.tensor([1.0, 3.0, -2.0, 0.5])
    return Rollouts(ResponseBatch(ids, ids, ids), mask, log_probs, reference, torch.zeros(4, 3), scores)


@pytest.mark.parametrize("name", ["rloo", "grpo"])
def test_a_response_is_compared_with_its_prompt_s_others_at_all_of_its_tokens(name: str) -> None:
    given = rollouts()
    found = algorithm(name, "method.rl.algorithm.completions=2").targets(given, 0.5)
    worth = [
        float(given.scores[i])
        - 0.5 * sum(float(given.log_probs[i, t] - given.reference[i, t]) for t in range(3) if given.mask[i, t])
        for i in range(4)
    ]
    for i in range(4):
        other = worth[i ^ 1]
        expected = worth[i] - other if name == "rloo" else math.copysign(1.0, worth[i] - other)
        wanted = [expected * float(m) for m in given.mask[i]]
        assert found.advantages[i].tolist() == pytest.approx(wanted, rel=1e-5)


def test_what_an_algorithm_says_of_itself() -> None:
    said = {
        name: (found.responses, found.couples, found.learns_values)
        for name, found in ((name, algorithm(name)) for name in ("ppo", "rloo", "grpo"))
    }
    assert said == {"ppo": (1, False, True), "rloo": (4, False, False), "grpo": (4, False, False)}
    assert algorithm("ppo", "method.rl.algorithm.whiten=true").couples


def test_normalised_advantages_have_mean_0_and_deviation_1_over_tokens() -> None:
    given = rollouts()
    found = algorithm("ppo", "method.rl.algorithm.whiten=true").targets(given, 0.1)
    inside = found.advantages[given.mask.bool()]
    assert float(inside.mean()) == pytest.approx(0.0, abs=1e-6)
    assert float(inside.std(correction=0)) == pytest.approx(1.0, rel=1e-4)
    # Returns are what they were.
    plain = algorithm("ppo").targets(given, 0.1)
    torch.testing.assert_close(found.returns, plain.returns)
