"""The control model's training: it is what a plain loop does, asks experts once, and learns who is right, and when."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fedalign.contribution import DELTA, WEIGHT, State
from fedalign.data.corpus import CorpusShard, Example
from fedalign.errors import UserError
from fedalign.methods.control_learning import Offline
from fedalign.methods.control_phase import CONTROL, ControlPhase
from fedalign.methods.control_texts import ControlTexts
from fedalign.methods.coverage import Coverage
from fedalign.methods.local_training import trainable
from fedalign.methods.preference_weighting import MinMax, QFair
from fedalign.methods.rollouts import uniform
from fedalign.metrics.record import decode
from fedalign.models.control import Control, ControlSpec
from fedalign.models.control_constant import ConstantSpec
from fedalign.models.mixing import Linear, LogLinear, Mixing
from fedalign.objectives.dpo import dpo_loss
from fedalign.rng import Streams
from tests.language_models import WORDS, random_model

from .scripted_experts import (
    BANDIT,
    RIGHT,
    TURNS,
    Scripted,
    ScriptedExperts,
    algorithm,
    control_phase,
    controlled,
    online,
    table_of,
    transformer,
)
from .stated import LENGTHS, PROMPTS, SIDES, client, contributions, dimensions, rounds, trained, wishes

START = Streams(3, "control")
BOTH = "praise, moving"
mixings = pytest.mark.parametrize("mixing", [Linear(), LogLinear()], ids=["linear", "log_linear"])
FAST_STEPS = {"steps": 1, "optimizer": "adam", "lr": 0.05}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model("gpt2", tmp_path_factory.mktemp("model"))


def shaken(state: State, scale: float = 0.5, seed: int = 0) -> State:
    """Return a state whose control model says something."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: tensor + scale * torch.randn(tensor.shape, generator=generator) if name.startswith(CONTROL) else tensor
        for name, tensor in state.items()
    }


def judged(*statements: str, count: int = 6) -> tuple[Example, ...]:
    """Return comparisons of unlike pairs of texts."""
    texts = (" good plot", " the it was", " dull", " good good good fine good plot", " plot")
    return tuple(
        replace(each, response=texts[i % 5], rejected=texts[(i + 1 + i % 3) % 5])
        for i, each in enumerate(wishes(*statements, count=count))
    )


def weights_of(own: ControlPhase, state: State, *statements: str) -> Tensor:
    """Return the weights at the first token of a text, (B, n)."""
    writer = own.writer(state)
    vectors = torch.stack([own.preferences.vector(each, "") for each in statements])
    seeds = list(range(len(vectors)))
    found = writer.write(["the film"] * len(vectors), vectors, uniform(seeds, LENGTHS.response)).log_weights
    assert found is not None
    return found[:, 0].exp()


def reward_of(own: ControlPhase, state: State, *statements: str, count: int = 64) -> float:
    """Return the mean reward of texts under some preferences."""
    own.load(state)
    texts = [statements[i % len(statements)] for i in range(count)]
    vectors = torch.stack([own.preferences.vector(each, "") for each in texts])
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(count)]
    written = own.texts.drawn(prompts, vectors, uniform(range(count), LENGTHS.response), 1.0, None)
    return float(own.texts.worth(prompts, written.texts, vectors).mean())


def difference(one: State, other: State) -> float:
    assert one.keys() == other.keys()
    return max(float((tensor - other[name]).abs().max()) for name, tensor in one.items())


# ---------------------------------------------------------------------------------------- what a plain loop would do


def by_hand(network: Control, own: ControlPhase, example: Example, response: str) -> tuple[Tensor, Tensor]:
    """Return the log-probability of a response under the mixture, and under the even one: its tokens alone, no pad."""
    prompt = [WORDS.index(word) for word in example.prompt.split()][-LENGTHS.prompt :]
    tokens = [*(WORDS.index(word) for word in response.split()), 0][: LENGTHS.response]
    told = own.preferences.told(own.vector(example)[None], own.fallback, None, torch.device("cpu"))
    ids = torch.tensor([[*prompt, *tokens]])
    scores, _, _ = network.advance(told, ids, torch.ones_like(ids), None, False)
    wanted = own.vector(example) > 0
    policy, even = torch.zeros(()), torch.zeros(())
    table = table_of(BANDIT).exp()
    for place, token in enumerate(tokens):
        here = scores[0, len(prompt) + place - 1, wanted].softmax(0)
        each = table[wanted, place % table.shape[1], token]
        policy, even = policy + (here * each).sum().log(), even + each.mean().log()
    return policy, even


def centralised(own: ControlPhase, start: State, examples: tuple[Example, ...], steps: int, lr: float) -> State:
    """Return the control model after plain steps of DPO on all examples."""
    network = own._fresh(Streams(0))
    parameters = trainable(network)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(start[CONTROL + name])
    optimizer = torch.optim.SGD(parameters.values(), lr=lr)
    for _ in range(steps):
        losses = []
        for example in examples:
            assert example.rejected is not None
            chosen, rejected = (by_hand(network, own, example, text) for text in (example.response, example.rejected))
            losses.append(-F.logsigmoid(0.5 * ((chosen[0] - chosen[1]) - (rejected[0] - rejected[1]))))
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return {CONTROL + name: parameter.detach() for name, parameter in parameters.items()}


@pytest.mark.parametrize("spec", [ConstantSpec(8), transformer(layers=2)], ids=["constant", "transformer"])
def test_one_client_with_full_batches_is_a_plain_centralised_loop(folder: Path, spec: ControlSpec) -> None:
    steps = {"steps": 3, "lr": 0.2}
    own = control_phase(folder, controlled(control=spec, steps=steps))
    start = shaken(own.initial(START, {}), 0.3)
    examples = judged(BOTH, "blame, still", "praise=2, still=0.5", "praise, blame, moving")
    after, expected = rounds(own, start, client(rl=examples)), centralised(own, start, examples, **steps)
    assert after.keys() == expected.keys()
    gaps = torch.cat([(after[name] - expected[name]).flatten() for name in after])
    assert float(gaps.abs().max()) <= 1e-6
    assert abs(float(gaps.mean())) <= 1e-6
    assert difference(after, start) > 1e-3


def test_two_clients_of_the_same_examples_are_one(folder: Path) -> None:
    own = control_phase(folder, controlled())
    start = shaken(own.initial(START, {}))
    one = client(rl=judged(BOTH))
    assert difference(rounds(own, start, one), rounds(own, start, one, replace(one, client="bob"))) <= 1e-7


@mixings
def test_cached_scalars_give_the_loss_of_whole_distributions(folder: Path, mixing: Mixing) -> None:
    own = control_phase(folder, controlled(control=transformer(), mixing=mixing))
    own.load(shaken(own.initial(START, {})))
    examples = judged(BOTH, "blame, still", "praise, blame=2, still")
    vectors = torch.stack([own.vector(example) for example in examples])
    prompts = [example.prompt for example in examples]
    sides = ([e.response for e in examples], [e.rejected or "" for e in examples])
    cached, whole = [], []
    for texts in sides:
        batch = own.texts.written(prompts, texts, vectors)
        assert (batch.spoken.whole is None) == isinstance(mixing, Linear)
        cached.append(own.texts.log_probabilities(batch, None)[0])
        whole.append(over_the_vocabulary(own, batch, mixing).where(batch.mask > 0, 0.0))
        assert torch.allclose(cached[-1], whole[-1], atol=1e-6)
        assert not cached[-1][batch.mask == 0].any()
    losses = [
        dpo_loss(chosen.sum(1), rejected.sum(1), torch.zeros(6), torch.zeros(6), 0.5)[0].mean()
        for chosen, rejected in (cached, whole)
    ]
    assert float((losses[0] - losses[1]).detach().abs()) <= 1e-6
    parameters = [p for p in own.network.parameters() if p.requires_grad]
    for one, other in zip(
        *(torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True) for loss in losses), strict=True
    ):
        assert (one is None) == (other is None)
        assert one is None or torch.allclose(one, other, atol=1e-6)


def over_the_vocabulary(own: ControlPhase, batch: Any, mixing: Mixing) -> Tensor:
    """Return what the mixture finds of tokens from whole distributions, (B, S)."""
    tokens = batch.tokens.ids
    scores, _, _ = own.network.advance(batch.told, tokens, batch.tokens.attention_mask, None, False)
    table = table_of(BANDIT)
    found = []
    for place in range(LENGTHS.response):
        each = table[:, place % table.shape[1]]
        here = scores[:, LENGTHS.prompt + place - 1].masked_fill(~batch.told.active, -torch.inf).softmax(1)
        linear = isinstance(mixing, Linear)
        mixed = (here @ each.exp()).log() if linear else (here @ each).log_softmax(1)
        assert torch.allclose(mixed.logsumexp(1), torch.zeros(len(tokens)), atol=1e-5)
        found.append(mixed.gather(1, tokens[:, LENGTHS.prompt + place, None])[:, 0])
    return torch.stack(found, 1)


@mixings
def test_what_is_drawn_is_kept_as_it_was_drawn(folder: Path, mixing: Mixing) -> None:
    own = control_phase(folder, controlled(control=transformer(), mixing=mixing))
    own.load(shaken(own.initial(START, {})))
    vectors = torch.stack([own.preferences.vector(s, "") for s in own.preferences.statements])
    for bias in (None, torch.tensor([0.5, -1.0, 2.0, 0.0])):
        batch = own.texts.drawn(["the film"] * 4, vectors, uniform(range(4), 5), 1.0, bias)
        again, _ = own.texts.log_probabilities(batch, bias)
        assert torch.allclose(batch.drawn_at, again, atol=1e-5)
    fresh = control_phase(folder, controlled(control=transformer(), mixing=mixing))
    batch = fresh.texts.drawn(["the film"] * 4, vectors, uniform(range(4), 5), 0.5, None)
    assert torch.allclose(batch.drawn_at, batch.even, atol=1e-6)


# -------------------------------------------------------------------------------------------------- frozen experts


@mixings
@pytest.mark.parametrize("name", ["offline", "rebel", "grpo", "ppo"])
def test_experts_that_are_all_the_same_teach_nothing(folder: Path, mixing: Mixing, name: str) -> None:
    learning = Offline(0.5) if name == "offline" else online(name, value_weight=0.0) if name == "ppo" else online(name)
    same = Scripted(dict.fromkeys(SIDES, ("good plot", "it")))
    settings = controlled(learning, transformer(), {"lr": 1.0}, mixing=mixing)
    own = control_phase(folder, settings, same)
    start = shaken(own.initial(START, {}), 0.1)
    found = contributions(own, start, client(rl=judged(BOTH, "blame, still")))
    largest = max(float(tensor.abs().max()) for key, tensor in found.tensors.items() if key.startswith(DELTA))
    assert largest < 1e-5


def test_nothing_of_experts_is_in_what_is_added_up(folder: Path) -> None:
    own = control_phase(folder, controlled(control=transformer()), trained())
    start = own.initial(START, {})
    names = {name for name in start if name.startswith(CONTROL)}
    assert {name.split("/")[1] for name in start.keys() - names} == set(SIDES)
    assert set(own.template(start).tensors) == {DELTA + name for name in names}
    found = contributions(own, start, client(rl=judged(BOTH)))
    assert set(found.tensors) == {DELTA + name for name in names}
    after = rounds(own, shaken(start), client(rl=judged(BOTH)))
    assert all(torch.equal(after[name], start[name]) for name in start.keys() - names)


def asked(folder: Path, learning: Any, steps: int) -> int:
    own = control_phase(folder, controlled(learning, transformer(), {"steps": steps, "lr": 1e-6}))
    experts = own.experts
    assert isinstance(experts, ScriptedExperts)
    contributions(own, own.initial(START, {}), client(rl=judged(BOTH)))
    return experts.calls


def test_gradient_steps_ask_no_expert(folder: Path) -> None:
    assert asked(folder, Offline(0.5), 1) == asked(folder, Offline(0.5), 7) == 2
    once = asked(folder, online(), 1)
    assert once > 2
    assert asked(folder, online(epochs=4), 4) == once
    assert asked(folder, online(epochs=2, minibatches=3), 6) == once
    assert asked(folder, online(), 4) > once


# ------------------------------------------------------------------------------------------------- who is right, when


@pytest.mark.parametrize(("name", "count"), [("rebel", 40), ("rloo", 40), ("grpo", 40), ("ppo", 80)])
def test_each_preference_comes_to_the_expert_that_is_right_for_it(folder: Path, name: str, count: int) -> None:
    # A learner without other responses to compare with needs more prompts in a step.
    own = control_phase(folder, controlled(online(name), steps={**FAST_STEPS, "lr": 0.03}, batch=16))
    start = own.initial(START, {})
    after = rounds(own, start, client(rl=wishes(*RIGHT, count=16)), count=count)
    places = torch.tensor([SIDES.index(expert) for expert in RIGHT.values()])[:, None]
    before, found = (weights_of(own, state, *RIGHT).gather(1, places)[:, 0] for state in (start, after))
    assert before.tolist() == pytest.approx([0.5] * 4)
    assert bool((found > 0.6).all()), found
    assert reward_of(own, after, *RIGHT) > reward_of(own, start, *RIGHT) + 0.02


def test_weights_by_token_beat_all_that_are_constant(folder: Path) -> None:
    # Steps that are larger, or of fewer prompts, may end with one expert alone, as the draws have it.
    steps = {"steps": 2, "optimizer": "adam", "lr": 0.02}
    own = control_phase(folder, controlled(online("rloo"), transformer(), steps, batch=16), Scripted(TURNS))
    after = rounds(own, own.initial(START, {}), client(rl=wishes(BOTH, count=16)), count=40)
    found = reward_of(own, after, BOTH)
    vector = own.preferences.vector(BOTH, "").expand(64, 4)
    prompts = [PROMPTS[i % len(PROMPTS)] for i in range(64)]
    told = own.writer(after).told(vector)
    constant = []
    for share in torch.linspace(0, 1, 11).tolist():
        held = replace(told, fixed=torch.tensor([share, 0.0, 1 - share, 0.0]).expand(64, 4))
        texts = own.writer(after).write_told(prompts, held, uniform(range(64), LENGTHS.response)).texts
        constant.append(float(own.texts.worth(prompts, texts, vector).mean()))
    assert found > max(constant) + 0.03


def test_what_is_stated_still_counts_after_averaging_clients_that_want_one_thing_each(folder: Path) -> None:
    """The praising expert is right for the one, and the other's wrong one."""
    own = control_phase(folder, controlled(online("rloo"), steps=FAST_STEPS))
    wants = {"ann": "praise, moving", "bob": "praise, still"}
    clients = [client(rl=wishes(want, count=8, user=name), name=name) for name, want in wants.items()]
    start = own.initial(START, {})
    after = rounds(own, start, *clients, count=60)
    found = weights_of(own, after, *wants.values())[:, SIDES.index("praise")]
    assert float(found[0]) > 0.6 and float(found[1]) < 0.4
    for want in wants.values():
        assert reward_of(own, after, want) > reward_of(own, start, want) + 0.02


def test_covered_preferences_are_learnt_where_nobody_has_them(folder: Path) -> None:
    learning = replace(online("rloo"), coverage=Coverage(0.8, ("praise, still",), None))
    alone, covered = (control_phase(folder, controlled(each, steps=FAST_STEPS)) for each in (online("rloo"), learning))
    shard = client(rl=wishes("praise, moving", count=8))
    still = [
        float(weights_of(own, rounds(own, own.initial(START, {}), shard, count=40), "praise, still")[0, 3])
        for own in (alone, covered)
    ]
    assert still[1] > 0.6
    assert still[1] > still[0] + 0.1


# ------------------------------------------------------------------------------------------------ what a client keeps


def test_a_personal_bias_stays_and_acts(folder: Path) -> None:
    settings = controlled(steps={"lr": 0.5}, personal_bias=True)
    plain, own = (control_phase(folder, replace(settings, personal_bias=flag)) for flag in (False, True))
    start = own.initial(START, {})
    assert not any("bias" in name.removeprefix(CONTROL).split(".")[0] for name in start)
    shard, memory = client(rl=judged(BOTH)), dict[str, Any]()
    streams = [Streams(3, "control", number, "ann") for number in (1, 2)]
    first = own.local(start, shard, streams[0], memory)
    own.template(start).check(first)
    assert set(first.tensors) == {DELTA + name for name in start}
    (kept,) = memory.values()
    assert kept.shape == (4,) and bool(kept[[0, 2]].abs().min() > 1e-4)
    # Experts that nobody here wants have no say, so nothing moves theirs.
    assert not bool(kept[[1, 3]].any())
    bare = plain.local(start, shard, streams[0], {})
    assert max(float((bare.tensors[n] - first.tensors[n]).abs().max()) for n in bare.tensors) > 1e-5
    remembered, forgotten = own.local(start, shard, streams[1], memory), own.local(start, shard, streams[1], {})
    assert max(float((remembered.tensors[n] - forgotten.tensors[n]).abs().max()) for n in bare.tensors) > 1e-5
    assert not torch.equal(memory["personal_bias"], kept)


def test_a_personal_bias_takes_what_its_client_wants_in_any_case(folder: Path) -> None:
    own = control_phase(folder, controlled(online("rloo"), steps=FAST_STEPS, personal_bias=True))
    memory, state = dict[str, Any](), own.initial(START, {})
    for number in range(1, 31):
        own.local(state, client(rl=wishes(BOTH, count=8)), Streams(3, "control", number, "ann"), memory)
    bias = memory["personal_bias"]
    assert float(bias[0] - bias[2]) > 0.5


# --------------------------------------------------------------------------------------------------- how it is counted


def weight_of(own: ControlPhase, state: State, shard: CorpusShard) -> float:
    return contributions(own, state, shard).scalars[WEIGHT]


def test_weights_follow_losses_where_they_are_to(folder: Path) -> None:
    shard = client(rl=judged(BOTH))
    steps = {"lr": 1e-6}
    even = control_phase(folder, controlled(steps=steps))
    fair = control_phase(folder, controlled(steps=steps, weighting=QFair(2.0, 0.01)))
    start = even.initial(START, {})
    assert weight_of(even, start, shard) == 1.0
    # A fresh control model tells no response from another: each pair is lost with probability 1/2.
    assert weight_of(fair, start, shard) == pytest.approx(0.25, abs=1e-3)
    whole, part = (contributions(each, start, shard) for each in (even, fair))
    for name, tensor in whole.tensors.items():
        assert torch.allclose(part.tensors[name], tensor * part.scalars[WEIGHT], atol=1e-9)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_losses_are_those_of_a_client_s_own_preferences_alone(folder: Path, share: float) -> None:
    steps = {"steps": 2, "lr": 1e-6}
    own = control_phase(folder, controlled(online(share=share), steps=steps, weighting=QFair(1.0, 0.01)))
    found = contributions(own, own.initial(START, {}), client(rl=wishes(BOTH, "praise=0.5, still=2", count=8)))
    rewards = [each for each in decode(found.scalars) if each.name == "train/reward"]
    number = sum(each.n for each in rewards)
    if share == 1.0:
        assert found.scalars[WEIGHT] == 1.0 and number == 0
        return
    assert number == 32 if share == 0.0 else 4 < number < 28
    assert found.scalars[WEIGHT] == pytest.approx(1 - sum(each.total for each in rewards) / number, rel=1e-5)


def test_min_max_weighs_and_moves_preferences(folder: Path) -> None:
    own = control_phase(folder, controlled(steps={"lr": 1e-6}, weighting=MinMax(1.0, 3.0)))
    start = own.initial(START, {})
    ann, bob = client(rl=judged(BOTH)), client(rl=judged("blame, still"), name="bob")
    tilted = {**start, "preferences/weight": torch.tensor([0.4, 0.2, 0.2, 0.2])}
    assert weight_of(own, start, ann) == pytest.approx(1.0)
    assert weight_of(own, tilted, ann) == pytest.approx(1.6)
    found = contributions(own, start, ann, bob)
    assert found.tensors["preferences/count"].tolist() == [1, 0, 0, 1]
    assert found.tensors["preferences/loss_sum"][1:3].tolist() == [0, 0]
    after = rounds(own, start, ann, bob)
    assert own.report(after).keys() == {f"train/preference_weight/{s}" for s in own.preferences.statements}
    assert float(after["preferences/weight"].sum()) == pytest.approx(1.0)


def test_what_cannot_be_learnt_from_is_left_out(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    offline, drawing = control_phase(folder, controlled()), control_phase(folder, controlled(online()))
    pairs, alone = judged(BOTH, count=4), judged("praise", "", "all", "still=3", count=4)
    texts = tuple(replace(each, rejected=None) for each in pairs)
    everything = client(rl=(*pairs, *alone, *texts))
    assert tuple(offline.own(everything)) == pairs
    assert tuple(drawing.own(everything)) == (*pairs, *texts)
    assert offline.users(everything) == ["ann"]
    assert len(set(offline.examples(everything))) == len(offline.examples(everything)) == 4
    start = offline.initial(START, {})
    assert difference(rounds(offline, start, everything), rounds(offline, start, client(rl=pairs))) == 0.0
    for empty in (client(rl=alone), client(rl=texts), client(sft=pairs)):
        found = offline.local(start, empty, Streams(3, "control", 1, "ann"), {})
        assert found.scalars == {WEIGHT: 0.0} and not found.tensors
        with caplog.at_level(logging.WARNING):
            assert difference(rounds(offline, start, empty), start) == 0.0
        assert caplog.messages[-1].endswith("names two sides or more, with a judgment")
        assert (
            difference(rounds(offline, start, empty, client(rl=pairs)), rounds(offline, start, client(rl=pairs))) == 0
        )
    assert rounds(drawing, start, client(rl=texts)).keys() == start.keys()


def test_statements_of_unknown_sides_are_refused_with_their_client(folder: Path) -> None:
    own = control_phase(folder, controlled())
    for shard in (client(rl=judged("prase, moving")), client(test=judged("prase, moving"))):
        with pytest.raises(UserError, match=r"client 'ann', preference=prase, moving: there is no side 'prase'"):
            own.check(shard)


def test_training_says_how_preferences_fare(folder: Path) -> None:
    shard = client(rl=judged(BOTH, "blame, still"))
    expected = {"rebel": {"train/loss", "train/reward", "train/kl"}, "offline": {"train/loss", "train/accuracy"}}
    for name, metrics in expected.items():
        own = control_phase(folder, controlled(online() if name == "rebel" else Offline(0.5)))
        sums = decode(contributions(own, own.initial(START, {}), shard).scalars)
        assert {each.name for each in sums} == metrics
        assert {each.group for each in sums} == {BOTH, "blame, still"}
        assert all(0 <= each.total <= each.n for each in sums if each.name in ("train/reward", "train/accuracy"))


# --------------------------------------------------------------------------------------------------------- refusals


def test_settings_that_do_not_go_together_are_refused(folder: Path) -> None:
    with pytest.raises(UserError, match=r"learning\.algorithm\.minibatches=9 of method\.merging\.batch=8 prompts"):
        control_phase(folder, controlled(online(minibatches=9), steps={"steps": 9}))
    with pytest.raises(UserError, match=r"method\.merging\.local\.steps=5: responses serve 4 steps"):
        control_phase(folder, controlled(online(epochs=2, minibatches=2), steps={"steps": 5}))
    with pytest.raises(UserError, match=r"coverage\.statements=stil"):
        control_phase(folder, controlled(replace(online(), coverage=Coverage(0.5, ("stil",), None))))
    silent = dimensions(measured=False)
    with pytest.raises(UserError, match=r"tone\.measure=null: .*or learn from judgments \(method/merging/learning=off"):
        control_phase(folder, controlled(online()), dimensions=silent)
    own = control_phase(folder, controlled(), dimensions=silent)
    assert own.rewards is None
    after = rounds(own, own.initial(START, {}), client(rl=judged(BOTH)))
    assert difference(after, own.initial(START, {})) > 0


def test_only_what_learns_values_trains_them(folder: Path) -> None:
    names = {}
    for name in ("rebel", "ppo"):
        own = control_phase(folder, controlled(online(name)))
        names[name] = {key for key in own.initial(START, {}) if key.startswith(f"{CONTROL}value.")}
    assert names["rebel"] == set() and len(names["ppo"]) == 2
    assert isinstance(own.texts, ControlTexts)
    assert algorithm("ppo").learns_values
