"""The mixture of types: what clients add up, what the server makes of it, and what held-out judgments lose."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from fedalign.build import build
from fedalign.contribution import Contribution, State, total
from fedalign.data.rankings import RankingShard
from fedalign.errors import UserError
from fedalign.methods.fairness import MaxMinReward, MinMaxRegret, Mixing, NoMixture, TypeShares
from fedalign.methods.mmra import ANSWERS, JUDGMENTS, MIXTURE, REGRETS, VALUE, MixturePhase
from fedalign.methods.single_policy import Single
from fedalign.methods.type_model import PRIOR
from fedalign.metrics.record import decode
from fedalign.rng import Streams
from tests.language_models import random_model
from tests.methods.type_worlds import PROMPTS, WRITING, adapters, fair, heads, mixture_phase, random_shard, shard

NOTHING: Any = None
THREE = ([1.0, 0.5, 0.0, -1.0], [-1.0, 0.3, 1.0, 0.0], [0.2, -2.0, 0.4, 0.6])


def run(phase: MixturePhase, types: State, clients: list[RankingShard]) -> State:
    """Return the state after the only round."""
    state = phase.initial(Streams(0), {"em": types})
    replies = [phase.local(state, each, Streams(0, "mmra", 1, each.client), {}) for each in clients]
    for reply in replies:
        phase.template(state).check(reply)
    return phase.update(state, total(replies), NOTHING)


def rewards_by_hand(types: State, clients: list[RankingShard]) -> list[list[float]]:
    """Return L_ij over all menus of all clients, from the definition."""
    weights = [types[f"types.{k}.score.weight"][0] for k in range(3)]
    sums = [[0.0] * 3 for _ in range(3)]
    menus = 0
    for client in clients:
        for judgment in client.train.tolist():
            menus += 1
            there = [r for r in range(client.tiers.shape[1]) if client.tiers[judgment, r] >= 0]
            chances = []
            for own in weights:
                powers = [math.exp(float(own @ client.features[judgment, r])) for r in there]
                chances.append([p / sum(powers) for p in powers])
            for i in range(3):
                for j in range(3):
                    sums[i][j] += sum(q * math.log(p * len(there)) for p, q in zip(chances[i], chances[j], strict=True))
    return [[value / menus for value in row] for row in sums]


@pytest.mark.parametrize("weight", ["uniform", "judgments"])
def test_sums_of_clients_are_the_mean_over_all_menus(weight: str) -> None:
    model, types = heads(*THREE)
    sizes = (6, 6, 6) if weight == "uniform" else (2, 9, 5)
    clients = [random_shard(i, size, client=f"c{i}") for i, size in enumerate(sizes)]
    after = run(mixture_phase(model, 3, fair(), weight), types, clients)
    torch.testing.assert_close(after[ANSWERS], torch.tensor(rewards_by_hand(types, clients)), rtol=1e-5, atol=1e-6)


def test_a_client_with_many_menus_counts_as_one() -> None:
    model, types = heads(*THREE)
    small, large = random_shard(1, 2, client="small"), random_shard(2, 60, client="large")
    phase = mixture_phase(model, 3, fair())
    alone = [run(phase, types, [each])[ANSWERS] for each in (small, large)]
    torch.testing.assert_close(run(phase, types, [small, large])[ANSWERS], (alone[0] + alone[1]) / 2)


def test_no_more_menus_are_read_than_asked_for() -> None:
    model, types = heads(*THREE)
    client = random_shard(3, 30)
    seen: list[int] = []
    original = model.utilities

    def utilities(shard: RankingShard, index: torch.Tensor) -> Any:
        seen.append(len(index))
        return original(shard, index)

    model.utilities = utilities  # type: ignore[method-assign]
    run(mixture_phase(model, 3, fair(client_prompts=7), validation=0.0), types, [client])
    assert seen == [7, 7, 7]


def test_equal_types_have_no_regret_and_share_the_mixture() -> None:
    model, types = heads(THREE[0], THREE[0], THREE[0])
    after = run(mixture_phase(model, 3, fair()), types, [random_shard(0, 20)])
    assert after[REGRETS].abs().max() < 1e-6
    assert float(after[VALUE]) < 1e-6
    torch.testing.assert_close(after[MIXTURE], torch.full((3,), 1 / 3), atol=1e-4, rtol=0)


def test_opposite_types_share_the_mixture_evenly() -> None:
    model, types = heads([2.0], [-2.0])
    tiers = torch.tensor([[0, 1]] * 4)
    menus = torch.tensor([[[0.5], [-0.5]], [[-0.5], [0.5]], [[0.7], [-0.7]], [[0.1], [-0.1]]])
    after = run(mixture_phase(model, 2, fair()), types, [shard(menus, tiers, [0, 1, 0, 1], ("a", "b"))])
    torch.testing.assert_close(after[MIXTURE], torch.tensor([0.5, 0.5]), atol=1e-5, rtol=0)
    assert float(after[VALUE]) > 0.05
    # A type that counts four times as much takes more of the mixture.
    tilted = run(mixture_phase(model, 2, fair(weights=(4.0, 1.0))), types, [shard(menus, tiers, [0] * 4, ("a",))])
    torch.testing.assert_close(tilted[MIXTURE], torch.tensor([0.8, 0.2]), atol=1e-5, rtol=0)


def test_the_order_of_types_means_nothing() -> None:
    client, order = random_shard(5, 25), [2, 0, 1]
    found = []
    for weights in (THREE, tuple(THREE[i] for i in order)):
        model, types = heads(*weights)
        found.append(run(mixture_phase(model, 3, fair(normalise=True), validation=0.0), types, [client]))
    torch.testing.assert_close(found[1][MIXTURE], found[0][MIXTURE][order], atol=1e-5, rtol=0)
    torch.testing.assert_close(found[1][REGRETS], found[0][REGRETS][order][:, order], atol=1e-5, rtol=1e-5)


def test_value_is_the_worst_regret_and_the_game_beats_every_other_mixture() -> None:
    model, types = heads(*THREE)
    client = random_shard(6, 40)
    after = {
        cls: run(mixture_phase(model, 3, fair(cls)), types, [client])
        for cls in (MinMaxRegret, MaxMinReward, TypeShares)
    }
    least = float(after[MinMaxRegret][VALUE])
    for state in after.values():
        worst = (state[REGRETS] @ state[MIXTURE]).max()
        assert float(state[VALUE]) == pytest.approx(float(worst), abs=1e-6)
        assert least <= float(worst) + 1e-6
    torch.testing.assert_close(after[TypeShares][MIXTURE], types[PRIOR])
    rewards = after[MaxMinReward][ANSWERS]
    best = (rewards @ after[MaxMinReward][MIXTURE]).min()
    assert all(best >= (rewards @ state[MIXTURE]).min() - 1e-6 for state in after.values())


def test_gains_in_human_labels_are_those_of_pairs_by_hand() -> None:
    model, types = heads([1.5], [-1.0])
    menus = torch.tensor([[[1.0], [0.0]], [[0.3], [0.9]], [[0.2], [-0.4]], [[2.0], [1.0]]])
    tiers = torch.tensor([[0, 1], [1, 0], [0, 1], [1, 0]])
    client = shard(menus, tiers, [0, 0, 1, 1], ("a", "b"))
    phase = mixture_phase(model, 2, fair(basis="judgments"))
    after = run(phase, types, [client])
    held = phase.method.folds.validating(client, 0)
    assert len(held) == 2
    for judgment in held.tolist():
        difference = float(menus[judgment, 0, 0] - menus[judgment, 1, 0]) * (1 if tiers[judgment, 0] == 0 else -1)
        own = [math.log(2) - math.log1p(math.exp(-w * difference)) for w in (1.5, -1.0)]
        torch.testing.assert_close(after[JUDGMENTS][int(client.owner[judgment])], torch.tensor(own))
    rows = after[JUDGMENTS]
    torch.testing.assert_close(after[REGRETS], rows.diagonal()[:, None] - rows)


def test_sums_that_noise_left_without_weight_are_no_regret() -> None:
    model, types = heads(*THREE)
    phase = mixture_phase(model, 3, fair(basis="judgments"))
    state = phase.initial(Streams(0), {"em": types})
    noise = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    sums = {
        "regret/answers": noise,
        "regret/prompts": torch.tensor([-0.2]),
        "regret/judgments": noise,
        "regret/judged": torch.tensor([-0.1, 0.0, 1.0]),
    }
    after = phase.update(state, Contribution(sums), NOTHING)
    assert not after[ANSWERS].any()
    assert not after[JUDGMENTS][:2].any()
    torch.testing.assert_close(after[JUDGMENTS][2], noise[2])
    assert math.isclose(float(after[MIXTURE].sum()), 1.0, abs_tol=1e-6)


def test_held_out_regret_is_of_own_type_over_mixture_and_the_worst_is_told() -> None:
    model, types = heads(*THREE[:2])
    client = random_shard(8, 30, test=10)
    phase = mixture_phase(model, 2, fair())
    state = {**phase.initial(Streams(0), {"em": types}), MIXTURE: torch.tensor([1.0, 0.0])}
    contribution = phase.evaluate(state, client, Streams(0))
    sums = {s.group: s for s in decode(contribution.scalars) if s.name == "test/regret"}
    assert sums["a"].total == pytest.approx(0, abs=1e-6)
    mine = client.test[client.owner[client.test] == 1]
    likely = phase.log_likelihoods(state, client, mine)
    assert sums["b"].total == pytest.approx(float((likely[1] - likely[0]).sum()), abs=1e-4)
    values = phase.summarise(decode(contribution.scalars), contribution.tensors)
    assert values["test/regret_worst"] == pytest.approx(max(0.0, sums["b"].total / sums["b"].n), abs=1e-6)
    assert values["test/regret_mean"] == pytest.approx(sums["b"].total / (sums["a"].n + sums["b"].n), abs=1e-6)
    assert "test/accuracy" in values


def test_the_server_reports_the_mixture_under_both_bases() -> None:
    model, types = heads(*THREE)
    client = random_shard(9, 30)
    phase = mixture_phase(model, 3, fair())
    after = run(phase, types, [client])
    told = phase.report(after)
    assert told["train/regret_worst"] == pytest.approx(float(after[VALUE]))
    assert told["train/regret_worst_answers"] == pytest.approx(float(after[VALUE]), rel=1e-5)
    assert "train/regret_worst_judgments" in told
    assert [told[f"train/mixture_{k}"] for k in range(3)] == pytest.approx(after[MIXTURE].tolist())


def test_public_prompts_leave_clients_alone(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("public")
    model, types = adapters(random_model("gpt2", folder / "model"), 2)
    file = folder / "prompts.txt"
    file.write_text("\n".join(PROMPTS) + "\n\n", encoding="utf-8")
    phase = mixture_phase(model, 2, fair(prompts=str(file)), validation=0.0)
    state = phase.initial(Streams(3), {"em": types})
    assert phase.rounds == 0
    # A type's own texts have a positive implicit reward in the mean: a divergence.
    assert bool((state[ANSWERS].diagonal() > 0).all())
    assert float(state[VALUE]) == pytest.approx(max(0.0, float((state[REGRETS] @ state[MIXTURE]).max())), abs=1e-5)
    assert "train/regret_worst_judgments" not in phase.report(state)
    again = phase.initial(Streams(3), {"em": types})
    assert torch.equal(again[ANSWERS], state[ANSWERS])
    assert len(phase.policy(state).write(PROMPTS, WRITING, torch.Generator().manual_seed(0)).texts) == len(PROMPTS)
    missing = mixture_phase(model, 2, fair(prompts=str(folder / "none.txt")))
    with pytest.raises(UserError, match=r"method\.fair\.prompts"):
        missing.initial(Streams(3), {"em": types})


def test_clients_of_language_models_send_means_over_their_prompts(tmp_path_factory: pytest.TempPathFactory) -> None:
    model, types = adapters(random_model("gpt2", tmp_path_factory.mktemp("private")), 2)
    client = random_shard(4, 8)
    phase = mixture_phase(model, 2, fair(client_prompts=3))
    after = run(phase, types, [client])
    assert bool((after[ANSWERS].diagonal() > 0).all())
    judged = phase.gains(types, client, phase.method.folds.validating(client, 0))
    owner = client.owner[phase.method.folds.validating(client, 0)]
    torch.testing.assert_close(after[JUDGMENTS][1], judged[:, owner == 1].mean(1).float())


@pytest.mark.parametrize("block", ["fair", "single"])
def test_all_parts_of_the_configuration_can_be_built(block: str) -> None:
    folder = Path(__file__).resolve().parents[2] / "conf" / "method" / block
    base: type[object] = Mixing if block == "fair" else Single
    found = {
        file.stem: build(yaml.safe_load(file.read_text()), base, f"method.{block}") for file in folder.glob("*.yaml")
    }
    assert "none" in found
    assert len(found) == len({type(part) for part in found.values()})


def test_what_travels_is_known_before_anything_is_trained() -> None:
    model, types = heads(*THREE)
    phase = mixture_phase(model, 3, fair())
    asked = phase.template(phase.initial(Streams(0), {}))
    assert asked == phase.template(phase.initial(Streams(0), {"em": types}))
    assert asked.size == 9 + 1 + 9 + 3
    assert not NoMixture().phases(phase.method, phase.em)


def test_settings_that_cannot_be_are_refused() -> None:
    model, _ = heads(*THREE)
    with pytest.raises(UserError, match=r"method\.fair\.weights=\[1\.0, 2\.0\] has 2 numbers, and there are 3"):
        mixture_phase(model, 3, fair(weights=(1.0, 2.0)))
    with pytest.raises(UserError, match=r"method\.fair\.basis=judgments"):
        fair(basis="judgments", prompts="file.txt")
    with pytest.raises(UserError, match="heads write nothing"):
        mixture_phase(model, 3, fair(prompts="file.txt"))
    with pytest.raises(UserError, match=r"method\.folds\.validation"):
        mixture_phase(model, 3, fair(basis="judgments"), validation=0.0)
