"""Budgets of phases that read different parts of the data: side by side or one after another, unit by unit."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant

from fedalign.errors import UserError
from fedalign.federation.account import Account
from fedalign.federation.directory import ClientDirectory
from fedalign.federation.exposure import Exposure, Part, exposure_of, most_rounds_at_worst
from fedalign.federation.local_noise import local_noise_multipliers
from fedalign.federation.sampling import CyclicSampler, PoissonSampler, Sampler
from fedalign.methods.base import Participation
from fedalign.privacy.delta import default_delta
from fedalign.privacy.local import DPSGD
from fedalign.privacy.metric_release import SummedMetrics
from tests.cases import mostly_slow

from .guarded import EVERYBODY, PLAIN_SUM, SEED, Pull, Push, protection

CLIENTS = [f"c{place:02}" for place in range(20)]
DELTA = 1e-3
LOCAL: dict[str, Any] = {**PLAIN_SUM, "local": DPSGD("example", 1.0, 0.25, "hooks"), "delta": DELTA}
SPLITS = {
    "disjoint": (range(10), range(10, 20)),
    "overlapping in two": (range(11), range(9, 20)),
    "the same": (range(20), range(20)),
    "of different sizes": (range(4), range(4, 20)),
}


def pull(rounds: int, stage: str | None = "sft", name: str = "pull") -> Pull:
    phase = Pull(rounds)
    phase.name, phase.stage, phase.local_steps = name, stage, 2
    return phase


def account(
    parts: Sequence[Sequence[int]], rounds: Sequence[int] = (4, 9), sampler: Sampler = EVERYBODY, **changes: Any
) -> Account:
    """Return the account of phases ``0``, ``1``... over clients given by their numbers."""
    changes = {"delta": DELTA, **changes}
    metrics, journal = changes.pop("evaluations", 0), changes.pop("journal", None)
    privacy = protection(**changes)
    exposures = [
        exposure_of(pull(r, f"stage {n}", str(n)), 8, sampler, [CLIENTS[i] for i in part], SEED, privacy)
        for n, (part, r) in enumerate(zip(parts, rounds, strict=True))
    ]
    return Account(privacy, exposures, metrics, 1, journal, len(CLIENTS))


def spend(keeper: Account, parts: Sequence[Sequence[int]]) -> None:
    """Run everything that is planned, each round over all of its phase's clients."""
    for exposure, part in zip(keeper.exposures.values(), parts, strict=True):
        for _ in range(exposure.rounds):
            cohort = [CLIENTS[i] for i in part]
            assert keeper.affords(exposure.name, cohort)
            keeper.charge(exposure.name, cohort)


def epsilon_of(*gaussians: tuple[float, int], rate: float | None = None) -> float:
    """Return what dp_accounting says of (noise multiplier, releases) one after another."""
    accountant = PLDAccountant()
    for noise, count in gaussians:
        event = GaussianDpEvent(noise)
        accountant.compose(SelfComposedDpEvent(event if rate is None else PoissonSampledDpEvent(rate, event), count))
    return accountant.get_epsilon(DELTA)


@pytest.mark.parametrize("split", mostly_slow(SPLITS, ["disjoint", "overlapping in two"]))
def test_epsilon_is_the_largest_over_units_of_what_they_were_in(split: str) -> None:
    parts = SPLITS[split]
    keeper = account(parts, noise_multiplier=3.0)
    spend(keeper, parts)
    one, other, both = epsilon_of((3.0, 4)), epsilon_of((3.0, 9)), epsilon_of((3.0, 4), (3.0, 9))
    expected = both if set(parts[0]) & set(parts[1]) else max(one, other)
    assert keeper.ledger.epsilon() == pytest.approx(expected, rel=1e-3)
    assert keeper.ledger.by_phase() == pytest.approx({"0": one, "1": other}, rel=1e-3)


def test_a_chain_of_overlaps_costs_the_dearest_pair() -> None:
    parts = (range(8), range(6, 14), range(12, 20))
    keeper = account(parts, (4, 9, 2), noise_multiplier=3.0)
    spend(keeper, parts)
    assert keeper.ledger.epsilon() == pytest.approx(epsilon_of((3.0, 4), (3.0, 9)), rel=1e-3)


@pytest.mark.slow
def test_cohorts_that_nobody_knows_are_charged_to_their_stage_alone() -> None:
    parts = SPLITS["disjoint"]
    keeper = account(parts, sampler=PoissonSampler(0.2), noise_multiplier=1.0)
    assert all(keeper.amplified(name) for name in keeper.exposures)
    spend(keeper, parts)
    assert keeper.ledger.epsilon() == pytest.approx(epsilon_of((1.0, 9), rate=0.2), rel=1e-3)
    mixed = account(SPLITS["overlapping in two"], sampler=PoissonSampler(0.2), noise_multiplier=1.0)
    spend(mixed, SPLITS["overlapping in two"])
    assert mixed.ledger.epsilon() == pytest.approx(epsilon_of((1.0, 13), rate=0.2), rel=1e-3)


@pytest.mark.parametrize("epsilon", [1.0, 4.0])
def test_phases_over_disjoint_clients_get_the_noise_that_each_would_get_alone(epsilon: float) -> None:
    parts, budget = SPLITS["disjoint"], {"epsilon": epsilon, "noise_multiplier": None}
    keeper = account(parts, **budget)
    single = [account([part], [rounds], **budget) for part, rounds in zip(parts, (4, 9), strict=True)]
    alone = [each.noise_multipliers["0"] for each in single]
    assert list(keeper.noise_multipliers.values()) == alone
    assert alone[0] < alone[1]
    spend(keeper, parts)
    assert 0.97 * epsilon <= keeper.ledger.epsilon() <= epsilon
    assert all(0.97 * epsilon <= spent <= epsilon for spent in keeper.ledger.by_phase().values())


@pytest.mark.parametrize("split", ["overlapping in two", "the same"])
def test_phases_that_share_clients_share_noise_and_budget(split: str) -> None:
    keeper = account(SPLITS[split], epsilon=4.0, noise_multiplier=None)
    (noise,) = set(keeper.noise_multipliers.values())
    assert noise == pytest.approx(account([range(20)], [13], epsilon=4.0, noise_multiplier=None).noise_multipliers["0"])
    spend(keeper, SPLITS[split])
    assert 0.97 * 4 <= keeper.ledger.epsilon() <= 4


def test_metrics_are_about_everybody_and_take_their_share_of_every_budget() -> None:
    parts = SPLITS["disjoint"]
    metered = {"metrics": SummedMetrics(("x",), 5.0), "evaluations": 3, "epsilon": 4.0, "noise_multiplier": None}
    keeper = account(parts, **metered)
    bare = account(parts, epsilon=4.0, noise_multiplier=None)
    assert all(keeper.noise_multipliers[name] > bare.noise_multipliers[name] for name in ("0", "1"))
    spend(keeper, parts)
    for _ in range(3):
        assert keeper.affords_metrics()
        keeper.charge_metrics("0")
    assert 0.97 * 4 <= keeper.ledger.epsilon() <= 4
    assert not keeper.affords_metrics()
    expected = max(epsilon_of((keeper.noise_multipliers[n], r), (5.0, 3)) for n, r in (("0", 4), ("1", 9)))
    assert keeper.ledger.epsilon() == pytest.approx(expected, rel=1e-3)


def test_a_noise_multiplier_that_is_given_is_that_of_all_phases() -> None:
    assert account(SPLITS["disjoint"], noise_multiplier=2.5).noise_multipliers == {"0": 2.5, "1": 2.5}


def test_an_overdrawn_stage_does_not_take_from_another() -> None:
    parts = SPLITS["disjoint"]
    keeper = account(parts, epsilon=4.0, noise_multiplier=None)
    first, second = ([CLIENTS[i] for i in part] for part in parts)
    for _ in range(5):
        keeper.charge("0", first)
    assert not keeper.affords("0", first)
    assert keeper.ledger.epsilon() > 4
    other = account(parts, epsilon=4.0, noise_multiplier=None)
    for _ in range(9):
        other.charge("1", second)
    assert not other.affords("1", second)
    assert other.affords("0", first)


def test_delta_is_held_against_all_clients() -> None:
    assert account(SPLITS["disjoint"], delta=None).delta == default_delta(20)
    with pytest.raises(UserError, match="below 1/20"):
        account(SPLITS["disjoint"], delta=0.06)


@pytest.mark.parametrize("sampler", [EVERYBODY, PoissonSampler(0.3)])
def test_what_was_spent_is_known_again_to_the_stage(tmp_path: Path, sampler: Sampler) -> None:
    parts = SPLITS["disjoint"]
    keeper = account(parts, sampler=sampler, noise_multiplier=3.0, journal=tmp_path / "privacy.json")
    spend(keeper, parts)
    told = json.loads((tmp_path / "privacy.json").read_text())
    again = account(parts, sampler=sampler, noise_multiplier=3.0)
    again.restore(told)
    assert again.ledger.epsilon() == keeper.ledger.epsilon()
    again.charge("1", [CLIENTS[19]])
    assert again.ledger.epsilon() > keeper.ledger.epsilon()


def test_other_clients_in_a_stage_are_refused_on_resume() -> None:
    keeper = account(SPLITS["disjoint"], noise_multiplier=3.0)
    with pytest.raises(UserError, match="'stage 0' have changed"):
        account(SPLITS["of different sizes"], noise_multiplier=3.0).restore(keeper.ledger.to_json())


# Noise on the clients, where the server knows no unit.


def local_account(stages: Sequence[str | None], disjoint: bool, **changes: Any) -> Account:
    privacy = protection(**{**LOCAL, **changes})
    exposures = [
        exposure_of(pull(rounds, stage, str(n)), 8, EVERYBODY, CLIENTS, SEED, privacy, disjoint)
        for n, (stage, rounds) in enumerate(zip(stages, (4, 9), strict=True))
    ]
    return Account(privacy, exposures, 0, 0, None, len(CLIENTS))


def spend_locally(keeper: Account) -> None:
    for exposure in keeper.exposures.values():
        for _ in range(exposure.rounds):
            assert keeper.affords(exposure.name, CLIENTS)
            keeper.charge(exposure.name, CLIENTS)


PLANS: list[tuple[list[str | None], bool, bool]] = [
    (["sft", "rl"], True, True),
    (["sft", "rl"], False, False),
    (["sft", "sft"], True, False),
    (["sft", None], True, False),
    ([None, None], True, False),
]


@pytest.mark.parametrize(("stages", "disjoint", "parallel"), mostly_slow(PLANS, PLANS[:2]))
def test_local_noise_is_side_by_side_only_for_stages_that_are_disjoint(
    stages: list[str | None], disjoint: bool, parallel: bool
) -> None:
    keeper = local_account(stages, disjoint, noise_multiplier=1.5)
    spend_locally(keeper)
    rounds = [9] if parallel else [13]
    expected = epsilon_of(*((1.5, 2 * number) for number in rounds), rate=0.25)
    assert keeper.ledger.epsilon() == pytest.approx(expected, rel=1e-3)


@functools.cache
def noise_of(rounds: int) -> float:
    return local_noise_multipliers(chosen(), EVERYBODY, [pull(rounds)], True)["pull"]


def chosen() -> Any:
    return protection(**{**LOCAL, "epsilon": 2.0, "noise_multiplier": None})


@pytest.mark.slow
@pytest.mark.parametrize(("stages", "disjoint", "parallel"), PLANS)
def test_local_noise_is_chosen_for_what_a_unit_is_in(stages: list[str | None], disjoint: bool, parallel: bool) -> None:
    phases = [pull(rounds, stage, str(n)) for n, (stage, rounds) in enumerate(zip(stages, (4, 9), strict=True))]
    noise = local_noise_multipliers(chosen(), EVERYBODY, phases, disjoint)
    expected = [noise_of(4), noise_of(9)] if parallel else 2 * [noise_of(13)]
    assert list(noise.values()) == pytest.approx(expected)
    keeper = local_account(stages, disjoint, epsilon=2.0, noise_multiplier=None)
    assert keeper.noise_multipliers == noise
    spend_locally(keeper)
    assert 0.97 * 2 <= keeper.ledger.epsilon() <= 2


def test_a_phase_over_the_population_asks_everybody_every_time_whatever_the_sampler() -> None:
    phase = pull(8)
    assert most_rounds_at_worst(phase, CyclicSampler(4)) == 2
    phase.participation = Participation.ALL
    assert most_rounds_at_worst(phase, CyclicSampler(4)) == 8


def test_units_are_clients_or_stages() -> None:
    central, local = protection(), protection(**{**LOCAL, "noise_multiplier": 1.0})
    staged, plain = pull(1), Push(1)

    def part(phase: Pull, privacy: Any, disjoint: bool) -> Part | None:
        return exposure_of(phase, 8, EVERYBODY, CLIENTS[:3], SEED, privacy, disjoint).part

    assert part(staged, central, False) == part(staged, central, True) == Part("sft", frozenset(CLIENTS[:3]))
    assert part(staged, local, True) == Part("sft", frozenset({"sft"}))
    assert part(staged, local, False) is part(plain, local, True) is part(plain, central, True) is None


def test_a_directory_knows_who_holds_what() -> None:
    directory = ClientDirectory(["a", "b", "c"], ["u"], {}, {"a": ("sft",), "b": ("sft", "rl"), "c": ()})
    assert [directory.training_for(s) for s in ("sft", "rl", None)] == [["a", "b", "c"], ["b", "c"], ["a", "b", "c"]]
    assert isinstance(account(SPLITS["disjoint"]).exposures["0"], Exposure)
