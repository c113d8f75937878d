"""Types as adapters: utilities are DPO's implicit rewards, worked out once for the frozen model."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from fedalign.contribution import State
from fedalign.data.rankings import RankingShard
from fedalign.errors import UserError
from fedalign.methods.policy_writer import PolicyWriter
from fedalign.methods.type_adapters import AdapterTypes
from fedalign.models.text import ResponseBatch
from fedalign.rng import Streams
from tests.language_models import random_model

from .ranking_worlds import adapters, loaded_utilities, shard

BETA = 0.1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model("gpt2", tmp_path_factory.mktemp("gpt2"))


@pytest.fixture
def model(folder: Path) -> AdapterTypes:
    return adapters(folder)[1]


def uneven() -> RankingShard:
    """Return a client one of whose menus lacks its last response, and one whose best response is not its first."""
    client = shard(judgments=6, test=2)
    tiers = client.tiers.clone()
    tiers[2] = torch.tensor([1, 0, -1])
    responses = (*client.responses[:2], client.responses[2][:2], *client.responses[3:])
    return dataclasses.replace(client, tiers=tiers, responses=responses)


def moved(model: AdapterTypes, scale: float = 0.3) -> State:
    """Return an adapter that acts."""
    generator = torch.Generator().manual_seed(4)
    fresh = model.fresh(Streams(1))
    return {name: tensor + scale * torch.randn(tensor.shape, generator=generator) for name, tensor in fresh.items()}


def pretrained(folder: Path) -> Any:
    """Return the frozen model; transformers reads it in evaluation mode."""
    return AutoModelForCausalLM.from_pretrained(folder)


def merged(folder: Path, parameters: State) -> Any:
    """Return the frozen model with the adapter added to its matrices by hand."""
    network = pretrained(folder)
    for name, factor in parameters.items():
        if "lora_B" not in name:
            continue
        first = parameters[name.replace("lora_B", "lora_A")]
        (layer,) = (int(part) for part in name.split(".") if part.isdigit())
        weight = network.transformer.h[layer].attn.c_attn.weight
        with torch.no_grad():
            # GPT-2 keeps its matrices transposed; alpha over rank is 4 / 2.
            weight += 2.0 * (factor @ first).T
    return network


@torch.no_grad()
def by_hand(network: Any, folder: Path, prompt: str, response: str) -> tuple[float, int]:
    """Return a response's log-probability, the token that ends it included, and its number of tokens."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    before, after = tokenizer(prompt)["input_ids"][-4:], [*tokenizer(response)["input_ids"], tokenizer.eos_token_id][:8]
    rows = network(torch.tensor([before + after])).logits[0].log_softmax(1)
    places = range(len(before) - 1, len(before) + len(after) - 1)
    return sum(float(rows[place, token]) for place, token in zip(places, after, strict=True)), len(after)


def test_utilities_are_what_transformers_gives_by_hand(folder: Path, model: AdapterTypes) -> None:
    client, parameters = uneven(), moved(model)
    model.load(parameters)
    index = torch.tensor([5, 2, 0])
    with torch.no_grad():
        found = model.utilities(client, index)
    frozen, policy = pretrained(folder), merged(folder, parameters)
    assert found.likelihood is not None
    for row, judgment in enumerate(index.tolist()):
        menu = client.responses[judgment]
        values = []
        for place, response in enumerate(menu):
            ours, length = by_hand(policy, folder, client.prompts[judgment], response)
            theirs, _ = by_hand(frozen, folder, client.prompts[judgment], response)
            values.append(BETA * (ours - theirs))
            if int(client.tiers[judgment, place]) == 0:
                assert float(found.likelihood[row]) == pytest.approx(ours / length, abs=1e-5)
        assert found.values[row, : len(menu)].tolist() == pytest.approx(values, abs=1e-5)
        assert max(map(abs, values)) > 1e-3


def test_a_fresh_adapter_changes_nothing_and_only_its_factor_b_learns(model: AdapterTypes) -> None:
    client, parameters = uneven(), model.fresh(Streams(2))
    model.load(parameters)
    found = model.utilities(client, client.train)
    torch.testing.assert_close(found.values, torch.zeros_like(found.values), atol=1e-5, rtol=0)
    weights = torch.arange(1.0, 4.0)
    (found.values @ weights).sum().backward()  # type: ignore[no-untyped-call]
    for name, parameter in model.network.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None
            moves = float(parameter.grad.abs().max())
            assert moves > 1e-4 if "lora_B" in name else moves < 1e-6
        else:
            assert parameter.grad is None
    assert {name.split(".")[-2] for name in parameters} <= {"lora_A", "lora_B", "default"}


def test_neither_the_batch_nor_padding_reaches_a_utility(model: AdapterTypes) -> None:
    client, parameters = uneven(), moved(model)
    everything = torch.arange(len(client.owner))
    together = loaded_utilities(model, parameters, client, everything)
    for judgment in (0, 2, 5):
        alone = loaded_utilities(model, parameters, client, torch.tensor([judgment]))
        there = client.tiers[judgment] >= 0
        torch.testing.assert_close(alone[0][there], together[judgment][there], atol=1e-5, rtol=1e-4)
    turned = loaded_utilities(model, parameters, client, everything.flip(0))
    torch.testing.assert_close(turned.flip(0), together, atol=1e-5, rtol=1e-4)
    model.load(parameters)
    graded = model.utilities(client, everything).values.detach()
    torch.testing.assert_close(graded, together, atol=1e-5, rtol=1e-4)


def test_the_frozen_model_reads_each_text_once(model: AdapterTypes, monkeypatch: pytest.MonkeyPatch) -> None:
    client, asked = uneven(), []
    plain = PolicyWriter.reference_log_probability

    def counted(writer: PolicyWriter, tokens: ResponseBatch) -> Tensor:
        asked.append(len(tokens.ids))
        return plain(writer, tokens)

    monkeypatch.setattr(PolicyWriter, "reference_log_probability", counted)
    for parameters in (model.fresh(Streams(1)), moved(model)):
        loaded_utilities(model, parameters, client, client.train)
        loaded_utilities(model, parameters, client, client.test)
    # 8 judgments of 3 responses, one of which is missing.
    assert asked == [23]
    loaded_utilities(model, moved(model), shard(judgments=1, test=0), torch.tensor([0]))
    assert asked == [23, 3]


def test_a_client_without_judgments_has_no_utilities(model: AdapterTypes) -> None:
    client = shard(judgments=2, test=0)
    assert loaded_utilities(model, moved(model), client, client.test).shape == (0, 3)


def test_texts_longer_than_the_model_reads_are_refused(folder: Path) -> None:
    with pytest.raises(UserError, match=r"method\.lengths\.prompt=60 and method\.lengths\.response=8"):
        adapters(folder, "method.lengths.prompt=60")
