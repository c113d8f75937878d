"""What the stages of alignment share: batches, states, what travels and what is trained, and steps under privacy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedalign.contribution import DELTA, WEIGHT, State, total
from fedalign.data.corpus import CorpusShard
from fedalign.data.federated import Role
from fedalign.errors import UserError
from fedalign.federation.server_optimizer import FedAvg
from fedalign.methods.base import Memory
from fedalign.methods.corpus import Batches, CorpusPhase
from fedalign.methods.preference_scores import RewardModelPhase
from fedalign.privacy.local import DPSGD, LocalPrivacy, Unit
from fedalign.privacy.noise import SeededNoise
from fedalign.rng import Streams
from tests.language_models import random_model

from .stages import PLACE, examples, phases, privacy, shard

STAGES = ("sft", "reward", "rl")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model("gpt2", tmp_path_factory.mktemp("model"))


def preferences(folder: Path, *overrides: str, local: LocalPrivacy | None = None) -> dict[str, CorpusPhase]:
    return phases(folder, *overrides, arm="dprlhf_preferences", local=local)


def rounds(phase: CorpusPhase, state: State, own: CorpusShard, count: int = 1, seed: int = 0) -> State:
    """Return the state after some rounds on one client."""
    optimizer, memory = FedAvg(1.0).build(), dict[str, torch.Tensor]()
    for number in range(1, count + 1):
        streams = Streams(seed, phase.name, number, own.client)
        state = phase.update(state, total([phase.local(state, own, streams, memory)]), optimizer)
    return state


def finished(found: dict[str, CorpusPhase], own: CorpusShard, seed: int = 0) -> dict[str, State]:
    """Return the first and the last state of a short run of all stages, by ``first/`` or ``last/`` and name."""
    states: dict[str, State] = {}
    artefacts: dict[str, State] = {}
    for name, phase in found.items():
        states["first/" + name] = phase.initial(Streams(seed, name), artefacts)
        artefacts[name] = states["last/" + name] = rounds(phase, states["first/" + name], own, 1, seed)
    return states


def test_batches_show_everything_once_before_anything_again_and_are_at_most_all() -> None:
    own = examples(7, users=7)
    batches = Batches(own, 3, torch.Generator().manual_seed(1))
    drawn = [batches.draw() for _ in range(7)]
    assert all(len(found) == len(seeds) == 3 for found, seeds in drawn)
    shown = [example.user for found, _ in drawn for example in found]
    for epoch in range(3):
        assert len(set(shown[7 * epoch : 7 * epoch + 7])) == 7
    assert shown[:7] != shown[7:14]
    assert len({seed for _, seeds in drawn for seed in seeds}) == 21
    assert len(Batches(own, 30, torch.Generator()).draw()[0]) == 7


def test_what_is_frozen_travels_but_is_neither_trained_nor_part_of_a_sum(folder: Path) -> None:
    found = preferences(folder)
    states = finished(found, shard())
    first, last = states["first/rl"], states["last/rl"]
    policy = set(states["last/sft"])
    reward = set(states["last/reward"])
    assert set(first) == policy | {"head.weight", "head.bias"} | {f"reference/{n}" for n in policy} | {
        f"reward/{n}" for n in reward
    }
    # The stages hand on what they have learnt.
    for name in policy:
        assert torch.equal(first[name], states["last/sft"][name])
        assert torch.equal(first[f"reference/{name}"], states["last/sft"][name])
        assert torch.equal(states["first/reward"][name], states["last/sft"][name])
    for name in reward:
        assert torch.equal(first[f"reward/{name}"], states["last/reward"][name])
    trained = set(found["rl"].template(first).tensors)
    assert trained == {DELTA + name for name in policy | {"head.weight", "head.bias"}}
    assert set(found["rl"].local(first, shard(), PLACE, {}).tensors) == trained
    for name in first:
        assert torch.equal(first[name], last[name]) == (DELTA + name not in trained)
    assert set(found["sft"].template(states["first/sft"]).tensors) == {DELTA + name for name in policy}


@pytest.mark.parametrize("algorithm", ["rloo", "grpo"])
def test_without_values_there_is_no_head(folder: Path, algorithm: str) -> None:
    phase = phases(folder, f"method/algorithm@method.rl.algorithm={algorithm}")["rl"]
    state = phase.initial(PLACE, {})
    assert not any("head" in name for name in [*state, *phase.template(state).tensors])


def test_a_frozen_a_travels_and_never_changes_and_follows_the_seed(folder: Path) -> None:
    own = shard()
    found = preferences(folder, "model.freeze_a=true")
    states = finished(found, own)
    other = found["sft"].initial(Streams(1, "sft"), {})
    frozen = {name for name in other if ".lora_A." in name}
    assert frozen
    for name in frozen:
        assert not torch.equal(other[name], states["first/sft"][name])
        for stage in STAGES:
            assert torch.equal(states[f"last/{stage}"][name], states["first/sft"][name])
    for stage in STAGES:
        trained = set(found[stage].template(states[f"first/{stage}"]).tensors)
        assert not any(".lora_A." in name for name in trained)
        assert any(".lora_B." in name for name in trained)
    # What was learnt is written with the state's A, not with that of whoever reads it.
    found["sft"].load({**states["last/sft"], **{name: other[name] for name in frozen}})
    for name in frozen:
        assert torch.equal(found["sft"].network.state_dict()[name], other[name])


def test_every_stage_runs_alone(folder: Path) -> None:
    alone = {
        "sft": phases(folder, "method.rl=null"),
        "reward": preferences(folder, "method.sft=null", "method.rl=null"),
        "rl": phases(folder, "method.sft=null"),
        "reward, rl": preferences(folder, "method.sft=null"),
    }
    for names, found in alone.items():
        assert ", ".join(found) == names
        states = finished(found, shard())
        for name in found:
            assert any(not torch.equal(states[f"first/{name}"][n], t) for n, t in states[f"last/{name}"].items())
    (phase,) = alone["rl"].values()
    state = phase.initial(Streams(3), {})
    # It begins at the pretrained model: B is 0.
    assert all(not bool(tensor.any()) for name, tensor in state.items() if ".lora_B." in name)


def test_what_cannot_be_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match=r"method\.sft, method\.reward_model and method\.rl are all null"):
        phases(folder, "method.sft=null", "method.rl=null")
    with pytest.raises(UserError, match=r"method\.rl needs a reward"):
        phases(folder, "method.reward=null")
    with pytest.raises(UserError, match=r"method\.reward and method\.reward_model are both set"):
        preferences(folder, "method/reward=vader")
    with pytest.raises(UserError, match=r"method\.evaluation\.judge is method\.reward"):
        phases(folder, "method/reward=vader", "+method/reward@method.evaluation.judge=vader")
    with pytest.raises(UserError, match=r"method\.reward_model\.rounds=0"):
        preferences(folder, "method.reward_model.rounds=0")
    with pytest.raises(UserError, match=r"method\.rl\.algorithm\.minibatches=5 of method\.rl\.batch=4"):
        phases(folder, "method.rl.algorithm.minibatches=5", "method.rl.local.steps=5")
    with pytest.raises(UserError, match=r"method\.lengths\.prompt=60 and method\.lengths\.response=5"):
        phases(folder, "method.lengths.prompt=60")


@pytest.mark.parametrize("unit", ["example", "user"])
@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_dp_sgd_without_noise_and_clipping_is_the_step_on_the_mean(folder: Path, stage: str, unit: Unit) -> None:
    """Law 4: everybody in every step; the batch without privacy holds the same."""
    plain_sgd = [
        f"method.{block}.local.{key}" for block in ("sft", "reward_model") for key in ("optimizer=sgd", "lr=0.3")
    ]
    small = [*plain_sgd, *(f"method.{b}.batch=6" for b in ("sft", "reward_model"))]
    # Three users with two examples each, all of which a step shows.
    own = shard(6)
    private, plain = (preferences(folder, *small, local=local)[stage] for local in (privacy(unit), None))
    state = plain.initial(PLACE, {})
    found, expected = (phase.local(state, own, PLACE, {}) for phase in (private, plain))
    assert found.scalars == {WEIGHT: 1.0}
    assert expected.scalars["weight"] == 1.0
    moved = 0.0
    for name, tensor in expected.tensors.items():
        torch.testing.assert_close(found.tensors[name], tensor, rtol=1e-3, atol=1e-6)
        moved = max(moved, float(tensor.abs().max()))
    assert moved > 1e-3


def test_noise_is_drawn_for_the_phase_and_follows_the_place(folder: Path) -> None:
    settings = DPSGD("example", 1.0, 1.0, "hooks")
    noisy = LocalPrivacy(settings, 0.0, SeededNoise(), noise_multipliers={"sft": 3.0})
    found = preferences(
        folder, "method.sft.local.optimizer=sgd", "method.sft.local.lr=1", "method.sft.local.steps=1", local=noisy
    )
    phase, own = found["sft"], shard()
    state = phase.initial(PLACE, {})
    exact = preferences(
        folder, "method.sft.local.optimizer=sgd", "method.sft.local.lr=1", "method.sft.local.steps=1",
        local=LocalPrivacy(settings, 0.0, SeededNoise()),
    )["sft"]  # fmt: skip

    def noise(place: Streams) -> torch.Tensor:
        one, other = (each.local(state, own, place, {}).tensors for each in (phase, exact))
        return torch.cat([(one[name] - other[name]).flatten() for name in one])

    here, there = noise(Streams(0, "sft", 1, "ann")), noise(Streams(0, "sft", 2, "ann"))
    # Three times the clip, over six expected examples.
    assert float(here.std()) == pytest.approx(0.5, rel=0.15)
    assert abs(float(torch.corrcoef(torch.stack([here, there]))[0, 1])) < 0.25


def test_local_training_follows_its_streams_and_changes_neither_state_nor_generators(folder: Path) -> None:
    # A reward model that has learnt nothing moves no policy.
    policy = phases(folder, "model.dropout=0.3")["rl"]
    for name, phase in {**preferences(folder, "model.dropout=0.3"), "rl": policy}.items():
        state = phase.initial(PLACE, {})
        kept = {key: tensor.clone() for key, tensor in state.items()}
        before = torch.get_rng_state()
        memory: Memory = {}
        first = phase.local(state, shard(), PLACE, memory)
        again = phase.local(state, shard(), PLACE, {})
        other = phase.local(state, shard(), replace(PLACE, seed=6), {})
        assert torch.equal(torch.get_rng_state(), before), name
        assert all(torch.equal(state[key], kept[key]) for key in kept)
        assert first.scalars == again.scalars
        assert all(torch.equal(first.tensors[key], again.tensors[key]) for key in first.tensors)
        assert any(not torch.equal(first.tensors[key], other.tensors[key]) for key in first.tensors)
        assert memory == {}


def test_clients_without_a_stage_s_examples_have_nothing_to_protect(folder: Path) -> None:
    found = preferences(folder)
    empty = CorpusShard("bob", Role.TRAIN, {"sft": examples(3)}, ())
    assert found["sft"].users(empty) == ["u0", "u1", "u2"]
    assert len(set(found["sft"].examples(empty))) == 3
    assert isinstance(found["reward"], RewardModelPhase)
    assert list(found["reward"].users(empty)) == list(found["rl"].examples(empty)) == []
    for phase in found.values():
        assert not phase.evaluate(phase.initial(PLACE, {}), empty, PLACE).scalars
