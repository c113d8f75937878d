"""Experts that a run trains: each by its own texts alone, in any federation, by likelihood or by comparisons."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fedalign.contribution import DELTA, WEIGHT, State, total
from fedalign.data.corpus import Example
from fedalign.errors import UserError
from fedalign.federation.server_optimizer import FedAvg
from fedalign.methods.corpus import Batches
from fedalign.methods.expert_adapters import AdapterWorkspace, adapter_of
from fedalign.methods.expert_loss import Imitation, Preference
from fedalign.methods.expert_training import COUNTS, ExpertsPhase, TrainedExperts
from fedalign.methods.local_training import trainable
from fedalign.metrics.record import decode
from fedalign.models.experts import Pairs
from fedalign.rng import Streams
from tests.language_models import WORDS, random_model

from .stated import (
    SIDES,
    client,
    contributions,
    demonstrations,
    method,
    rounds,
    setting,
    trained,
    wishes,
)

START = Streams(3, "experts")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model("gpt2", tmp_path_factory.mktemp("model"))


def phase(folder: Path, experts: TrainedExperts | None = None, model: Any = None, **changes: Any) -> ExpertsPhase:
    found = method(experts, **changes).phases(setting(folder, **(model or {})))
    assert len(found) == 1 and isinstance(found[0], ExpertsPhase)
    return found[0]


def equal(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def side(state: State, name: str) -> State:
    return adapter_of(state, name)


def by_transformers(network: Any, example: Example, response: str) -> tuple[torch.Tensor, int]:
    """Return the log-probability of a response under a network of transformers', and its tokens."""
    prompt = [WORDS.index(w) for w in example.prompt.split()][-4:]
    tokens = [*(WORDS.index(w) for w in response.split()), 0][:5]
    ids = torch.tensor([[*prompt, *tokens]])
    found = network(ids).logits[0].log_softmax(1)
    places = range(len(prompt) - 1, len(prompt) + len(tokens) - 1)
    return torch.stack([found[place, token] for place, token in zip(places, tokens, strict=True)]).sum(), len(tokens)


def centralised(
    own: ExpertsPhase, start: State, examples: tuple[Example, ...], place: str, beta: float | None
) -> State:
    """Return an adapter after two plain steps on the very batches, with losses worked out text by text."""
    network, reference = own.fresh(Streams(0)), own.fresh(Streams(0))
    network.head.requires_grad_(False)
    network.load_adapter(start)
    model, base = network.policy.transformer.adapted, reference.policy.transformer.adapted
    batches = Batches(examples, 2, Streams(3, "experts", 1, "ann").torch(f"batches/{place}"))
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.05)
    for _ in range(2):
        losses = []
        for example in batches.draw()[0]:
            chosen, count = by_transformers(model, example, example.response)
            if beta is None:
                losses.append(-chosen / count)
                continue
            assert example.rejected is not None
            margin = chosen - by_transformers(model, example, example.rejected)[0]
            with torch.no_grad():
                margin -= by_transformers(base, example, example.response)[0]
                margin += by_transformers(base, example, example.rejected)[0]
            losses.append(-F.logsigmoid(beta * margin))
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return {name: parameter.detach() for name, parameter in trainable(network).items()}


@pytest.mark.parametrize("beta", [None, 0.5])
def test_one_client_with_one_side_is_centralised_training_of_that_adapter(folder: Path, beta: float | None) -> None:
    loss = Imitation() if beta is None else Preference(beta)
    own = phase(folder, trained(loss))
    examples = demonstrations("blame", rejected=beta is not None)
    start = own.initial(START, {})
    after = rounds(own, start, client(*examples, stage=own.stage or ""))
    expected = centralised(own, side(start, "blame"), examples, "blame", beta)
    found = side(after, "blame")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.allclose(found[name], tensor, atol=1e-6)
    assert not equal(found, side(start, "blame"))


def test_each_loss_reads_the_stage_that_holds_what_it_needs(folder: Path) -> None:
    assert phase(folder).stage == "sft"
    assert phase(folder, trained(Preference(0.1))).stage == "reward"


def test_sides_begin_alike_and_do_not_reach_one_another(folder: Path) -> None:
    own = phase(folder)
    start = own.initial(START, {})
    assert all(equal(side(start, name), side(start, "praise")) for name in SIDES)
    assert not equal(side(start, "praise"), side(own.initial(Streams(4), {}), "praise"))
    praise, still = demonstrations("praise"), demonstrations("still")
    alone = rounds(own, start, client(*praise))
    both = rounds(own, start, client(*praise, *still))
    assert equal(side(alone, "praise"), side(both, "praise"))
    assert not equal(side(both, "still"), side(start, "still"))
    for name in ("blame", "moving"):
        assert equal(side(both, name), side(start, name))


def test_two_clients_of_different_sides_leave_each_side_at_its_own_client_s_change(folder: Path) -> None:
    own = phase(folder)
    start = own.initial(START, {})
    ann, bob = client(*demonstrations("praise")), client(*demonstrations("still"), name="bob")
    both, one, other = rounds(own, start, ann, bob), rounds(own, start, ann), rounds(own, start, bob)
    for found, expected, name in ((both, one, "praise"), (both, other, "still")):
        for key, tensor in side(expected, name).items():
            assert torch.allclose(side(found, name)[key], tensor, atol=1e-7)


def test_two_clients_of_one_side_leave_it_at_their_mean(folder: Path) -> None:
    own = phase(folder)
    start = own.initial(START, {})
    ann, bob = client(*demonstrations("praise")), client(*demonstrations("praise", count=2), name="bob")
    both, one, other = rounds(own, start, ann, bob), rounds(own, start, ann), rounds(own, start, bob)
    for key, tensor in side(both, "praise").items():
        expected = (side(one, "praise")[key] + side(other, "praise")[key]) / 2
        assert torch.allclose(tensor, expected, atol=1e-7)


def test_what_is_added_up_says_who_trained_what_and_weighs_all_the_same(folder: Path) -> None:
    own = phase(folder)
    start = own.initial(START, {})
    found = contributions(
        own, start, client(*demonstrations("praise", "still")), client(*demonstrations("still"), name="bob")
    )
    assert found.tensors[COUNTS].tolist() == [1, 0, 0, 2]
    assert found.scalars[WEIGHT] == 2
    assert {name for name in found.tensors if name.startswith(DELTA)} == {
        f"{DELTA}expert/{name}/{key}" for name in ("praise", "still") for key in side(start, name)
    }
    template = own.template(start)
    assert set(template.tensors) == {COUNTS, *(DELTA + name for name in start)}


def test_a_side_that_is_hardly_there_is_divided_by_the_least_mass(folder: Path) -> None:
    own = phase(folder, trained(least_mass=4.0))
    start = own.initial(START, {})
    plain = rounds(phase(folder), start, client(*demonstrations("praise")))
    small = rounds(own, start, client(*demonstrations("praise")))
    for name, tensor in side(start, "praise").items():
        whole, part = side(plain, "praise")[name] - tensor, side(small, "praise")[name] - tensor
        assert torch.allclose(part, whole / 4, atol=1e-7)


def test_noise_in_the_place_of_a_side_that_nobody_has_moves_nothing(folder: Path) -> None:
    own = phase(folder)
    start = own.initial(START, {})
    found = contributions(own, start, client(*demonstrations("praise")))
    noisy = {name: torch.ones(shape) for name, shape in own.template(start).tensors.items()}
    noisy[COUNTS] = torch.tensor([1.0, 0.0, -0.2, 0.0])
    after = own.update(start, replace(found, tensors=noisy), FedAvg(1.0).build())
    assert [equal(side(after, name), side(start, name)) for name in SIDES] == [False, True, True, True]


def test_texts_that_state_several_sides_or_none_train_nothing(folder: Path) -> None:
    own = phase(folder)
    start = own.initial(START, {})
    others = client(*wishes("praise, moving", "all", ""))
    assert own.own(others) == [] and own.users(others) == [] and own.examples(others) == []
    found = contributions(own, start, others)
    assert set(found.tensors) == {COUNTS} and not found.tensors[COUNTS].any()
    assert equal(rounds(own, start, others), start)
    with pytest.raises(UserError, match=r"client 'ann', preference=prase: there is no side 'prase'.*'praise'"):
        own.check(client(*wishes("prase")))


def test_a_frozen_a_travels_and_is_not_trained(folder: Path) -> None:
    own = phase(folder, model={"freeze_a": True})
    start = own.initial(START, {})
    template = own.template(start)
    after = rounds(own, start, client(*demonstrations("praise")))
    assert not any(".lora_A." in name for name in template.tensors)
    changed = {
        name for name, tensor in side(after, "praise").items() if not torch.equal(tensor, side(start, "praise")[name])
    }
    assert changed and not any(".lora_A." in name for name in changed)


def test_it_says_how_likely_each_side_s_texts_are_under_its_expert_and_the_base(folder: Path) -> None:
    own = phase(folder, trained(steps={"lr": 0.3, "steps": 10}))
    start = own.initial(START, {})
    texts = demonstrations("praise", "still", count=8)
    shard = client(*texts, test=[*texts, *wishes("praise, still")])

    def measured(state: State) -> dict[str, dict[str, float]]:
        found: dict[str, dict[str, float]] = {}
        for each in decode(own.evaluate(state, shard, START).scalars):
            found.setdefault(each.name, {})[each.group] = each.total / each.n
        return found

    before = measured(start)
    assert set(before) == {"unseen/test_nll", "unseen/test_nll_base"}
    for name in ("praise", "still"):
        model = own.fresh(Streams(0)).policy.transformer.adapted
        with torch.no_grad():
            each = [by_transformers(model, e, e.response) for e in texts if e.group == name]
        expected = -sum(float(value) for value, _ in each) / sum(count for _, count in each)
        assert before["unseen/test_nll"][name] == pytest.approx(expected, rel=1e-5)
        assert before["unseen/test_nll_base"][name] == pytest.approx(expected, rel=1e-5)
    after = measured(rounds(own, start, shard, count=2))
    assert after["unseen/test_nll_base"] == pytest.approx(before["unseen/test_nll_base"])
    assert all(after["unseen/test_nll"][name] < 0.8 * before["unseen/test_nll"][name] for name in ("praise", "still"))
    sums = decode(own.evaluate(start, shard, START).scalars)
    told = own.summarise(sums, {})
    assert told["unseen/test_perplexity"] == pytest.approx(math.exp(told["unseen/test_nll"]))
    few = phase(folder, evaluation=replace(method().evaluation, prompts=3)).evaluate(start, shard, START)
    assert sum(each.n for each in decode(few.scalars)) < sum(each.n for each in sums)


def test_experts_that_nobody_trained_are_said(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    own = phase(folder)
    start = own.initial(START, {})
    after = rounds(own, start, client(*demonstrations("praise", "still")))
    assert own.report(start) == {"train/untrained_experts": 4.0}
    assert own.report(after) == {"train/untrained_experts": 2.0}
    with caplog.at_level(logging.WARNING):
        own.export(after, tmp_path)
    assert "nobody trained: blame, moving" in caplog.text


def test_exported_experts_are_what_peft_reads_and_the_workspace_computes(folder: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    source, told = trained(steps={"lr": 0.5}), setting(folder)
    own = phase(folder, source)
    state = rounds(own, own.initial(START, {}), *(client(*demonstrations(name), name=name) for name in SIDES))
    own.export(state, tmp_path)
    workspace = source.open(SIDES, told)
    travels = source.state(SIDES, START, {"experts": state}, told)
    assert equal(travels, state)
    assert source.load(workspace, travels)
    ids = torch.tensor([[2, 3, 4, 5], [18, 4, 19, 5]])
    mask = torch.ones_like(ids)
    pairs = Pairs.of(torch.ones(2, 4, dtype=torch.bool))
    found, _ = workspace.advance(pairs, ids, mask, None)
    for place, name in enumerate(SIDES):
        base = AutoModelForCausalLM.from_pretrained(folder)
        expected = PeftModel.from_pretrained(base, str(tmp_path / "experts" / name))(ids).logits.log_softmax(2)
        assert torch.allclose(found[pairs.expert == place], expected, atol=1e-5)
        assert not torch.allclose(workspace.base(ids, mask), expected, atol=1e-2)


def test_the_same_experts_are_not_loaded_again(folder: Path) -> None:
    source, told = trained(), setting(folder)
    workspace = source.open(SIDES, told)
    assert isinstance(workspace, AdapterWorkspace)
    fresh = source.state(SIDES, START, {}, told)
    assert equal(fresh, phase(folder, source).initial(START, {}))
    assert source.load(workspace, fresh)
    assert not source.load(workspace, fresh)
    # As over a wire.
    assert not source.load(workspace, {name: tensor.clone() for name, tensor in fresh.items()})
    other = {name: tensor + 1 if "/still/" in name else tensor for name, tensor in fresh.items()}
    assert source.load(workspace, other)
    assert source.load(workspace, fresh)
    assert not source.load(workspace, {**fresh, "control": torch.zeros(1)})
    assert source.fallback(SIDES).tolist() == [0.25] * 4


@pytest.mark.parametrize(
    "change",
    [
        {"batch": 1},
        {"loss": Preference(0.1)},
        {"least_mass": 3.0},
        {"steps": {"steps": 3}},
        {"steps": {"lr": 0.1}},
        {"steps": {"optimizer": "adam"}},
        {"steps": {"schedule": "cosine"}},
        {"steps": {"schedule": "cosine", "final_lr": 0.9}},
        {"steps": {"schedule": "cosine_periodic"}},
        {"steps": {"schedule": "cosine_periodic", "period": 7}},
        {"steps": {"optimizer": "adam", "optimizer_state": "persist"}},
        {"steps": {"proximal_mu": 5.0}},
        {"steps": {"max_grad_norm": 0.01}},
    ],
    ids=str,
)
def test_an_option_changes_what_is_learnt(folder: Path, change: dict[str, Any]) -> None:
    examples = demonstrations("praise", rejected=True)
    shard = client(*examples, reward=examples)
    alike = {key: change["steps"][key] for key in ("optimizer", "schedule") if key in change.get("steps", {})}
    plain = trained(steps={} if alike == change.get("steps") else alike)
    one, other = phase(folder, plain), phase(folder, trained(**change))
    found = [rounds(each, each.initial(START, {}), shard, count=2) for each in (one, other)]
    assert not equal(side(found[0], "praise"), side(found[1], "praise"))


def test_beta_of_comparisons_changes_what_is_learnt(folder: Path) -> None:
    shard = client(*demonstrations("praise", rejected=True), stage="reward")
    each = [phase(folder, trained(Preference(beta))) for beta in (0.1, 1.0)]
    one, other = (rounds(own, own.initial(START, {}), shard) for own in each)
    assert not equal(side(one, "praise"), side(other, "praise"))


def test_rounds_are_its_own_or_the_federation_s(folder: Path) -> None:
    assert phase(folder, trained(rounds=7)).rounds == 7
    assert phase(folder, trained(rounds=None)).rounds == 4


def test_names_that_are_no_folders_are_refused(folder: Path) -> None:
    one = method().dimensions["tone"]
    with pytest.raises(UserError, match=r"a side is called '\.\./up'.*leave out /"):
        phase(folder, dimensions={"tone": replace(one, sides=("praise", "../up"))})


def test_sums_do_not_depend_on_how_clients_are_grouped(folder: Path) -> None:
    own = phase(folder)
    start = own.initial(START, {})
    clients = [client(*demonstrations(*SIDES[i:]), name=f"c{i}") for i in range(4)]
    each = [contributions(own, start, one) for one in clients]
    together = contributions(own, start, *clients)
    parts = total([total(each[:1]), total(each[1:])])
    for name, tensor in together.tensors.items():
        assert torch.allclose(tensor, parts.tensors[name], atol=1e-12)
