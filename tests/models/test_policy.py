"""A policy told z: the reference it starts from, gradients that teach it to follow z, and steps of DPO that work."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fedalign.models.lora import load_trainable, trainable_state
from fedalign.models.policy import ConditionalPolicy
from fedalign.objectives.dpo import dpo_loss, sequence_log_probability
from tests.language_models import LENGTH, policy, shake

IDS = torch.tensor([[2, 3, 4, 5, 0], [6, 7, 8, 9, 10]])
MASK = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])
REAL = MASK.bool()
Z = torch.tensor([[1.0, -1.0], [0.5, 2.0]])

conditions = pytest.mark.parametrize("condition", ["embedding", "prefix"])


def plain(folder: Path) -> torch.Tensor:
    """The oracle: the model as transformers loads it, shape (real tokens, V)."""
    from transformers import AutoModelForCausalLM

    raw = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        found: torch.Tensor = raw(input_ids=IDS, attention_mask=MASK).logits
    return found[REAL]


def logits(model: ConditionalPolicy, z: torch.Tensor | None) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(IDS, MASK, z)
    return found


@conditions
def test_a_fresh_policy_without_z_is_the_pretrained_model(model: Path, condition: str) -> None:
    assert torch.equal(logits(policy(model, condition=condition), None)[REAL], plain(model))


@conditions
def test_the_reference_stays_what_it_was(model: Path, condition: str) -> None:
    trained = policy(model, condition=condition, dropout=0.3).train()
    shake(trained)
    before = logits(trained.eval(), Z)
    assert torch.equal(trained.train().reference(IDS, MASK)[REAL], plain(model))
    assert not trained.reference(IDS, MASK).requires_grad
    assert torch.equal(logits(trained.eval(), Z), before)
    assert not torch.equal(before[REAL], plain(model))


def test_a_fresh_z_hardly_disturbs(model: Path) -> None:
    fresh = policy(model)
    assert 0 < (logits(fresh, Z)[REAL] - plain(model)).abs().max() < 0.5
    assert (logits(policy(model, init_std=1.0), Z)[REAL] - plain(model)).abs().max() > 0.5
    assert torch.equal(logits(policy(model, init_std=0.0), Z)[REAL], plain(model))


def test_z_is_added_to_every_embedding(gpt2: Path) -> None:
    told = policy(gpt2, init_std=0.5)
    raw = told.transformer.adapted.get_base_model()
    assert told.projection is not None
    with torch.no_grad():
        vectors = raw.transformer.wte(IDS) + (Z @ told.projection.weight.T + told.projection.bias)[:, None]
        expected = raw(inputs_embeds=vectors, attention_mask=MASK).logits
    torch.testing.assert_close(logits(told, Z)[REAL], expected[REAL])


def test_the_prefix_is_read_before_the_text(gpt2: Path) -> None:
    told = policy(gpt2, init_std=0.5, condition="prefix", prefix_tokens=2)
    raw = told.transformer.adapted.get_base_model()
    assert told.projection is not None
    with torch.no_grad():
        soft = (Z @ told.projection.weight.T + told.projection.bias).view(2, 2, -1)
        expected = raw(inputs_embeds=torch.cat([soft, raw.transformer.wte(IDS)], 1)).logits[:, 2:]
    found = logits(told, Z)
    assert found.shape == expected.shape
    torch.testing.assert_close(found[REAL], expected[REAL])
    assert told.max_tokens == LENGTH - 2


@conditions
def test_rows_do_not_see_each_others_z(model: Path, condition: str) -> None:
    told = policy(model, condition=condition, init_std=0.5)
    both = logits(told, Z)
    other = logits(told, torch.stack([Z[0], -Z[1]]))
    torch.testing.assert_close(other[0], both[0], atol=1e-5, rtol=1e-5)
    assert (other[1] - both[1]).abs().max() > 1e-3


@conditions
def test_the_trained_tensors_are_adapter_and_projection(model: Path, condition: str) -> None:
    first, second = policy(model, condition=condition, seed=1), policy(model, condition=condition, seed=2)
    shake(first)
    state = {name: tensor.clone() for name, tensor in trainable_state(first).items()}
    assert {"projection.weight", "projection.bias"} < set(state)
    assert all("lora_" in name for name in state if not name.startswith("projection."))
    load_trainable(second, state)
    assert torch.equal(logits(first, Z), logits(second, Z))


def test_a_policy_without_a_latent_takes_no_z(gpt2: Path) -> None:
    deaf = policy(gpt2, latent=0)
    assert not any(name.startswith("projection") for name in trainable_state(deaf))
    with pytest.raises(ValueError, match="latent=0"):
        deaf(IDS, MASK, Z)


def response_log_probability(told: ConditionalPolicy, ids: torch.Tensor, z: torch.Tensor | None) -> torch.Tensor:
    mask = torch.ones_like(ids)
    response = mask.clone()
    response[:, :2] = 0
    return sequence_log_probability(told(ids, mask, z), ids, response)


@conditions
def test_steps_of_dpo_teach_it_to_follow_z(model: Path, condition: str) -> None:
    """The same two responses, preferred in opposite orders under opposite z: no policy that is deaf to z can do it."""
    told = policy(model, condition=condition, latent=2, rank=8)
    good, bad = torch.tensor([[2, 3, 5, 5, 0]]), torch.tensor([[2, 3, 6, 6, 0]])
    chosen, rejected = torch.cat([good, bad]), torch.cat([bad, good])
    z = torch.tensor([[3.0, 0.0], [-3.0, 0.0]])
    with torch.no_grad(), told.transformer.without_adapter():
        fixed = [response_log_probability(told, ids, None) for ids in (chosen, rejected)]
    optimizer = torch.optim.Adam([p for p in told.parameters() if p.requires_grad], lr=1e-2)
    margins = []
    for _ in range(25):
        found = [response_log_probability(told, ids, z) for ids in (chosen, rejected)]
        loss, margin = dpo_loss(found[0], found[1], fixed[0], fixed[1], beta=0.1)
        margins.append(margin.detach())
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
    assert (margins[-1] > margins[0] + 0.2).all()
    assert (margins[-1] > 0).all()
    # z decides: the same text is likelier under its own z than under the other.
    with torch.no_grad():
        own, other = (response_log_probability(told, chosen, each) for each in (z, -z))
    assert (own > other).all()
    assert (logits(told, Z) - logits(told, -Z)).abs().max() > 1e-2
    assert torch.equal(told.reference(IDS, MASK)[REAL], plain(model))
