"""Stage 2 on one client and on the server: what travels, what is learnt, and that every setting matters."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from fedalign.config import RunConfig, resolve
from fedalign.contribution import DELTA, WEIGHT, Contribution, State
from fedalign.data.pairs import PairShard, Role
from fedalign.data.progress import silent
from fedalign.errors import UserError
from fedalign.federation.server_optimizer import FedAvg
from fedalign.methods import conditional_policy
from fedalign.methods.conditional_policy import PolicyPhase, group_means
from fedalign.methods.fedvpa import FedVPA
from fedalign.methods.latents import GROUP_MEAN
from fedalign.metrics.record import decode
from fedalign.rng import Streams
from fedalign.site import setting
from tests.cases import mostly_slow
from tests.configs import configured
from tests.tiny_policy import POLICY, language_model_of

Make = Callable[..., PolicyPhase]


@pytest.fixture(scope="module")
def config_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., RunConfig]:
    model = f"method.policy.policy.model={language_model_of(tmp_path_factory.getbasetemp())}"
    return lambda *overrides: configured(*POLICY, model, *overrides)


@pytest.fixture(scope="module")
def make(config_of: Callable[..., RunConfig]) -> Make:
    """Give the policy's phase under some overrides."""

    def build(*overrides: str) -> PolicyPhase:
        config = config_of(*overrides)
        phase = config.method.phases(setting(config))[-1]
        assert isinstance(phase, PolicyPhase)
        return phase

    return functools.cache(build)


@pytest.fixture(scope="module")
def shards(config_of: Callable[..., RunConfig], tmp_path_factory: pytest.TempPathFactory) -> list[PairShard]:
    config = config_of()
    data = config.data.federate(config.partition, config.encoder, Streams(0), tmp_path_factory.mktemp("cache"), silent)
    return [data.shard(client.name) for client in data.clients]


def artefacts(phase: PolicyPhase) -> dict[str, State]:
    """An untrained selector, and two groups that want opposite things."""
    means = {"praise": torch.tensor([3.0, 0.0]), "criticism": torch.tensor([-1.0, 0.0])}
    selector = phase.selector.initial(Streams(0, "selector"), {})
    extra = {"bank/7": torch.ones(5), "latent/praise/annotator-001": torch.ones(2)}
    return {"selector": selector, "latents": {**selector, **extra, **{GROUP_MEAN + g: m for g, m in means.items()}}}


def begin(phase: PolicyPhase, seed: int = 0) -> State:
    return phase.initial(Streams(seed, "policy"), artefacts(phase))


def moved(phase: PolicyPhase) -> State:
    """A policy that is no longer the frozen model."""
    noise = torch.Generator().manual_seed(0)
    state = begin(phase)
    own = {name: t + 0.2 * torch.randn(t.shape, generator=noise) for name, t in state.items() if name in trained(phase)}
    return {**state, **own}


def trained(phase: PolicyPhase) -> set[str]:
    return {name for name, parameter in phase.network.named_parameters() if parameter.requires_grad}


def step(phase: PolicyPhase, shard: PairShard, state: State | None = None, number: int = 1) -> Contribution:
    return phase.local(begin(phase) if state is None else state, shard, Streams(0, "policy", number, shard.client), {})


def rate(contribution: Contribution, name: str) -> float:
    found = [item for item in decode(contribution.scalars) if item.name == name]
    return sum(item.total for item in found) / sum(item.n for item in found)


def test_the_phases_come_one_after_another(config_of: Callable[..., RunConfig]) -> None:
    config = config_of()
    phases = config.method.phases(setting(config))
    assert [(phase.name, phase.rounds) for phase in phases] == [("selector", 1), ("latents", 1), ("policy", 1)]


def test_the_state_is_a_fresh_adapter_and_what_clients_label_with(make: Make) -> None:
    phase = make()
    state, known = begin(phase), artefacts(phase)
    assert {"projection.weight", "projection.bias"} < state.keys()
    assert any("lora_A" in name for name in state)
    for name, tensor in known["selector"].items():
        if name.startswith("reward."):
            assert torch.equal(state[f"selector/{name}"], tensor)
    assert group_means(state).keys() == {"praise", "criticism"}
    # Nothing of a single person travels.
    assert not any("bank/" in name or "annotator" in name for name in state)
    again, other = begin(phase), begin(phase, seed=1)
    assert all(torch.equal(state[name], again[name]) for name in state)
    assert not torch.equal(state["projection.weight"], other["projection.weight"])


def test_latents_are_told_from_the_middle_of_the_groups_up_to_a_length(make: Make) -> None:
    phase = make()
    state, scale = begin(phase), make().settings.latent_scale
    praise, criticism = (group_means(state)[group] for group in ("praise", "criticism"))
    told = phase.told(state, torch.stack([praise, criticism]))
    assert told.norm(dim=1).tolist() == pytest.approx([scale, scale])
    assert torch.allclose(told[0], -told[1], atol=1e-6)
    middle = (praise + criticism) / 2
    assert torch.allclose(phase.told(state, middle), torch.zeros_like(middle), atol=1e-6)
    assert torch.allclose(phase.told(state, torch.lerp(praise, criticism, 0.25)), told[0] / 2, atol=1e-6)
    assert float(phase.told(state, 100 * praise).norm()) == pytest.approx(1.5 * scale)


def test_only_the_policy_is_trained_and_nothing_is_changed_in_place(make: Make, shards: list[PairShard]) -> None:
    phase = make()
    state = begin(phase)
    before = {name: tensor.clone() for name, tensor in state.items()}
    contribution = step(phase, shards[0], state)
    changed = {name.removeprefix(DELTA) for name in contribution.tensors}
    assert changed == trained(phase) == {name for name in state if "lora_" in name or name.startswith("projection.")}
    assert all(torch.equal(state[name], before[name]) for name in state)
    after = phase.update(state, contribution, FedAvg(1.0).build())
    assert after.keys() == state.keys()
    unchanged = {name for name in state if torch.equal(after[name].float(), state[name])}
    assert unchanged.isdisjoint({"projection.weight"})
    assert {name for name in state if name not in changed} <= unchanged
    again = step(phase, shards[0], state)
    assert all(torch.equal(contribution.tensors[name], again.tensors[name]) for name in contribution.tensors)


def test_the_policy_learns_to_say_what_a_latent_wants(
    make: Make, shards: list[PairShard], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under positive latents more of one word, under negative ones less."""
    phase = make(
        "method.policy.prompts=8", "method.policy.completions=4", "method.policy.batch=24",
        "method.policy.local.steps=8", "method.policy.local.lr=0.01", "method.policy.latent_scale=2",
        "method.policy.local.schedule=constant",
    )  # fmt: skip

    def counted(encoder: object, prompts: Sequence[str], responses: Sequence[str], tail: int) -> torch.Tensor:
        return torch.tensor([[float(text.split().count("good"))] for text in responses])

    monkeypatch.setattr(conditional_policy, "encode_responses", counted)
    monkeypatch.setattr(phase, "_odds", lambda state: lambda one, other, z: (one - other)[..., 0] * z[:, :1])
    state, optimizer = begin(phase), FedAvg(1.0).build()
    for number in range(1, 7):
        state = phase.update(state, step(phase, shards[0], state, number), optimizer)
    phase.load(state)
    prompts, said = ["the film was"] * 100, {}
    for group, mean in group_means(state).items():
        z = phase.told(state, mean).expand(100, -1)
        texts = phase.writer.write(prompts, z, 1.0, torch.Generator().manual_seed(0)).texts
        said[group] = sum(text.split().count("good") for text in texts)
    assert said["praise"] > 2 * said["criticism"] + 20, said


def test_a_policy_that_is_told_nothing_has_no_place_for_it(make: Make, shards: list[PairShard]) -> None:
    phase = make("method.policy.condition=false", "method.policy.preferences=own")
    state = begin(phase)
    assert phase.network.latent == 0
    assert not any(name.startswith("projection") for name in state)
    contribution = step(phase, shards[0], state)
    assert any(tensor.abs().max() > 0 for tensor in contribution.tensors.values())
    values = phase.evaluate(state, shards[0], Streams(0, "policy", 1, shards[0].client))
    assert rate(values, "test/follow") == 0.5
    assert rate(values, "test/switch_rate") == 0.5


def test_where_nothing_is_decided_nothing_is_learnt(make: Make, shards: list[PairShard]) -> None:
    phase = make("method.policy.margin=1000000")
    state = begin(phase)
    contribution = step(phase, shards[0], state)
    assert not contribution.tensors
    assert WEIGHT not in contribution.scalars
    assert rate(contribution, "train/policy_pairs") == 0.0
    assert phase.update(state, contribution, FedAvg(1.0).build()) is state


@pytest.mark.parametrize(
    "change",
    mostly_slow(
        [
            "latent_scale=1.0",
            "preferences=own",
            "sample_from=reference",
            "prompts=1",
            "completions=2",
            "max_prompt_tokens=2",
            "max_new_tokens=3",
            "temperature=0.5",
            "shared=1.0",
            "beta=2.0",
            "likelihood=0.0",
            "batch=1",
            "local.lr=0.01",
            "policy.condition=prefix",
            "policy.init_std=0.1",
            "policy.rank=3",
            "policy.alpha=1.0",
        ],
        ["preferences=own", "sample_from=reference", "completions=2", "beta=2.0", "policy.condition=prefix"],
    ),
)
def test_a_setting_changes_what_is_learnt(make: Make, shards: list[PairShard], change: str) -> None:
    phase, other = make(), make(f"method.policy.{change}")
    known = step(phase, shards[0], moved(phase)).tensors
    changed = step(other, shards[0], moved(other)).tensors
    alike = {name for name in known if name in changed and known[name].shape == changed[name].shape}
    assert any(not torch.equal(known[name], changed[name]) for name in alike)


def test_evaluation_is_by_preference_and_population(make: Make, shards: list[PairShard]) -> None:
    phase = make()
    state = begin(phase)
    for shard in (shards[0], shards[-1]):
        population = "unseen" if shard.role is Role.UNSEEN else "test"
        sums = decode(phase.evaluate(state, shard, Streams(0, "policy", 1, shard.client)).scalars)
        groups = {item.group for item in sums if item.name == f"{population}/follow"}
        assert groups == {"praise", "criticism"}
        assert {item.name.partition("/")[0] for item in sums} == {population}
        own = [item for item in sums if item.name.endswith("/follow_own")]
        assert [(item.group, item.n) for item in own] == [(shard.people[0].group, 2.0)]
        later = phase.evaluate(state, shard, Streams(0, "policy", 5, shard.client))
        assert decode(later.scalars) == sums
        worst = min(item.total / item.n for item in sums if item.name == f"{population}/follow")
        assert phase.summarise(sums, {})[f"{population}/follow_worst"] == worst


def test_a_client_that_is_not_drawn_writes_nothing(make: Make, shards: list[PairShard]) -> None:
    phase = make("method.policy.evaluation.clients=0.000001")
    assert phase.evaluate(begin(phase), shards[0], Streams(0, "policy", 1, shards[0].client)) == Contribution()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method.collect_latents=false"], "set method.collect_latents=true"),
        (["method.policy.max_new_tokens=60"], "method.policy.max_new_tokens=60: 68 tokens together, .* reads 64"),
        (["method.policy.policy.model=./nowhere"], "method.policy.policy.model=./nowhere: no such folder"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    config_of: Callable[..., RunConfig], overrides: list[str], message: str
) -> None:
    config = config_of(*overrides)
    with pytest.raises(UserError, match=message):
        config.method.phases(setting(config))


def test_a_group_that_the_judge_does_not_know_is_refused_before_the_run(make: Make, shards: list[PairShard]) -> None:
    from dataclasses import replace

    phase = make()
    phase.check(shards[0])
    stranger = replace(shards[0], people=(replace(shards[0].people[0], group="helpful"),))
    with pytest.raises(UserError, match="the judge knows no preference 'helpful'"):
        phase.check(stranger)


def test_without_the_block_there_is_no_such_phase(config_of: Callable[..., RunConfig]) -> None:
    config = config_of()
    assert isinstance(config.method, FedVPA)
    resolved: dict[str, Any] = resolve(["method=fedvpa"])
    assert resolved["method"]["policy"] is None
