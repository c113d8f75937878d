"""Keeping a guarantee: noise of the right size, charged before it is added, over a denominator that tells nothing."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message
from flwr.serverapp import Grid

from fedalign.contribution import Contribution, State, mean_delta, total
from fedalign.errors import RunFailed
from fedalign.federation.checkpoint import NEWEST, Checkpoint
from fedalign.federation.custodian import Custodian, extra_names
from fedalign.federation.messages import REPORT, NodeReport, Terms
from fedalign.federation.records import encode_contribution
from fedalign.federation.sampling import CyclicSampler, FixedSampler, PoissonSampler
from fedalign.federation.secure_grid import SUM, SecureSumGrid
from fedalign.federation.shield import NORM_BIT, shield
from fedalign.metrics.record import MetricSum, encode
from fedalign.privacy.adaptive_clipping import AdaptiveClip, update_noise_multiplier
from fedalign.privacy.client_level import ClientLevel
from fedalign.privacy.distributed import Skellam
from fedalign.privacy.mechanism import Banded
from fedalign.privacy.metric_release import SummedMetrics, WithheldMetrics
from fedalign.privacy.noise import SystemNoise
from fedalign.privacy.protection import Protection
from fedalign.privacy.rounding import Rounding
from fedalign.rng import Streams

from .guarded import (
    CLIENTS,
    SECAGG,
    Guarded,
    Killed,
    Lossy,
    Pull,
    Push,
    killed_at,
    opened,
    protection,
    secure_sum,
    unit,
)

SIZE = 100_000
STATE: State = {"w": torch.zeros(SIZE, dtype=torch.float64)}
WIDE = Pull(size=SIZE)
WITHHELD: dict[str, Any] = {"metrics": WithheldMetrics()}
SKELLAM: dict[str, Any] = {"mechanism": Skellam(Rounding(0.01, 0.6)), "secure": SECAGG, **WITHHELD}
ADAPTIVE = ClientLevel(0.5, {}, {}, 1.0, AdaptiveClip(0.5, 0.2, 0.6))


def clipped(keeper: Custodian, clients: Any = CLIENTS, length: float = 3.0, size: int = SIZE) -> Contribution:
    """Return the total of what clients send under the keeper's terms, each of the given norm before clipping."""
    phase = Pull(size=size)
    state = {"w": torch.zeros(size, dtype=torch.float64)}
    terms, template = keeper.training_terms(phase, state, list(clients)), phase.template(state)
    assert template is not None
    told = [Contribution({"delta/w": torch.from_numpy(length * unit(c, size))}, {"weight": 1.0}) for c in clients]
    return total([shield(each, template, keeper.privacy, terms).to_contribution(template) for each in told])


def noise_of(keeper: Custodian, number: int = 1, clients: Any = CLIENTS, **more: Any) -> np.ndarray:
    """Return the noise of a round in its mean."""
    summed = clipped(keeper, clients, **more)
    released = keeper.release(WIDE, STATE, number, list(clients), summed)
    mean = summed.tensors["delta/w"].double() / len(CLIENTS) if clients else torch.zeros(SIZE)
    return (mean_delta(released)["w"] - mean).numpy()


# The noise.


@pytest.mark.parametrize(("bound", "noise"), [(1.0, 1.0), (0.25, 3.0)])
def test_the_released_mean_has_noise_of_bound_times_multiplier_over_the_cohort(bound: float, noise: float) -> None:
    keeper = opened(protection(noise_multiplier=noise, clip=ClientLevel(bound, {}, {}, 1.0, None)), phases=[WIDE])
    drawn = noise_of(keeper)
    assert drawn.dtype == np.float64
    assert drawn.std() == pytest.approx(noise * bound / len(CLIENTS), rel=0.02)
    assert abs(drawn.mean()) < 4.5 * drawn.std() / math.sqrt(SIZE)


def test_noise_differs_between_rounds_phases_and_runs_of_the_system() -> None:
    keeper = opened(protection(), phases=[WIDE])
    seeded = [noise_of(keeper, number) for number in (1, 2)]
    systems = [noise_of(opened(protection(randomness=SystemNoise()), phases=[WIDE])) for _ in range(2)]
    rows = np.array([*seeded, *systems])
    assert np.abs(np.corrcoef(rows) - np.eye(4)).max() < 4.5 / math.sqrt(SIZE)
    np.testing.assert_array_equal(noise_of(opened(protection(), phases=[WIDE])), seeded[0])


@pytest.mark.parametrize("there", [CLIENTS, CLIENTS[:2], CLIENTS[:1]])
def test_clients_that_stay_away_leave_noise_and_denominator_as_they_are(there: tuple[str, ...]) -> None:
    keeper = opened(protection(), phases=[WIDE])
    summed = clipped(keeper, there)
    released = keeper.release(WIDE, STATE, 1, list(CLIENTS), summed)
    assert released.scalars["weight"] == len(CLIENTS)
    noise = released.tensors["delta/w"].double() - summed.tensors["delta/w"].double()
    assert float(noise.std()) == pytest.approx(1.0, rel=0.02)


@pytest.mark.parametrize("drawn", [[], list(CLIENTS[:1]), list(CLIENTS)])
def test_a_random_cohort_is_divided_by_its_expected_size_and_charged_even_if_empty(drawn: list[str]) -> None:
    keeper = opened(protection(), phases=[WIDE], sampler=PoissonSampler(0.5))
    summed = clipped(keeper, drawn) if drawn else Contribution()
    assert keeper.releases_always
    released = keeper.release(WIDE, STATE, 1, drawn, summed)
    assert released.scalars["weight"] == 3.0
    assert keeper.account is not None
    assert keeper.account.ledger.releases == 1
    noise = released.tensors["delta/w"] - summed.tensors.get("delta/w", torch.zeros(SIZE))
    assert float(noise.std()) == pytest.approx(1.0, rel=0.02)


def test_scales_are_taken_off_after_the_noise() -> None:
    scaled = ClientLevel(1.0, {}, {"delta/w": 4.0}, 1.0, None)
    keeper = opened(protection(clip=scaled), phases=[WIDE])
    assert noise_scale(keeper, 0.0) == pytest.approx(0.25, rel=0.02)
    quiet = opened(protection(clip=scaled, noise_multiplier=0.0), phases=[WIDE])
    summed = clipped(quiet, "a", 0.1)
    released = quiet.release(WIDE, STATE, 1, list(CLIENTS), summed)
    np.testing.assert_allclose(released.tensors["delta/w"], 0.1 * unit("a", SIZE), atol=1e-8)


def noise_scale(keeper: Custodian, length: float) -> float:
    summed = clipped(keeper, length=length)
    return float(keeper.release(WIDE, STATE, 1, list(CLIENTS), summed).tensors["delta/w"].std())


def test_phases_have_their_own_bounds() -> None:
    keeper = opened(protection(clip=ClientLevel(1.0, {"push": 9.0}, {}, 1.0, None)), phases=[Pull(), Push()])
    state = {"w": torch.zeros(8)}
    assert keeper.training_terms(Pull(), state, []).bound == 1.0
    assert keeper.training_terms(Push(), state, []).bound == 9.0


# A bound that adapts.


def test_an_adaptive_round_clips_and_adds_noise_with_the_same_bound_and_moves_it_afterwards() -> None:
    keeper = opened(protection(clip=ADAPTIVE), phases=[WIDE])
    expected = update_noise_multiplier(1.0, 0.6 * len(CLIENTS))
    assert expected > 1
    for number in range(1, 4):
        bound = keeper.training_terms(WIDE, STATE, []).bound
        summed = clipped(keeper, length=5.0)
        released = keeper.release(WIDE, STATE, number, list(CLIENTS), summed)
        noise = released.tensors["delta/w"].double() - summed.tensors["delta/w"].double()
        assert float(noise.std()) == pytest.approx(expected * bound, rel=0.02)
        assert keeper.training_terms(WIDE, STATE, []).bound != bound


@pytest.mark.parametrize(("length", "sign"), [(5.0, 1), (0.01, -1)])
def test_a_bound_follows_the_norms(length: float, sign: int) -> None:
    """All clipped: it grows. None clipped: it shrinks."""
    quiet = ClientLevel(0.5, {}, {}, 1.0, AdaptiveClip(0.5, 0.2, 1e-6))
    keeper = opened(protection(clip=quiet, noise_multiplier=0.0), phases=[Pull()])
    path = []
    for number in range(1, 6):
        path.append(keeper.training_terms(Pull(), {"w": torch.zeros(8)}, []).bound)
        keeper.release(Pull(), {"w": torch.zeros(8)}, number, CLIENTS, clipped(keeper, length=length, size=8))
    assert path == pytest.approx([0.5 * math.exp(sign * 0.1 * n) for n in range(5)])


def test_the_count_of_norms_within_is_noisy_and_does_not_share_its_noise() -> None:
    bounds = []
    for number in range(1, 9):
        keeper = opened(protection(clip=ADAPTIVE), phases=[Pull()])
        half = Contribution({"delta/w": torch.zeros(8)}, {"weight": 6.0, NORM_BIT: 0.0})
        keeper.release(Pull(), {"w": torch.zeros(8)}, number, CLIENTS, half)
        bounds.append(keeper.training_terms(Pull(), {"w": torch.zeros(8)}, []).bound)
    assert len(set(bounds)) > 4


# What the server refuses.


def node_sum(
    vector: Any = (0.6, 0.8, 0, 0, 0, 0, 0, 0), dtype: torch.dtype = torch.float32, **scalars: float
) -> Contribution:
    return Contribution({"delta/w": torch.tensor(vector, dtype=dtype)}, {"weight": 1.0, **scalars})


E0 = (1.0, 0, 0, 0, 0, 0, 0, 0)
REFUSED = {
    "too long": (node_sum(tuple(2.1 * x for x in E0)), 2, "a sum of norm 2.1 over 2 clients"),
    "huge": (node_sum(tuple(1e30 * x for x in E0)), 2, "a sum of norm 1e"),
    "huge in float64": (node_sum(tuple(1e300 * x for x in E0), torch.float64), 2, "a sum of norm"),
    "NaN": (node_sum((math.nan,) * 8), 1, "NaN or Inf"),
    "Inf": (node_sum((math.inf,) * 8), 1, "NaN or Inf"),
    "wrong shape": (node_sum((1.0, 0.0)), 1, "shape"),
    "extra tensor": (Contribution({"delta/v": torch.ones(8)}, {"weight": 1.0}), 1, "no such sum"),
    "a forged total": (Contribution({SUM: torch.ones(8)}, {"weight": 1.0}), 1, "sum: no such sum"),
    "huge weight": (node_sum(weight=1e6), 2, "a weight of 1e\\+06 over 2 clients"),
    "negative weight": (node_sum(weight=-1.0), 2, "weight: is -1"),
    "NaN weight": (node_sum(weight=math.nan), 2, "weight: is nan"),
    "norm bits": (node_sum(**{NORM_BIT: 1.5}), 2, "norm bits of 1.5 over 2 clients"),
    "negative norm bits": (node_sum(**{NORM_BIT: -9.0}), 2, "norm bits of -9 over 2 clients"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_node_cannot_add_what_its_clients_could_not(kind: str) -> None:
    contribution, clients, reason = REFUSED[kind]
    keeper = opened(protection())
    with pytest.raises(ValueError, match=reason):
        keeper.inspect(Pull(), {"w": torch.zeros(8)}, Terms(bound=1.0), clients, contribution)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_honest_sums_pass_in_every_type(dtype: torch.dtype) -> None:
    keeper = opened(protection())
    state = {"w": torch.zeros(8)}
    keeper.inspect(Pull(), state, Terms(bound=1.0), 1, node_sum((0.6, 0.79, 0, 0, 0, 0, 0, 0), dtype))
    keeper.inspect(Pull(), state, Terms(bound=1.0), 1, node_sum((0.0,) * 8, dtype))
    keeper.inspect(Pull(), state, Terms(bound=1.0), 3, node_sum((3.0, 0, 0, 0, 0, 0, 0, 0), dtype, weight=3.0))


def test_what_a_secure_sum_adds_up_is_not_looked_into() -> None:
    opened(secure_sum()).inspect(Pull(), {"w": torch.zeros(8)}, Terms(), 3, Contribution({SUM: torch.ones(9)}))


def test_a_forged_total_is_nothing_to_release() -> None:
    keeper = opened(protection(noise_multiplier=0.0))
    forged = Contribution({SUM: torch.full((8,), 1e6)}, {"weight": 1.0})
    released = keeper.release(Pull(), {"w": torch.zeros(8)}, 1, CLIENTS, forged)
    assert not released.tensors["delta/w"].any()


WAYS_TO_CHEAT: dict[str, Any] = {
    "weight": lambda told: told.scale(1e6),
    "length": lambda told: Contribution({k: 1e30 * t for k, t in told.tensors.items()}, told.scalars),
    "weight alone": lambda told: Contribution(told.tensors, {**told.scalars, "weight": 1e6}),
    "no weight": lambda told: Contribution(told.tensors, {**told.scalars, "weight": 0.0}),
    "fp16": lambda told: Contribution({k: t.half() for k, t in told.tensors.items()}, told.scalars),
    "NaN": lambda told: Contribution({k: t * math.nan for k, t in told.tensors.items()}, told.scalars),
    "wrong shape": lambda told: Contribution({k: t[:2] for k, t in told.tensors.items()}, told.scalars),
    "extra tensor": lambda told: Contribution({**told.tensors, "delta/v": torch.ones(3)}, told.scalars),
    "negative weight": lambda told: told.scale(-1.0),
}
DROPPED = {"NaN", "wrong shape", "extra tensor", "negative weight"}


@pytest.mark.parametrize("way", WAYS_TO_CHEAT)
@pytest.mark.parametrize("separate", [False, True])
def test_one_client_moves_the_mean_by_the_bound_over_the_cohort_whatever_it_tells(
    tmp_path: Path, way: str, separate: bool
) -> None:
    def tell(client: str, told: Contribution) -> Contribution:
        return WAYS_TO_CHEAT[way](told) if client == "a" else told

    quiet = protection(noise_multiplier=0.0)
    cheated = Guarded(tmp_path / "cheated", quiet, [Pull(1, tell=tell)], separate=separate)
    without = Guarded(tmp_path / "without", quiet, [Pull(1, tell=silent)], separate=separate)
    one, other = (world.run().artefacts["pull"]["w"] for world in (cheated, without))
    assert torch.isfinite(one).all()
    assert float((one - other).norm()) <= 1 / len(CLIENTS) * (1 + 1e-6)
    failed = {m.value for r in cheated.listener.rounds for m in r.metrics if m.name == "clients_failed"}
    assert failed == {1.0 if way in DROPPED else 0.0}


def silent(client: str, told: Contribution) -> Contribution:
    return Contribution({}, told.scalars) if client == "a" else told


# Charging first.


def test_the_charge_is_written_down_before_anything_is_released(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = tmp_path / "privacy.json"
    keeper = opened(protection(), journal=journal)
    seen = []

    def dies(*arguments: Any) -> Any:
        seen.append(json.loads(journal.read_text()))
        raise Killed

    monkeypatch.setattr(type(keeper.privacy.mechanism), "release", dies)
    with pytest.raises(Killed):
        keeper.release(Pull(), {"w": torch.zeros(8)}, 1, CLIENTS, clipped(keeper, size=8))
    assert keeper.account is not None
    assert seen == [keeper.account.ledger.to_json()]
    assert keeper.account.ledger.releases == 1


def test_what_clients_release_is_charged_when_they_are_asked(tmp_path: Path) -> None:
    keeper = opened(protection(**SKELLAM), journal=tmp_path / "privacy.json")
    assert keeper.account is not None
    keeper.announce(Pull(), CLIENTS)
    assert keeper.account.ledger.releases == 1
    released = Contribution({SUM: torch.zeros(8)})
    keeper.release(Pull(), {"w": torch.zeros(8)}, 1, CLIENTS, released)
    assert keeper.account.ledger.releases == 1
    central = opened(protection())
    central.announce(Pull(), CLIENTS)
    assert central.account is not None
    assert central.account.ledger.releases == 0


def test_cohorts_are_secret_where_secrecy_is_counted_on() -> None:
    streams = Streams(5, "pull", 1)

    def draws(privacy: Protection, sampler: Any) -> set[float]:
        return {opened(privacy, sampler=sampler).cohort_generator(streams).random() for _ in range(2)}

    system = {"randomness": SystemNoise()}
    assert len(draws(protection(**system), PoissonSampler(0.5))) == 2
    assert len(draws(protection(**system), FixedSampler(3))) == 2
    assert len(draws(protection(), PoissonSampler(0.5))) == 1
    run_stream = {streams.numpy("cohort").random()}
    assert draws(protection(**system, mechanism=Banded(2)), CyclicSampler(2)) == run_stream
    assert draws(protection(**system, **SKELLAM), PoissonSampler(0.5)) == run_stream
    assert draws(secure_sum(**system), PoissonSampler(0.5)) == run_stream


# Metrics.

NAMES = ("a", "b")


def evaluated(n: float = 6.0) -> Contribution:
    return Contribution(scalars=encode([MetricSum("a", "all", n / 2, n), MetricSum("b", "all", 0.0, 0.0)]))


def test_open_metrics_pass_and_withheld_ones_are_not_asked_for() -> None:
    assert opened(protection()).release_metrics(Pull(), 1, evaluated()) == evaluated()
    keeper = opened(protection(**WITHHELD))
    assert keeper.evaluation_terms(Pull(), CLIENTS) is None
    assert not keeper.by_group


def test_summed_metrics_have_noise_and_are_charged() -> None:
    keeper = opened(protection(metrics=SummedMetrics((), 2.0)), metrics=NAMES, evaluations=9)
    totals = []
    for number in range(300):
        released = keeper.release_metrics(Pull(), number, evaluated(1000.0))
        totals.append(released.scalars["metric|a|all|sum"])
    bound = math.sqrt(4)
    assert np.std(totals) == pytest.approx(2.0 * bound, rel=0.15)
    assert np.mean(totals) == pytest.approx(500, abs=4.5 * 2 * bound / math.sqrt(300))
    assert keeper.account is not None
    assert keeper.account.ledger.releases == 300


def test_a_metric_that_nobody_has_or_that_noise_hides_is_left_out() -> None:
    keeper = opened(protection(metrics=SummedMetrics((), 2.0)), metrics=NAMES, evaluations=1)
    assert set(keeper.release_metrics(Pull(), 1, evaluated(1000.0)).scalars) == {"metric|a|all|sum", "metric|a|all|n"}
    assert keeper.release_metrics(Pull(), 2, evaluated(0.0)).scalars == {}
    exact = opened(secure_sum(metrics=SummedMetrics((), 0.0)), metrics=NAMES)
    total_ = Contribution({SUM: torch.tensor([3.0, 6.0, 0.0, 0.0])})
    assert exact.release_metrics(Pull(), 1, total_).scalars == {"metric|a|all|sum": 3.0, "metric|a|all|n": 6.0}


def test_metrics_that_are_not_affordable_are_not_asked_for() -> None:
    privacy = protection(metrics=SummedMetrics((), 2.0), epsilon=3.0)
    keeper = opened(privacy, metrics=NAMES, evaluations=1)
    asked = 0
    while keeper.evaluation_terms(Pull(), CLIENTS) is not None and asked < 100:
        keeper.release_metrics(Pull(), asked, evaluated())
        asked += 1
    assert 0 < asked < 100
    assert keeper.epsilon is not None
    assert keeper.epsilon <= 3.0


def test_an_evaluation_that_tells_none_of_the_metrics_is_not_asked_for() -> None:
    """It would cost budget, and nothing could be shown."""
    keeper = opened(protection(metrics=SummedMetrics((), 2.0)), metrics=NAMES, evaluations=1)
    phase = Pull()
    for told, asked in ((None, True), (frozenset({NAMES[0], "x"}), True), (frozenset({"x"}), False)):
        phase.bounded_metrics = told
        assert (keeper.evaluation_terms(phase, CLIENTS) is not None) == asked
    exact = opened(secure_sum(metrics=SummedMetrics((), 0.0)), metrics=NAMES)
    assert exact.evaluation_terms(phase, CLIENTS) is not None
    assert opened(protection()).evaluation_terms(phase, CLIENTS) is not None


def test_only_metrics_that_are_accounted_for_choose() -> None:
    assert not opened(protection()).lets_choose
    assert opened(secure_sum()).lets_choose
    assert opened(protection(metrics=SummedMetrics((), 9.0)), metrics=NAMES, evaluations=1).lets_choose


# Secure sums.


def test_a_secure_sum_is_a_layer_and_nothing_else_is() -> None:
    grid: Any = object()
    assert opened(protection()).layer(grid) is grid
    assert isinstance(opened(secure_sum()).layer(grid), SecureSumGrid)


def test_a_secure_sum_carries_what_the_guarantee_needs_and_no_more() -> None:
    assert extra_names(secure_sum()) == ("weight",)
    assert extra_names(protection()) == ()
    assert extra_names(protection(clip=ADAPTIVE)) == (NORM_BIT,)
    state = {"w": torch.zeros(8)}
    terms = opened(secure_sum()).training_terms(Pull(), state, CLIENTS)
    assert terms == Terms(0.0, 0.0, 6, 9)
    assert opened(protection(**SKELLAM)).training_terms(Pull(), state, CLIENTS) == Terms(1.0, 1.0, 6, 8)


def test_the_size_of_a_random_cohort_is_not_told_to_clients() -> None:
    assert opened(protection()).training_terms(Pull(), {"w": torch.zeros(8)}, CLIENTS).cohort == 0


def test_an_exact_sum_keeps_its_own_weight() -> None:
    summed = Contribution({SUM: torch.tensor([1.0] * 8 + [7.0], dtype=torch.float64)})
    released = opened(secure_sum()).release(Pull(), {"w": torch.zeros(8)}, 1, CLIENTS, summed)
    assert released.scalars == {"weight": 7.0}
    assert released.tensors["delta/w"].tolist() == [1.0] * 8


# Going on.


def test_a_checkpoint_keeps_ledger_bounds_and_noise() -> None:
    keeper = opened(protection(clip=ADAPTIVE))
    keeper.release(Pull(), {"w": torch.zeros(8)}, 1, CLIENTS, clipped(keeper, size=8))
    facts = json.loads(json.dumps(keeper.facts()))
    again = opened(protection(clip=ADAPTIVE))
    again.restore(facts, {})
    assert again.facts() == keeper.facts()
    assert again.epsilon == keeper.epsilon
    assert again.training_terms(Pull(), {"w": torch.zeros(8)}, []) == keeper.training_terms(
        Pull(), {"w": torch.zeros(8)}, []
    )


def banded_run(keeper: Custodian, rounds: range) -> list[np.ndarray]:
    state = {"w": torch.zeros(8)}
    empty = Contribution({"delta/w": torch.zeros(8, dtype=torch.float64)}, {"weight": 3.0})
    return [keeper.release(Pull(9), state, n, CLIENTS[:3], empty).tensors["delta/w"].numpy() for n in rounds]


def test_banded_noise_goes_on_where_it_was() -> None:
    def begin() -> Custodian:
        return opened(protection(mechanism=Banded(2)), phases=[Pull(9)], sampler=CyclicSampler(2))

    straight = banded_run(begin(), range(1, 7))
    first = begin()
    banded_run(first, range(1, 4))
    second, forgetful = begin(), begin()
    second.restore(json.loads(json.dumps(first.facts())), first.tensors())
    forgetful.restore(json.loads(json.dumps(first.facts())), {})
    np.testing.assert_allclose(banded_run(second, range(4, 7)), straight[3:], atol=1e-12)
    assert np.abs(np.array(banded_run(forgetful, range(4, 7))) - straight[3:]).max() > 0.1


def test_banded_noise_that_was_seen_is_not_taken_back_twice(tmp_path: Path) -> None:
    """Rounds after the checkpoint have used it; a second series of rounds begins with noise of its own."""
    privacy = protection(mechanism=Banded(2), randomness=SystemNoise())

    def begin() -> Custodian:
        return opened(privacy, phases=[Pull(9)], sampler=CyclicSampler(2), journal=tmp_path / "privacy.json")

    first = begin()
    banded_run(first, range(1, 4))
    facts, noise = json.loads(json.dumps(first.facts())), first.tensors()
    on_time = begin()
    on_time.restore(facts, noise)
    assert on_time.tensors().keys() == {"pull"}
    banded_run(first, range(4, 5))
    late = begin()
    late.restore(facts, noise)
    assert late.tensors() == {}
    assert late.epsilon == first.epsilon


RESUMED: dict[str, Protection] = {
    "central": protection(),
    "adaptive": protection(clip=ADAPTIVE),
    "banded": protection(mechanism=Banded(2)),
    "secure sum": secure_sum(),
    "distributed": protection(**SKELLAM),
    "metrics": protection(metrics=SummedMetrics((), 3.0)),
}


@pytest.mark.parametrize("kind", RESUMED)
def test_a_run_that_goes_on_ends_as_if_it_had_never_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def world(name: str) -> Guarded:
        sampler = CyclicSampler(2) if kind == "banded" else FixedSampler(4)
        phases = [Pull(4), Push(3)]
        return Guarded(
            tmp_path / name, RESUMED[kind], phases, sampler, metrics=("train/closeness",), checkpoint_every=2
        )

    straight, killed = world("straight"), world("killed")
    expected = straight.run()
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Custodian, "release", killed_at(4))
        killed.run()
    resumed = killed.run(resume=True)
    for name in ("pull", "push"):
        torch.testing.assert_close(resumed.artefacts[name]["w"], expected.artefacts[name]["w"], rtol=0, atol=1e-12)
    assert resumed.privacy == expected.privacy


def test_rounds_that_are_run_again_with_fresh_noise_are_charged_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    privacy = protection(randomness=SystemNoise(), noise_multiplier=4.0)
    world = Guarded(tmp_path, privacy, [Pull(5)], checkpoint_every=2)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Custodian, "release_metrics", killed_at(3, "release_metrics"))
        world.run()
    resumed = world.run(resume=True)
    assert resumed.privacy is not None
    assert resumed.privacy["releases"] == 6
    assert Checkpoint.load(tmp_path, NEWEST, "toy").round == 5


def test_a_run_that_has_no_budget_left_on_its_return_is_evaluated_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    privacy = protection(randomness=SystemNoise(), noise_multiplier=None, epsilon=2.0)
    world = Guarded(tmp_path, privacy, [Pull(4)], checkpoint_every=2, evaluate_every=2)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Custodian, "release_metrics", killed_at(4, "release_metrics"))
        world.run()
    world.listener.rounds.clear()
    resumed = world.run(resume=True)
    assert resumed.privacy is not None
    assert resumed.privacy["epsilon"] <= 2.0
    assert resumed.privacy["stopped_after"] == {"pull": 2}
    assert world.listener.scopes("train/closeness") == [("pull", 2, "test")]


# Budgets.


def test_a_run_ends_before_the_round_that_would_exceed_its_budget(tmp_path: Path) -> None:
    world = Guarded(tmp_path, protection(epsilon=4.0, noise_multiplier=2.0), [Pull(50)], evaluate_every=100)
    outcome = world.run()
    assert outcome.privacy is not None
    rounds = int(outcome.counters["rounds"])
    assert 0 < rounds < 50
    assert outcome.privacy["stopped_after"] == {"pull": rounds}
    assert outcome.privacy["epsilon"] <= 4.0
    assert world.listener.scopes("train/closeness") == [("pull", 0, "eval"), ("pull", rounds, "test")]
    assert Checkpoint.load(tmp_path, NEWEST, "toy").round == rounds


def test_a_phase_that_gets_no_round_is_evaluated_as_the_end(tmp_path: Path) -> None:
    world = Guarded(tmp_path, protection(epsilon=4.0, noise_multiplier=2.0), [Pull(50), Push(2)], evaluate_every=100)
    outcome = world.run()
    assert outcome.privacy is not None
    assert outcome.privacy["stopped_after"]["push"] == 0
    assert world.listener.scopes("train/closeness")[-1] == ("push", 0, "test")


def test_metrics_are_within_the_budget_of_a_run_that_ends_early(tmp_path: Path) -> None:
    privacy = protection(epsilon=2.0, noise_multiplier=2.0, metrics=SummedMetrics((), 8.0))
    outcome = Guarded(tmp_path, privacy, [Pull(9)], evaluate_every=3, metrics=("train/closeness",)).run()
    assert outcome.privacy is not None
    assert outcome.privacy["stopped_after"] is not None
    assert outcome.privacy["epsilon"] <= 4.0
    assert "metrics/pull" in outcome.privacy["epsilon_by_phase"]


def test_everybody_failing_is_a_failed_run_under_a_guarantee_too(tmp_path: Path) -> None:
    broken = Pull(tell=lambda client, told: told.scale(math.nan))
    with pytest.raises(RunFailed, match="every client failed"):
        Guarded(tmp_path, protection(), [broken]).run()


def test_an_empty_random_cohort_ends_in_a_release_of_noise(tmp_path: Path) -> None:
    world = Guarded(tmp_path, protection(), [Pull(2)], PoissonSampler(1e-9), evaluate_every=9)
    outcome = world.run()
    assert outcome.privacy is not None
    assert outcome.privacy["releases"] == 2
    assert world.phases[0].trained == []
    assert outcome.artefacts["pull"]["w"].abs().min() > 0
    exact = Guarded(tmp_path / "exact", secure_sum(), [Pull(2)], PoissonSampler(1e-9), evaluate_every=9).run()
    assert not exact.artefacts["pull"]["w"].any()


def test_a_secure_run_of_a_plain_sum_has_no_account() -> None:
    keeper = opened(secure_sum())
    assert keeper.account is None
    assert keeper.epsilon is None
    assert keeper.affords(Pull(), {}, 1, CLIENTS)


class Boastful(Lossy):
    """Lets the first node report what it likes beside a contribution that is long enough for it."""

    def __init__(self, grid: Grid, clients: tuple[str, ...]) -> None:
        super().__init__(grid)
        self.clients = clients

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> list[Message]:
        replies = super().send_and_receive(messages, timeout=timeout)
        for reply in replies:
            if (reply.metadata.message_type, reply.metadata.src_node_id) == ("train", 100):
                told = Contribution({"delta/w": torch.full((8,), 2.0)}, {"weight": 1.0})
                content = encode_contribution(told)
                content[REPORT] = NodeReport(self.clients, 0.0, 0).to_record()
                reply.content = content
        return replies


@pytest.mark.parametrize("claimed", [CLIENTS, ("a",) * 6, ("nobody",), ("a", "b")])
def test_a_node_cannot_make_room_by_speaking_for_more_clients_than_it_was_asked_for(
    tmp_path: Path, claimed: tuple[str, ...]
) -> None:
    quiet = protection(noise_multiplier=0.0)
    world = Guarded(tmp_path / "one", quiet, [Pull(1)], separate=True, wrap=lambda grid: Boastful(grid, claimed))
    without = Guarded(tmp_path / "two", quiet, [Pull(1, tell=silent)], separate=True)
    one, other = (each.run().artefacts["pull"]["w"] for each in (world, without))
    torch.testing.assert_close(one, other)
