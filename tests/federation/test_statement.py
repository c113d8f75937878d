"""What a summary says of a guarantee: all the keys, one sentence, and what is left out."""

from __future__ import annotations

import json
from typing import Any

import pytest

from fedalign.federation.account import Account
from fedalign.federation.directory import ClientDirectory
from fedalign.federation.exposure import exposure_of
from fedalign.federation.sampling import CyclicSampler, FixedSampler, PoissonSampler, Sampler
from fedalign.federation.statement import statement
from fedalign.methods.base import Participation
from fedalign.privacy.adaptive_clipping import AdaptiveClip
from fedalign.privacy.client_level import ClientLevel
from fedalign.privacy.distributed import Skellam
from fedalign.privacy.local import DPSGD
from fedalign.privacy.mechanism import Banded
from fedalign.privacy.metric_release import SummedMetrics, WithheldMetrics
from fedalign.privacy.noise import SystemNoise
from fedalign.privacy.protection import Protection
from fedalign.privacy.rounding import Rounding
from fedalign.report.summary import PRIVACY_KEYS

from .guarded import CLIENTS, EVERYBODY, PLAIN_SUM, SECAGG, SEED, Pull, Push, opened, protection, secure_sum

WITHHELD: dict[str, Any] = {"metrics": WithheldMetrics()}
DISTRIBUTED: dict[str, Any] = {"mechanism": Skellam(Rounding(0.01, 0.6)), "secure": SECAGG, **WITHHELD}
ADAPTIVE = ClientLevel(1.0, {}, {}, 1.0, AdaptiveClip(0.5, 0.2, 0.5))
LOCAL: dict[str, Any] = {**PLAIN_SUM, "local": DPSGD("user", 1.0, 0.25, "loop"), "delta": 1e-5}
KINDS: dict[str, Protection] = {
    "central": protection(),
    "adaptive": protection(clip=ADAPTIVE),
    "banded": protection(mechanism=Banded(2)),
    "distributed": protection(**DISTRIBUTED),
    "central in a secure sum": protection(secure=SECAGG, **WITHHELD),
    "local": protection(**{**LOCAL, "noise_multiplier": 1.0}),
    "secure sum": secure_sum(),
}


def facts(privacy: Protection, sampler: Sampler = EVERYBODY, rounds: int = 2, **changes: Any) -> dict[str, Any]:
    phase = Pull(rounds)
    phase.local_steps = 2
    keeper = opened(privacy, phases=[phase], sampler=sampler, **changes)
    for _ in range(rounds if keeper.account is not None else 0):
        assert keeper.account is not None
        keeper.account.charge("pull", CLIENTS)
    told = keeper.statement()
    assert told is not None
    return told


@pytest.mark.parametrize("kind", KINDS)
def test_every_guarantee_is_stated_with_all_its_terms_and_in_one_sentence(kind: str) -> None:
    told = facts(KINDS[kind], CyclicSampler(2) if kind == "banded" else EVERYBODY)
    assert set(PRIVACY_KEYS) <= set(told)
    assert json.loads(json.dumps(told)) == told
    sentence = told["sentence"]
    assert sentence.endswith(".")
    assert sentence.count(". ") == 0
    if told["epsilon"] is not None:
        assert f"({told['epsilon']:.3g}, {told['delta']:.2g})-differential privacy" in sentence


def test_a_central_guarantee_trusts_the_server_and_a_distributed_one_does_not() -> None:
    assert "but not the server" in facts(KINDS["central"])["sentence"]
    assert facts(KINDS["distributed"])["sentence"].startswith("The server and whoever sees the models")
    assert facts(KINDS["local"])["sentence"].startswith("The server and whoever sees the models")
    assert "trusted with every contribution" in facts(KINDS["central"])["trust"]
    assert "to add their share of the noise" in facts(KINDS["distributed"])["trust"]
    assert "and to add the noise" in facts(KINDS["central in a secure sum"])["trust"]
    assert "to ask nobody more often than planned" in facts(KINDS["local"])["trust"]


def test_units_and_relations_are_said_in_words() -> None:
    assert "everything that one client holds being there or being zeros" in facts(KINDS["central"])["sentence"]
    assert facts(KINDS["central"])["relation"] == "zero_out"
    drawn = facts(KINDS["central"], PoissonSampler(0.5))
    assert "being there or not" in drawn["sentence"] and drawn["relation"] == "add_or_remove"
    assert "everything that one person of one client judged" in facts(KINDS["local"])["sentence"]
    fixed = facts(KINDS["central"], FixedSampler(3))
    assert "being replaced by any other" in fixed["sentence"]
    assert (fixed["relation"], fixed["sampling"], fixed["sampling_rate"]) == ("replace_one", "fixed_size", 0.5)


def test_numbers_are_those_of_the_ledger() -> None:
    keeper = opened(protection(epsilon=9.0), sampler=PoissonSampler(0.5))
    assert keeper.account is not None
    keeper.account.charge("pull", CLIENTS)
    told, ledger = keeper.statement(), keeper.account.ledger
    assert told is not None
    assert told["epsilon"] == ledger.epsilon()
    assert told["epsilon_by_phase"] == {"pull": ledger.epsilon()}
    assert (told["releases"], told["budget"], told["mechanism"], told["sampling"]) == (1, 9.0, "gaussian", "poisson")
    assert told["epsilon_rdp"] >= told["epsilon"]


def test_no_noise_is_no_promise() -> None:
    told = facts(protection(noise_multiplier=0.0))
    assert told["epsilon"] is None
    assert told["sentence"] == "Without noise nothing is promised: epsilon is infinite."


def test_a_secure_sum_promises_no_epsilon() -> None:
    told = facts(KINDS["secure sum"])
    assert all(told[key] is None for key in PRIVACY_KEYS if key != "releases")
    assert told["secure_sum"]
    assert "no client's own contribution" in told["sentence"]


def left_out(told: dict[str, Any], words: str) -> bool:
    return any(words in line for line in told["not_covered"])


def test_what_is_not_covered_is_named() -> None:
    told = facts(KINDS["central"])
    assert left_out(told, "metrics: they are exact")
    assert left_out(told, "metrics=withheld or summed")
    # Sums would tell the server what local noise hides from it.
    assert not left_out(facts(KINDS["local"]), "or summed")
    assert left_out(told, "hyperparameter search")
    assert left_out(told, "whoever knows the run's seed")
    assert left_out(told, "the number of training clients")
    assert not left_out(told, "which clients take part")
    secret = facts(protection(randomness=SystemNoise(), **WITHHELD))
    assert not left_out(secret, "metrics: they are exact")
    assert not left_out(secret, "whoever knows the run's seed")


def test_who_takes_part_is_no_secret_of_a_secure_sum_or_of_local_noise() -> None:
    for kind in ("distributed", "secure sum", "local", "central in a secure sum"):
        assert left_out(facts(KINDS[kind]), "which clients take part in which round"), kind


def test_released_metrics_are_named() -> None:
    summed = facts(protection(metrics=SummedMetrics((), 9.0)), metrics=("train/closeness",), evaluations=2)
    assert (summed["metrics"], summed["released_metrics"]) == ("summed", ["train/closeness"])
    assert facts(KINDS["central"])["metrics"] == "open"
    assert facts(KINDS["secure sum"])["metrics"] == "withheld"


def test_clipping_is_stated() -> None:
    assert facts(KINDS["secure sum"])["clipping"] is None
    assert facts(KINDS["local"])["clipping"] == {"bound": 1.0, "phases": {}, "of": "gradient of one user"}
    adaptive = facts(KINDS["adaptive"])["clipping"]
    assert adaptive["adaptive"]
    assert adaptive["last"] == {}
    assert facts(KINDS["central"])["clipping"]["last"] is None


def staged(unit: str | None, disjoint: bool) -> dict[str, Any]:
    """Return what is said of two phases of different stages, over clients or units of clients."""
    privacy = protection(epsilon=4.0, noise_multiplier=None)
    if unit is not None:
        privacy = protection(**{**LOCAL, "noise_multiplier": 1.0, "local": DPSGD(unit, 1.0, 0.25, "loop")})  # type: ignore[arg-type]
    phases = [Pull(2), Push(3)]
    for phase, stage in zip(phases, ("sft", "rl"), strict=True):
        phase.stage, phase.local_steps = stage, 2
    # Where units are on clients, every client holds all stages.
    held = [(), ()] if unit is not None else [("sft",), ("rl",)] if disjoint else [("sft", "rl"), ("rl",)]
    stages: dict[str, tuple[str, ...]] = {client: held[place % 2] for place, client in enumerate(CLIENTS)}
    directory = ClientDirectory(list(CLIENTS), [], {}, stages)
    exposures = [exposure_of(p, 8, EVERYBODY, directory.training_for(p.stage), SEED, privacy, disjoint) for p in phases]
    account = Account(privacy, exposures, 0, 0, None, len(CLIENTS))
    for phase in phases:
        for _ in range(phase.rounds):
            account.charge(phase.name, directory.training_for(phase.stage))
    return statement(privacy, account, (), {})


@pytest.mark.parametrize("unit", [None, "example", "user"])
def test_it_is_said_how_stages_come_together(unit: str | None) -> None:
    apart, together = staged(unit, True), staged(unit, False)
    assert (apart["composition"], together["composition"]) == ("parallel", "sequential")
    for told in (apart, together):
        assert set(told["noise_multipliers"]) == {"pull", "push"}
        assert told["noise_multiplier"] == min(told["noise_multipliers"].values())
        assert set(told["epsilon_by_phase"]) == {"pull", "push"}
    assert apart["epsilon"] == pytest.approx(max(apart["epsilon_by_phase"].values()))
    assert together["epsilon"] > 1.02 * max(together["epsilon_by_phase"].values())
    more = " ".join(sorted(set(apart["not_covered"]) - set(together["not_covered"])))
    expected = ["holds data for which stage"] if unit is None else [f"same {unit} under another", "moves nobody else"]
    assert all(words in more for words in expected)
    assert "without the data" not in more


def test_what_is_taken_as_public_is_that_of_the_data_at_hand() -> None:
    assert not left_out(facts(KINDS["central"]), "which questions a survey asks")
    keeper = opened(protection())
    told = statement(keeper.privacy, keeper.account, (), {}, ["which questions a survey asks"])
    assert left_out(told, "which questions a survey asks: taken as public")


def test_what_rewards_and_judges_learnt_before_is_never_covered() -> None:
    for kind in ("central", "local"):
        assert left_out(facts(KINDS[kind]), "rewards and judges"), kind


def test_rates_are_said_by_phase() -> None:
    local = DPSGD("example", 1.0, 0.25, "loop", rates={"pull": 0.5}, clips={"pull": 2.0})
    told = facts(protection(**{**LOCAL, "local": local, "noise_multiplier": 1.0}))
    assert told["sampling_rates"] == {"pull": 0.5}
    assert told["clipping"] == {"bound": 1.0, "phases": {"pull": 2.0}, "of": "gradient of one example"}
    assert facts(KINDS["central"], PoissonSampler(0.5))["sampling_rates"] == {"pull": 0.5}


@pytest.mark.parametrize("first", [True, False])
def test_a_relation_must_hold_for_every_phase(first: bool) -> None:
    """Where one phase asks all, whoever is gone is zeros there, in whatever order the phases come."""
    phases = [Pull(2), Push(2)]
    phases[not first].participation = Participation.ALL
    told = opened(protection(), phases=phases, sampler=PoissonSampler(0.5)).statement()
    assert told is not None
    assert told["relation"] == "zero_out"


def test_a_phase_alone_is_one_after_another() -> None:
    told = facts(protection())
    assert (told["composition"], told["noise_multipliers"]) == ("sequential", {"pull": 1.0})
