"""Budgets: noise that spends what was planned, rounds that stop in time, and spending that is never forgotten."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedalign.errors import UserError
from fedalign.federation.account import Account, finite
from fedalign.federation.exposure import Exposure, exposure_of, most_rounds, most_rounds_at_worst
from fedalign.federation.local_noise import local_noise_multipliers
from fedalign.federation.sampling import CyclicSampler, FixedSampler, PoissonSampler, Sampler
from fedalign.methods.base import Participation
from fedalign.privacy.distributed import Skellam
from fedalign.privacy.events import GaussianEvent, PoissonGaussianEvent
from fedalign.privacy.ledger import Entry, Ledger, Relation, Unit
from fedalign.privacy.local import DPSGD
from fedalign.privacy.metric_release import SummedMetrics, WithheldMetrics
from fedalign.privacy.noise import SystemNoise
from fedalign.privacy.rounding import Rounding
from fedalign.privacy.scheme import Sampling, Scheme
from fedalign.rng import Streams

from .guarded import EVERYBODY, PLAIN_SUM, SECAGG, SEED, Pull, Push, protection

MANY = tuple(f"c{place:03}" for place in range(100))
EVERYONE = Sampling(Scheme.EVERYONE, 100, 100.0)
POISSON = Sampling(Scheme.POISSON, 100, 10.0)
FIXED = Sampling(Scheme.FIXED_SIZE, 100, 10.0)
DISTRIBUTED: dict[str, Any] = {
    "mechanism": Skellam(Rounding(0.01, 0.6)),
    "secure": SECAGG,
    "metrics": WithheldMetrics(),
}
LOCAL: dict[str, Any] = {
    **PLAIN_SUM,
    "noise_multiplier": 1.0,
    "local": DPSGD("example", 1.0, 0.25, "hooks"),
    "delta": 1e-5,
}


def exposure(sampling: Sampling = EVERYONE, rounds: int = 5, name: str = "pull", most: int | None = None) -> Exposure:
    return Exposure(name, rounds, sampling, 8, 2, rounds if most is None else most)


def account(exposures: list[Exposure] | None = None, journal: Path | None = None, **changes: Any) -> Account:
    evaluations = changes.pop("evaluations", 0)
    return Account(protection(**changes), exposures or [exposure()], evaluations, 2, journal)


def rounds_afforded(keeper: Account, name: str = "pull", at_most: int = 50) -> int:
    done = 0
    while done < at_most and keeper.affords(name, MANY):
        keeper.charge(name, MANY)
        done += 1
    return done


TARGETS: dict[str, tuple[dict[str, Any], list[Exposure]]] = {
    "everyone": ({}, [exposure()]),
    "poisson": ({}, [exposure(POISSON, 20)]),
    "fixed size": ({}, [exposure(FIXED, 20)]),
    "two phases": ({}, [exposure(EVERYONE, 5), exposure(EVERYONE, 1, "push")]),
    "two kinds of phases": ({}, [exposure(POISSON, 5), exposure(EVERYONE, 1, "push")]),
    "skellam": (DISTRIBUTED, [exposure()]),
    "local": (LOCAL, [exposure()]),
    "metrics too": ({"metrics": SummedMetrics((), 20.0), "evaluations": 3}, [exposure()]),
}


SLOW = {"poisson", "fixed size", "two kinds of phases", "local"}


@pytest.mark.parametrize(
    ("kind", "epsilon"),
    [
        pytest.param(kind, epsilon, marks=[pytest.mark.slow] if kind in SLOW else [])
        for kind in TARGETS
        for epsilon in (1.0, 8.0)
    ],
)
def test_noise_for_a_budget_spends_nearly_all_of_it_and_no_more(kind: str, epsilon: float) -> None:
    changes, exposures = TARGETS[kind]
    keeper = account(exposures, **{**changes, "epsilon": epsilon, "noise_multiplier": None})
    for phase in exposures:
        assert rounds_afforded(keeper, phase.name, phase.rounds) == phase.rounds
    for _ in range(changes.get("evaluations", 0)):
        assert keeper.affords_metrics()
        keeper.charge_metrics("pull")
    assert 0.97 * epsilon <= keeper.ledger.epsilon() <= epsilon


@pytest.mark.parametrize(
    ("sampling", "noise"),
    [
        (EVERYONE, 4.0),
        pytest.param(POISSON, 0.7, marks=pytest.mark.slow),
        pytest.param(FIXED, 2.5, marks=pytest.mark.slow),
    ],
)
def test_rounds_end_before_the_one_that_would_exceed_the_budget(sampling: Sampling, noise: float) -> None:
    keeper = account([exposure(sampling, 1000)], epsilon=3.0, noise_multiplier=noise)
    done = rounds_afforded(keeper)
    assert 0 < done < 50
    assert keeper.ledger.epsilon() <= 3.0
    keeper.charge("pull", MANY)
    assert keeper.ledger.epsilon() > 3.0


def test_without_a_budget_nothing_ends() -> None:
    assert rounds_afforded(account(noise_multiplier=0.1)) == 50
    assert account(noise_multiplier=0.0).ledger.epsilon([Entry("pull", GaussianEvent(0.0))]) == math.inf


def test_a_second_phase_gets_what_the_first_one_left() -> None:
    keeper = account([exposure(rounds=4), exposure(rounds=4, name="push")], epsilon=3.0, noise_multiplier=2.0)
    first, second = rounds_afforded(keeper, "pull", 4), rounds_afforded(keeper, "push")
    alone = rounds_afforded(account([exposure(rounds=1000)], epsilon=3.0, noise_multiplier=2.0))
    assert first + second == alone


def test_an_overdrawn_phase_is_not_made_up_for_by_the_plan_of_another() -> None:
    """Rounds that a resumed run has to repeat are charged again, beyond the plan of their phase."""
    keeper = account([exposure(rounds=4), exposure(rounds=4, name="push")], epsilon=3.0, noise_multiplier=None)
    for _ in range(6):
        keeper.charge("pull", MANY)
    assert rounds_afforded(keeper, "push") == 2
    assert keeper.ledger.epsilon() <= 3.0


METERED: dict[str, Any] = {"metrics": SummedMetrics((), 6.0), "evaluations": 3}


def test_training_leaves_metrics_their_share() -> None:
    keeper = account([exposure(rounds=1000)], epsilon=3.0, noise_multiplier=2.0, **METERED)
    bare = account([exposure(rounds=1000)], epsilon=3.0, noise_multiplier=2.0)
    assert 0 < rounds_afforded(keeper) < rounds_afforded(bare)
    for _ in range(3):
        assert keeper.affords_metrics()
        keeper.charge_metrics("pull")
    assert keeper.ledger.epsilon() <= 3.0


def test_metrics_beyond_the_plan_are_not_released_at_the_cost_of_the_budget() -> None:
    keeper = account(epsilon=3.0, noise_multiplier=None, **METERED)
    assert rounds_afforded(keeper, at_most=5) == 5
    for _ in range(3):
        keeper.charge_metrics("pull")
    assert not keeper.affords_metrics()
    assert account(epsilon=None).affords_metrics()


def test_metrics_cost_what_their_noise_costs() -> None:
    keeper = account(noise_multiplier=2.0, **METERED)
    keeper.charge_metrics("pull")
    fresh = Ledger(Unit.CLIENT, Relation.ADD_OR_REMOVE, keeper.delta)
    assert keeper.ledger.epsilon() == pytest.approx(fresh.epsilon([Entry("x", GaussianEvent(6.0))]))
    silent = account(noise_multiplier=2.0)
    silent.charge_metrics("pull")
    assert silent.ledger.releases == 0


def test_only_cohorts_that_nobody_knows_are_charged_to_all() -> None:
    drawn, known = account([exposure(POISSON)]), account([exposure(replace(POISSON, scheme=Scheme.KNOWN), most=1)])
    for keeper in (drawn, known):
        keeper.charge("pull", ["c001"])
        keeper.charge("pull", ["c002"])
    assert drawn.amplified("pull")
    assert not known.amplified("pull")
    assert (drawn.ledger.most("pull"), known.ledger.most("pull")) == (2, 1)
    assert known.ledger.releases == 2


def test_an_empty_cohort_is_charged_as_any_other() -> None:
    keeper = account([exposure(POISSON)])
    keeper.charge("pull", [])
    assert keeper.ledger.releases == 1
    assert keeper.ledger.epsilon() > 0


def test_fixed_sizes_are_about_replaced_data() -> None:
    assert account([exposure(FIXED)]).relation is Relation.REPLACE_ONE
    assert account([exposure(POISSON)]).relation is Relation.ADD_OR_REMOVE
    assert account([exposure(replace(FIXED, scheme=Scheme.KNOWN))]).relation is Relation.ADD_OR_REMOVE
    assert account([exposure(FIXED)], **LOCAL).relation is Relation.ADD_OR_REMOVE


def test_delta_is_below_one_over_the_clients() -> None:
    assert account().delta == pytest.approx(100**-1.1)
    assert account(delta=1e-6).delta == 1e-6
    with pytest.raises(UserError, match=r"privacy\.delta=0\.01 must be below 1/100"):
        account(delta=0.01)


def test_how_many_examples_there_are_is_for_the_user_to_know() -> None:
    assert account(**LOCAL).unit is Unit.EXAMPLE
    with pytest.raises(UserError, match=r"privacy\.delta=null: how many examples there are is not known"):
        account(**{**LOCAL, "delta": None})


def test_local_steps_are_charged_to_the_clients_that_take_them() -> None:
    keeper = account(**LOCAL)
    keeper.charge("pull", ["c001"])
    keeper.charge("pull", ["c001", "c002"])
    expected = Ledger(Unit.EXAMPLE, Relation.ADD_OR_REMOVE, 1e-5)
    assert keeper.ledger.epsilon() == pytest.approx(expected.epsilon([Entry("x", PoissonGaussianEvent(0.25, 1.0), 4)]))


def test_a_phase_is_charged_at_its_own_rate() -> None:
    """And no other is; a bound changes nothing, because the noise goes by it."""
    local = DPSGD("example", 1.0, 0.25, "hooks", rates={"pull": 0.5}, clips={"pull": 9.0})
    for name, rate in (("pull", 0.5), ("push", 0.25)):
        keeper = account([exposure(name=name)], **{**LOCAL, "local": local})
        keeper.charge(name, ["c001"])
        expected = Ledger(Unit.EXAMPLE, Relation.ADD_OR_REMOVE, 1e-5)
        entry = Entry("x", PoissonGaussianEvent(rate, 1.0), 2)
        assert keeper.ledger.epsilon() == pytest.approx(expected.epsilon([entry]))


def test_the_worst_case_is_that_of_local_noise_alone() -> None:
    """Who is asked follows from the seed; where clients add no noise, the busiest of them is what counts."""
    phase = Pull(rounds=6)
    phase.local_steps = 3
    sampler = FixedSampler(20)
    local = exposure_of(phase, 8, sampler, MANY, SEED, protection(**LOCAL))
    secure = exposure_of(phase, 8, sampler, MANY, SEED, protection(**DISTRIBUTED))
    assert local.most == most_rounds_at_worst(phase, sampler) == 6
    assert secure.most == most_rounds(phase, sampler, MANY, SEED) < 6


# What is written down.


def test_the_journal_says_all_that_was_charged(tmp_path: Path) -> None:
    journal = tmp_path / "deep" / "privacy.json"
    keeper = account(journal=journal, **METERED)
    keeper.charge("pull", MANY)
    assert json.loads(journal.read_text()) == keeper.ledger.to_json()
    keeper.charge_metrics("pull")
    assert json.loads(journal.read_text()) == keeper.ledger.to_json()
    assert [path.name for path in journal.parent.iterdir()] == ["privacy.json"]


@pytest.mark.parametrize("secret", [True, False])
def test_what_was_spent_after_the_checkpoint_counts_where_noise_is_fresh(tmp_path: Path, secret: bool) -> None:
    changes: dict[str, Any] = {"randomness": SystemNoise()} if secret else {}
    before = account(journal=tmp_path / "privacy.json", **changes)
    before.charge("pull", MANY)
    saved = json.loads(json.dumps(before.ledger.to_json()))
    assert not account(journal=tmp_path / "privacy.json", **changes).restore(saved)
    before.charge("pull", MANY)
    after = account(journal=tmp_path / "privacy.json", **changes)
    assert after.restore(saved) is secret
    assert after.ledger.releases == (2 if secret else 1)


def test_a_checkpoint_without_a_journal_is_enough(tmp_path: Path) -> None:
    before = account(randomness=SystemNoise())
    before.charge("pull", MANY)
    after = account(journal=tmp_path / "none.json", randomness=SystemNoise())
    assert not after.restore(before.ledger.to_json())
    assert after.ledger.epsilon() == before.ledger.epsilon()


# What a phase asks for.


def test_everybody_takes_part_in_a_phase_over_the_population() -> None:
    phase = Pull(rounds=3)
    phase.participation = Participation.ALL
    asked = exposure_of(phase, 8, PoissonSampler(0.1), MANY, SEED, protection())
    assert asked == Exposure("pull", 3, EVERYONE, 8, 0, 3)


def test_neighbours_of_a_secure_sum_know_who_is_there() -> None:
    secret = exposure_of(Pull(), 8, PoissonSampler(0.1), MANY, SEED, protection())
    known = exposure_of(Pull(), 8, PoissonSampler(0.1), MANY, SEED, protection(**DISTRIBUTED))
    assert (secret.sampling.scheme, known.sampling.scheme) == (Scheme.POISSON, Scheme.KNOWN)


@pytest.mark.parametrize("sampler", [FixedSampler(10), PoissonSampler(0.2), CyclicSampler(4), EVERYBODY])
def test_the_busiest_client_is_counted_ahead(sampler: Sampler) -> None:
    phase = Push(rounds=9)
    drawn = [sampler.sample(MANY, Streams(SEED, "push", r).numpy("cohort"), r) for r in range(1, 10)]
    most = max(sum(client in cohort for cohort in drawn) for client in MANY)
    assert most_rounds(phase, sampler, MANY, SEED) == most
    assert most <= most_rounds_at_worst(phase, sampler)


def test_coins_that_choose_nobody_are_no_reason_to_plan_nothing() -> None:
    asked = exposure_of(Pull(rounds=1), 8, PoissonSampler(1e-9), MANY, SEED, protection(**DISTRIBUTED))
    keeper = account([asked], epsilon=1.0, noise_multiplier=None, **DISTRIBUTED)
    assert keeper.noise_multipliers["pull"] > 1


@pytest.mark.slow
def test_local_noise_follows_from_the_configuration_alone() -> None:
    phase = Pull(rounds=4)
    phase.local_steps = 3
    privacy = protection(**{**LOCAL, "epsilon": 2.0, "noise_multiplier": None})
    noise = local_noise_multipliers(privacy, EVERYBODY, [phase], False)["pull"]
    spent = Ledger(Unit.EXAMPLE, Relation.ADD_OR_REMOVE, 1e-5).epsilon(
        [Entry("x", PoissonGaussianEvent(0.25, noise), 12)]
    )
    assert 0.97 * 2 <= spent <= 2
    assert local_noise_multipliers(privacy, CyclicSampler(4), [phase], False)["pull"] < noise


def test_infinity_is_nothing_that_a_summary_can_hold() -> None:
    assert finite(math.inf) is None
    assert finite(2.5) == 2.5
