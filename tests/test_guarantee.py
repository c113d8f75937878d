"""Guarantees made of a configuration: what is refused, in one line and before anything is written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fedalign.config import RunConfig, parse, resolve, to_json
from fedalign.contribution import State
from fedalign.data.federated import Role
from fedalign.errors import UserError
from fedalign.federation.custodian import Custodian
from fedalign.federation.custody import NoCustody
from fedalign.federation.directory import ClientDirectory
from fedalign.guarantee import (
    account_of,
    check_aggregation,
    check_guarantee,
    custody_of,
    local_privacy,
    metric_names,
    refuse_open_metrics,
    taken_as_public,
)
from fedalign.methods.base import Artefacts, Participation
from fedalign.privacy.delta import default_delta
from fedalign.rng import Streams
from fedalign.run import start
from fedalign.site import open_site, phases_of
from tests.cases import mostly_slow

from .federation.guarded import Pull
from .tiny import DATA, TINY

PAIRS = (
    "data=synthetic_pairs",
    "data.annotators=8",
    "data.train_judgments=10",
    "data.test_judgments=3",
    "encoder.size=16",
    "partition.unseen=2",
)
CLIENTS = ClientDirectory(["a", "b", "c", "d"], [], {})


def configured(*overrides: str) -> tuple[RunConfig, Any]:
    resolved = resolve([*TINY, *overrides])
    config = parse(resolved)
    return config, open_site(to_json(resolved), {}).phases


REFUSED = {
    "each reply under central": (
        "method=fedvpa privacy=central",
        "method=fedvpa: in phase .* must see each client's reply",
    ),
    "compression in a secure sum": ("privacy=secure_sum compression=int8", "compression: a secure sum adds up words"),
    "compression under distributed": ("privacy=distributed compression=topk", "set compression=none"),
    "compression under central with a secure sum": (
        "privacy=central privacy/secure=secagg privacy/metrics=withheld compression=bf16",
        "set compression=none",
    ),
    "first answers with coins": (
        "privacy=central federation/sampler=poisson population=phones population.over_selection=1.3",
        r"population\.over_selection=1\.3: .*one client more pushes another out",
    ),
    "fixed cohorts of those there": (
        "privacy=central federation/sampler=fixed federation.sampler.size=2 "
        "population=phones population.cohorts=online",
        r"population\.cohorts=online: .*set population\.cohorts=registered",
    ),
    "fixed cohorts of those there under distributed": (
        "privacy=distributed federation/sampler=fixed federation.sampler.size=2 privacy.secure.minimum=2 "
        "population=silos population.cohorts=online",
        r"population\.cohorts=online: ",
    ),
    "each reply under secure_sum": (
        "method=fedvpa privacy=secure_sum",
        "method=fedvpa: .* choose a form of the method",
    ),
    "each reply under distributed": ("method=fedvpa privacy=distributed", "method=fedvpa: .* needs sums only"),
    "clusters under central": ("method=fedbiscuit privacy=central", "method=fedbiscuit: "),
    "clusters under secure_sum": ("method=fedbiscuit privacy=secure_sum", "method=fedbiscuit: "),
    "clusters under distributed": ("method=fedbiscuit privacy=distributed", "method=fedbiscuit: "),
    "nothing to protect": ("method=uniform privacy=central", "method=uniform trains nothing"),
    "open metrics past a secure sum": ("privacy=secure_sum privacy/metrics=open", "privacy/metrics=open would send"),
    "exact sums of metrics": ("privacy=central privacy/metrics=summed", r"privacy\.metrics\.noise_multiplier=0"),
    "skellam in the open": (
        "privacy=central privacy/mechanism=skellam privacy/metrics=withheld",
        r"add privacy/secure=secagg",
    ),
    "adaptive with skellam": (
        "privacy=central_adaptive privacy/mechanism=skellam privacy/secure=secagg privacy/metrics=withheld",
        r"privacy\.clip\.adaptive is accounted for with privacy/mechanism=gaussian only",
    ),
    "adaptive with banded": (
        "privacy=central_adaptive privacy/mechanism=banded",
        r"privacy\.clip\.adaptive is accounted for with privacy/mechanism=gaussian only",
    ),
    "banded without groups": ("privacy=central_ftrl federation.rounds=5", r"privacy\.mechanism\.bands=4: .*cyclic"),
    "clip without mechanism": (
        "privacy=central privacy.mechanism=null",
        r"privacy\.clip and privacy\.mechanism belong",
    ),
    "epsilon without mechanism": ("privacy=secure_sum privacy.epsilon=4", r"privacy\.epsilon needs a mechanism"),
    "delta too large": ("privacy=central privacy.delta=0.11", r"privacy\.delta=0\.11 is not valid: .* equal to 0\.1"),
    "delta too large on clients": (
        "privacy=local_user privacy.delta=0.5 method.prior=none",
        r"privacy\.delta=0\.5 is not",
    ),
    "a delta of one over the people": (
        "privacy=local_user privacy.delta=0.1 method.prior=none data.groups=12",
        r"privacy\.delta=0\.1: phase 'gpo' reads 10 users",
    ),
    "a rate of no phase": (
        "privacy=local_user method.prior=none +privacy.local.rates.gpt=0.5",
        r"privacy\.local\.rates\.gpt: no such phase; there are gpo",
    ),
    "a bound of no phase": (
        "privacy=local_user method.prior=none +privacy.local.clips.gpt=0.5",
        r"privacy\.local\.clips\.gpt: no such phase; there are gpo",
    ),
    "metrics that noise drowns": (
        "privacy=central privacy/metrics=summed privacy.metrics.noise_multiplier=5",
        r"privacy\.metrics\.noise_multiplier=5: .* fewer than 30 clients, of which there are 5",
    ),
    "a unit that training cannot single out": (
        "privacy=local_example method.prior=none",
        r"privacy\.local\.unit=example: ",
    ),
    "a minimum above the cohort": (
        "privacy=secure_sum privacy.secure.minimum=4",
        r"privacy\.secure\.minimum=4: cohorts of 3 clients are expected",
    ),
    "a minimum above a share": (
        "privacy=distributed federation/sampler=fixed federation.sampler.size=2",
        r"privacy\.secure\.minimum=3: cohorts of 2 clients",
    ),
    "too few bits": ("privacy=secure_sum privacy.secure.bits=32", r"bits=32 with fraction_bits=32 leaves no room"),
    "too few bits for noise": (
        "privacy=distributed privacy.secure.bits=32 privacy.mechanism.rounding.inflation=0.000001 "
        "privacy.epsilon=null privacy.noise_multiplier=30000",
        r"need \d+ bits, and the secure sum has 32",
    ),
    "not even one round": (
        "privacy=central privacy.epsilon=0.1 privacy.noise_multiplier=0.5",
        r"privacy\.epsilon=0\.1 does not allow a single round",
    ),
    "no budget and no noise": ("privacy=central privacy.epsilon=null", "are both null"),
    "a count with too little noise": ("privacy=central_adaptive", r"privacy\.clip\.adaptive\.count_noise gives"),
    "nothing promised": (
        "privacy=central privacy.mechanism=null privacy.clip=null privacy.epsilon=null",
        "promises nothing; set privacy=none",
    ),
    "two units": (
        "privacy=local_user privacy/mechanism=gaussian method.prior=none",
        r"privacy\.(clip and privacy\.mechanism belong|local and privacy\.mechanism protect)",
    ),
    "users on several clients": (
        "privacy=local_user method.prior=none partition=subsamples partition.questions=10 partition.unseen=2",
        r"privacy\.local\.unit=user: 'group-0\d' is on the clients",
    ),
    "no delta for examples": ("privacy=local_user privacy.delta=null method.prior=none", r"privacy\.delta=null"),
    "rounding": ("privacy=distributed privacy.mechanism.rounding.failure=1.5", r"rounding\.failure=1\.5 is not valid"),
    "a minimum of contributions": (
        "privacy=central federation.min_clients=2",
        r"federation\.min_clients=2: with a guarantee .* every round counts",
    ),
    "an odd number of neighbours": ("privacy=secure_sum privacy.secure.neighbours=3", r"neighbours=3 is not valid"),
    "half a threshold": ("privacy=secure_sum privacy.secure.threshold=0.5", r"threshold=0\.5 is not valid"),
}


@pytest.mark.parametrize("name", mostly_slow(REFUSED, list(REFUSED)[::3]))
def test_what_cannot_be_kept_is_refused_in_one_line_before_anything_is_written(tmp_path: Path, name: str) -> None:
    overrides, reason = REFUSED[name]
    choices = overrides.split()
    base = PAIRS if any(m in overrides for m in ("fedvpa", "fedbiscuit")) else DATA if "uniform" in overrides else TINY
    if "uniform" in overrides:
        base = tuple(o for o in DATA if not o.startswith("method."))
    with pytest.raises(UserError, match=reason) as refusal:
        start([*base, *choices, f"output={tmp_path / 'run'}"])
    assert "\n" not in str(refusal.value)
    assert list(tmp_path.iterdir()) == []


def test_without_a_guarantee_nobody_keeps_one() -> None:
    config, phases = configured()
    assert isinstance(custody_of(config, phases, None, checked=True), NoCustody)
    assert local_privacy(config, phases) is None
    check_guarantee(config, phases, ClientDirectory([], [], {}))


def test_a_guarantee_is_kept_by_a_custodian() -> None:
    config, phases = configured("privacy=central")
    assert isinstance(custody_of(config, phases, None, checked=True), Custodian)


def test_released_metrics_are_the_headline_and_the_one_that_chooses() -> None:
    noise = "privacy.metrics.noise_multiplier=9"
    config, phases = configured("privacy=central", "privacy/metrics=summed", noise)
    assert metric_names(config, phases) == (config.method.headline, config.method.selection)
    assert metric_names(*configured("privacy=central")) == ()
    assert metric_names(*configured()) == ()
    named = configured("privacy=central", "privacy/metrics=summed", noise, "privacy.metrics.names=[b,a]")
    assert metric_names(*named) == ("b", "a")


def test_a_metric_named_twice_is_released_once() -> None:
    """Twice in the vector, it would be twice as much as its noise is made for."""
    twice = ["privacy=secure_sum", "privacy.metrics.names=[a,a]"]
    assert metric_names(*configured(*twice)) == ("a",)


def test_exact_metrics_of_real_nodes_are_refused() -> None:
    with pytest.raises(UserError, match="privacy/metrics=open would send exact metrics of real nodes"):
        refuse_open_metrics(configured("privacy=central")[0])
    refuse_open_metrics(configured("privacy=central", "privacy/metrics=withheld")[0])
    refuse_open_metrics(configured()[0])


def test_the_account_knows_every_phase_that_trains_and_every_evaluation() -> None:
    config, phases = configured(
        "privacy=central", "privacy/metrics=summed", "privacy.metrics.noise_multiplier=30", "federation.rounds=3"
    )
    account = account_of(config, phases, CLIENTS, None)
    assert {name: e.rounds for name, e in account.exposures.items()} == {"question_prior": 1, "gpo": 3}
    assert all(exposure.size > 0 for exposure in account.exposures.values())
    planned = {entry.phase: entry.count for entry in account.plan()}
    # Two phases, each before its first round and after its last.
    assert planned == {"question_prior": 1, "gpo": 3, "metrics": 4}


def test_local_noise_is_the_same_for_server_and_nodes() -> None:
    config, phases = configured("privacy=local_user", "method.prior=none")
    own = local_privacy(config, phases)
    assert own is not None
    account = account_of(config, phases, CLIENTS, None)
    assert own.noise_multipliers == account.noise_multipliers
    assert own.noise_multiplier == own.noise_in("gpo") > 0


def test_training_clients_are_what_delta_is_held_against() -> None:
    config, phases = configured("privacy=central", "privacy.delta=0.1")
    check_guarantee(config, phases, ClientDirectory([f"c{i}" for i in range(9)], [], {}))
    with pytest.raises(UserError, match="below 1/10"):
        check_guarantee(config, phases, ClientDirectory([f"c{i}" for i in range(10)], [], {}))


def test_the_tiny_world_has_three_training_clients() -> None:
    resolved = resolve(list(TINY))
    clients = open_site(to_json(resolved), {}).data.clients
    assert sum(client.role is Role.TRAIN for client in clients) == 3


class Learns(Pull):
    """A phase of a stage, with noise of the clients' own."""

    local_units = frozenset({"example", "user"})
    local_steps = 2

    def __init__(self, name: str, rounds: int, stage: str | None) -> None:
        super().__init__(rounds)
        self.name, self.stage = name, stage


STAGED = ClientDirectory(list("abcdef"), [], {}, {c: ("sft",) if c in "ab" else ("rl",) for c in "abcdef"})
PHASES = [Learns("sft", 2, "sft"), Learns("rl", 5, "rl")]


def laid_out(disjoint: bool, *overrides: str) -> RunConfig:
    return replace(parse(resolve([*TINY, *overrides])), partition=SimpleNamespace(disjoint=disjoint))  # type: ignore[arg-type]


def test_stages_of_clients_make_budgets_of_their_own() -> None:
    account = account_of(laid_out(False, "privacy=central"), PHASES, STAGED, None)
    assert {name: e.sampling.population for name, e in account.exposures.items()} == {"sft": 2, "rl": 4}
    assert account.noise_multipliers["sft"] < account.noise_multipliers["rl"]
    assert account.delta == default_delta(6)
    assert {entry.phase: entry.members for entry in account.plan()} == {"sft": "sft", "rl": "rl"}


@pytest.mark.slow
def test_local_noise_is_side_by_side_where_the_partition_is_disjoint() -> None:
    noise = {}
    for disjoint in (True, False):
        config = laid_out(disjoint, "privacy=local_user", "privacy.epsilon=2")
        own = local_privacy(config, PHASES)
        assert own is not None
        assert account_of(config, PHASES, STAGED, None).noise_multipliers == own.noise_multipliers
        assert own.noise_multiplier == max(own.noise_multipliers.values())
        noise[disjoint] = own.noise_multipliers
    assert noise[True]["sft"] < noise[True]["rl"] < noise[False]["sft"] == noise[False]["rl"]


def test_every_phase_must_be_affordable_by_itself() -> None:
    """The first phase's clients are drawn by coins, which costs less than that all of the second's take part."""
    coins = ("federation/sampler=poisson", "federation.sampler.rate=0.05", "privacy.delta=1e-3")
    config = laid_out(False, "privacy=central", "privacy.epsilon=2", "privacy.noise_multiplier=1", *coins)
    check_guarantee(config, PHASES, STAGED)
    whole = Learns("rl", 5, "rl")
    whole.participation = Participation.ALL
    with pytest.raises(UserError, match="a single round of phase 'rl'"):
        check_guarantee(config, [PHASES[0], whole], STAGED)


def test_the_smallest_cohort_of_all_phases_must_do_for_a_secure_sum() -> None:
    with pytest.raises(UserError, match="cohorts of 2 clients are expected"):
        check_guarantee(laid_out(False, "privacy=secure_sum"), PHASES, STAGED)


def test_what_stays_on_the_server_is_no_part_of_a_sum() -> None:
    class Served(Learns):
        def initial(self, streams: Streams, artefacts: Artefacts) -> State:
            return {**super().initial(streams, artefacts), "kept": torch.zeros(1000)}

        def broadcast(self, state: State) -> State:
            return {"w": state["w"]}

    account = account_of(laid_out(False, "privacy=central"), [Served("sft", 2, "sft")], STAGED, None)
    assert account.exposures["sft"].size == 8


def test_a_phase_that_nobody_evaluates_releases_no_metrics() -> None:
    summed = ("privacy=central", "privacy/metrics=summed", "privacy.metrics.noise_multiplier=30")
    noise = (*summed, "federation.evaluate_every=1")
    silent = Learns("rl", 5, "rl")
    silent.evaluated = frozenset()
    both = account_of(laid_out(False, *noise), PHASES, STAGED, None).plan()
    one = account_of(laid_out(False, *noise), [PHASES[0], silent], STAGED, None).plan()
    assert (both[-1].count, one[-1].count) == (9, 3)


def test_a_phase_that_tells_none_of_the_metrics_releases_none() -> None:
    """Nor does one whose evaluation nobody is there for."""
    summed = ("privacy=central", "privacy/metrics=summed", "privacy.metrics.noise_multiplier=30")
    config = laid_out(False, *summed, "privacy.metrics.names=[unseen/win_rate]", "federation.evaluate_every=1")
    phases = [Learns("sft", 2, "sft"), Learns("rl", 5, "rl")]
    phases[0].bounded_metrics, phases[1].bounded_metrics = frozenset(), frozenset({"unseen/win_rate"})
    assert account_of(config, phases, STAGED, None).plan()[-1].count == 6
    phases[1].evaluated = frozenset({Role.UNSEEN})
    assert [entry.phase for entry in account_of(config, phases, STAGED, None).plan()] == ["sft", "rl"]


def test_metrics_that_nobody_names_are_those_that_an_evaluation_tells() -> None:
    summed = ("privacy=central", "privacy/metrics=summed", "privacy.metrics.noise_multiplier=0.3")
    config = laid_out(False, *summed)
    phase = Learns("sft", 2, "sft")
    for told in ((config.method.selection,), (config.method.headline,), ()):
        phase.bounded_metrics = frozenset(told)
        assert metric_names(config, [phase]) == told
    with pytest.raises(UserError, match=r"privacy/metrics=summed: no evaluation tells of"):
        check_guarantee(config, [phase], STAGED)


def test_only_surveys_have_questions_that_are_taken_as_public() -> None:
    assert taken_as_public(configured("privacy=central")[0]) == ("which questions a survey asks",)
    simulated = configured("privacy=central", "population=phones")[0]
    assert taken_as_public(simulated)[1:] == ("when clients are there and how fast they are",)
    pairs = parse(resolve([*PAIRS, "method=fedavg_bt", "privacy=central"]))
    assert taken_as_public(pairs) == ()


@pytest.mark.slow
def test_the_published_noise_is_that_of_the_published_steps() -> None:
    """Wu et al. (2024): 40 passes in batches of 512 and 100 in batches of 256, over 12500 reviews each, epsilon 4."""
    config = parse(resolve(["experiment=dprlhf_published"]))
    method: Any = config.method
    phases = [Learns(name, block.rounds, name) for name, block in (("sft", method.sft), ("rl", method.rl))]
    for phase, block in zip(phases, (method.sft, method.rl), strict=True):
        phase.local_steps = block.local.steps
    noise = local_privacy(config, phases)
    assert noise is not None
    assert {name: round(value, 2) for name, value in noise.noise_multipliers.items()} == {"sft": 1.50, "rl": 1.62}
    steps = {phase.name: phase.rounds * phase.local_steps for phase in phases}
    assert steps == {"sft": 976, "rl": 4880}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["privacy=secure_sum", "method.prior=none"], "looks at single replies, and privacy.secure hides them"),
        (["privacy=central", "method.prior=none"], "is chosen for a sum, which one client moves by its bound at most"),
        (["privacy=distributed", "method.prior=none"], "privacy.secure hides them"),
        ([], "phase 'question_prior' adds up .*method.prior=none"),
        (["method=emdpo", "method/start=random"], "phase 'em' adds up"),
        (["method=fedbiscuit"], "makes something of each reply itself"),
    ],
)
@pytest.mark.parametrize("aggregation", ["median", "krum"])
def test_a_robust_aggregation_is_refused_where_it_would_break_a_promise(
    overrides: list[str], message: str, aggregation: str
) -> None:
    config = parse(resolve([*overrides, f"federation/aggregation={aggregation}"]))
    with pytest.raises(UserError, match=message):
        check_aggregation(config, phases_of(config, {}, {}))
    plain = parse(resolve(overrides))
    check_aggregation(plain, phases_of(plain, {}, {}))


LOCALLY_PRIVATE = ["method=fedavg_bt", "privacy=local_example", "method.local.max_grad_norm=null"]


@pytest.mark.parametrize("overrides", [["method.prior=none"], ["method=fedavg_bt"], LOCALLY_PRIVATE])
def test_a_robust_aggregation_goes_with_changes_of_a_model(overrides: list[str]) -> None:
    config = parse(resolve([*overrides, "federation/aggregation=median"]))
    check_aggregation(config, phases_of(config, {}, {}))
