"""The classic mistakes of differentially private learning, one test each, on the path that a run takes.

What cannot occur here, or is tested elsewhere already:

- 9: no network of the package normalises over a batch, so there are no running statistics; hooks refuse one that does
  (``tests/privacy/test_unit_gradients.py::test_statistics_of_the_batch_are_refused``).
- 14: that not a bit of a unit's gradient depends on another's data is tested here for judgments and people, and for
  texts, prompts and pairs in ``tests/methods/test_rl_privacy.py``, with the normalised advantages that would let it.
- 20: nothing here searches hyperparameters privately; the statement of every guarantee says that a search is not
  covered.
- 26: a network that is moved after it was wrapped
  (``tests/models/test_lora.py::test_a_shared_base_is_not_moved``).
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import dp_accounting
import numpy as np
import pytest
import torch
from dp_accounting import rdp
from torch import Tensor

from fedalign.contribution import DELTA, WEIGHT, Contribution, State
from fedalign.data.pairs import Judgments
from fedalign.errors import RunFailed, UserError
from fedalign.federation.checkpoint import BEST
from fedalign.federation.conductor import Conductor
from fedalign.federation.desk import TrainingDesk
from fedalign.federation.directory import ClientDirectory
from fedalign.federation.job import Outcome
from fedalign.federation.messages import EVALUATE, STATE, TRAIN, Instruction, Terms
from fedalign.federation.records import encode_tensors
from fedalign.federation.sampling import CyclicSampler, FixedSampler, FractionSampler, PoissonSampler
from fedalign.federation.server_optimizer import FedAvg
from fedalign.federation.shield import NORM_BIT
from fedalign.federation.strategy import SumStrategy
from fedalign.federation.vectors import WordCode, public_streams
from fedalign.methods.local_training import train_privately
from fedalign.methods.reward_heads import RewardPhase
from fedalign.methods.reward_units import EachJudgment, EachPerson
from fedalign.metrics.record import decode
from fedalign.models.lora import trainable_state
from fedalign.privacy.adaptive_clipping import AdaptiveClip
from fedalign.privacy.dp_sgd import private_gradients
from fedalign.privacy.events import FixedSizeGaussianEvent, GaussianEvent, PoissonGaussianEvent, Relation
from fedalign.privacy.local import DPSGD, LocalPrivacy
from fedalign.privacy.mechanism import DistributedMechanism
from fedalign.privacy.metric_release import OpenMetrics, SummedMetrics, WithheldMetrics
from fedalign.privacy.noise import SeededNoise, SystemNoise
from fedalign.privacy.protection import Protection
from fedalign.privacy.unit_gradients import HookedGradients
from fedalign.rng import Streams
from fedalign.template import Template
from tests.federation.toy import VECTORS, WEIGHTS, Halfway, node
from tests.language_models import random_model
from tests.methods.judgments import random_person, turned
from tests.methods.stages import phases
from tests.methods.stages import shard as texts

from .guarded_world import (
    ADAPTIVE,
    CENTRAL,
    DISTRIBUTED,
    EVERYBODY,
    LOCAL,
    NOISELESS,
    PLACE,
    SECAGG,
    STRICT,
    TRAINING,
    WIDTH,
    Adapter,
    FailsFirst,
    Maker,
    Noisy,
    Rows,
    Wide,
    World,
    noise_of,
    own_gradient,
    sending,
    start_of,
)

ADAPTIVE_KL = "{_target_:fedalign.methods.kl_control.AdaptiveKL,target:1.0,horizon:9.0}"


@pytest.fixture(scope="module")
def language_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a random model."""
    return random_model("gpt2", tmp_path_factory.mktemp("model"))


def test_01_shuffled_batches_are_not_accounted_as_poisson() -> None:
    network = Adapter()
    units = Rows(network, 20, 4)
    chosen = LocalPrivacy(DPSGD("example", 1.0, 0.25, "loop"), 1.0, SeededNoise())
    train_privately(network, start_of(network), units, TRAINING, chosen, 0, 40, {}, PLACE)
    # The loop asks unit by unit: a batch ends where numbers stop rising.
    asked = [unit for (unit,) in units.asked]
    sizes = np.diff([0, *(i for i in range(1, len(asked)) if asked[i] <= asked[i - 1]), len(asked)])
    assert len(set(sizes.tolist())) > 4
    assert sizes.mean() == pytest.approx(5, abs=1)
    # An epoch would show everyone once before anyone twice.
    assert max(Counter(asked[:20]).values()) > 1

    samplers = (PoissonSampler(0.5), FixedSampler(2), FractionSampler(0.5), CyclicSampler(2), EVERYBODY)
    kinds = {}
    for sampler in samplers:
        _, account = World(CENTRAL, sampler=sampler).begun()
        account.charge("halfway", ["ada"])
        (event,) = account.ledger.events
        kinds[sampler] = type(event)
    assert [sampler for sampler in samplers if kinds[sampler] is PoissonGaussianEvent] == [PoissonSampler(0.5)]
    # An epoch of groups in turn is not amplified at all.
    assert kinds[CyclicSampler(2)] is GaussianEvent
    assert len({len(PoissonSampler(0.5).sample([*"abcdefghi"], np.random.default_rng(n))) for n in range(50)}) > 3


def test_02_the_rate_that_is_accounted_is_the_rate_that_happens() -> None:
    phase = Halfway(rounds=3000)
    custodian, account = World(CENTRAL, [phase], PoissonSampler(0.3)).begun()
    directory = ClientDirectory(sorted(VECTORS), [], {})
    strategy = SumStrategy(phase, 0, directory, PoissonSampler(0.3), FedAvg(1.0).build(), "{}", 5, custodian)
    counts = Counter(client for number in range(1, 3001) for client in strategy.cohort(number))
    account.charge("halfway", strategy.cohort(1))
    (event,) = account.ledger.events
    assert isinstance(event, PoissonGaussianEvent)
    for client in VECTORS:
        assert counts[client] / 3000 == pytest.approx(event.rate, abs=0.03)

    # Local noise: that clients are drawn too amplifies nothing for a server that knows who was.
    _, account = World(LOCAL, [Noisy(rounds=9)], PoissonSampler(0.3)).begun()
    account.charge("halfway", ["ada", "bob"])
    account.charge("halfway", ["ada"])
    (event,) = account.ledger.events
    assert event == PoissonGaussianEvent(0.25, 1.0)
    assert account.ledger.most("halfway") == 2 * Noisy.local_steps


def test_03_fixed_size_cohorts_do_not_get_the_poisson_formula() -> None:
    phase = Halfway(rounds=100)
    _, account = World(replace(CENTRAL, delta=9.9e-4), [phase], FixedSampler(100)).begun(1000)
    for _ in range(100):
        account.charge("halfway", ["c0"])
    assert account.relation is Relation.REPLACE_ONE
    assert account.ledger.events == {FixedSizeGaussianEvent(1000, 100, 1.0)}
    oracle = rdp.RdpAccountant(neighboring_relation=dp_accounting.NeighboringRelation.REPLACE_ONE)
    half = dp_accounting.GaussianDpEvent(0.5)
    oracle.compose(dp_accounting.SampledWithoutReplacementDpEvent(1000, 100, half), 100)
    assert account.ledger.epsilon() == pytest.approx(oracle.get_epsilon(9.9e-4), rel=0.02)
    _, poisson = World(replace(CENTRAL, delta=9.9e-4), [phase], PoissonSampler(0.1)).begun(1000)
    for _ in range(100):
        poisson.charge("halfway", ["c0"])
    assert poisson.ledger.epsilon() == pytest.approx(4.79, abs=0.03)


@pytest.mark.parametrize("failing", [[], ["bob"]])
@pytest.mark.parametrize("privacy", [CENTRAL, DISTRIBUTED])
def test_04_noise_does_not_shrink_with_the_cohort(world: Maker, privacy: Protection, failing: list[str]) -> None:
    exact = world(NOISELESS, [Wide(1, failing)]).moved()
    noise = (world(privacy, [Wide(1, failing)]).moved() - exact) * len(VECTORS)
    if privacy is CENTRAL:
        assert float(noise.std()) == pytest.approx(1.0, rel=0.02)
    else:
        # One of the smallest cohort, of two, brings enough alone: whoever stays adds more; rounding one in a hundred.
        assert float(noise.std()) == pytest.approx(1.01 * math.sqrt(4 - len(failing)), rel=0.02)


def test_05_no_client_counts_more_for_having_more(world: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = world(NOISELESS).moved()
    without = world(NOISELESS, [Halfway(1, ["dee"])]).moved()
    monkeypatch.setitem(WEIGHTS, "dee", 1e6)
    heavy = world(NOISELESS).moved()
    torch.testing.assert_close(heavy, usual, rtol=0, atol=1e-7)
    assert 0 < float((heavy - without).norm()) <= 1.0 / 4 * (1 + 1e-6)
    monkeypatch.setitem(WEIGHTS, "dee", 1e-6)
    assert float((world(NOISELESS).moved() - without).norm()) <= 1e-6


def test_06_no_mean_is_over_what_depends_on_data(world: Maker, reward: RewardPhase) -> None:
    # A client's part of the step is its clipped delta over the expected cohort, whoever else failed.
    own = torch.tensor(VECTORS["dee"], dtype=torch.float64) / 2
    for failing in ([], ["ada"], ["ada", "bob"]):
        both = [world(NOISELESS, [Halfway(1, left)]).moved() for left in (failing, [*failing, "dee"])]
        torch.testing.assert_close(both[0] - both[1], own / 4, rtol=0, atol=1e-6)

    # Nor is a person's gradient divided by how much the others have judged.
    found = []
    for others in (2, 6, 30):
        people = [random_person("p0", 5, 0), random_person("p1", others, 1)]
        units = EachPerson(reward.network, people, reward.method.episodes, PLACE)
        found.append(own_gradient(reward, units, 0))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_07_all_of_a_contribution_is_clipped_together_before_it_is_added(world: Maker) -> None:
    values = {
        "ada": torch.full((3,), 1e30),
        "bob": torch.full((3,), 6e4, dtype=torch.float16),
        "cid": torch.full((3,), -1e300, dtype=torch.float64),
        "dee": torch.zeros(3),
    }
    apart, together = world(CENTRAL, [sending(values)], nodes=5), world(CENTRAL, [sending(values)])
    grid = apart.grid()
    apart.run(grid=grid)
    norms = sorted(told.norm() for told in grid.told(TRAIN))
    assert norms[0] == 0.0
    assert norms[1:] == pytest.approx([1.0] * 3, rel=1e-6)
    # Two clients up and one down, all along one line: each was cut before they were added.
    grid = together.grid()
    together.run(grid=grid)
    (told,) = grid.told(TRAIN)
    assert told.norm() == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_08_what_is_not_finite_is_left_out_and_counted(world: Maker, bad: float) -> None:
    values = {name: torch.tensor([0.1, 0.2, place]) for place, name in enumerate(sorted(VECTORS))}
    nothing = {**values, "dee": torch.zeros(3)}
    values["dee"] = torch.tensor([0.1, bad, 0.1])
    outcome = world(CENTRAL, [sending(values)]).run()
    expected = world(CENTRAL, [sending(nothing)]).run()
    assert torch.equal(outcome.artefacts["halfway"]["w"], expected.artefacts["halfway"]["w"])
    assert (outcome.counters["client_updates"], expected.counters["client_updates"]) == (3, 4)
    # A node that does not check meets a server that does.
    phase = sending(values)
    state = phase.initial(Streams(5), {})
    custodian, _ = World(CENTRAL, [phase]).begun()
    terms = custodian.training_terms(phase, state, ["dee"])
    for told in (phase.told["dee"], Contribution({"delta/w": torch.full((3,), 9.0)}, {WEIGHT: 1.0})):
        with pytest.raises(ValueError, match=r"NaN or Inf|a sum of norm"):
            custodian.inspect(phase, state, terms, 1, told)


def test_09_nothing_leaves_that_is_not_hidden_in_noise(world: Maker) -> None:
    phase = sending(dict.fromkeys(VECTORS, torch.ones(3)))
    phase.told = {
        **phase.told,
        "ada": Contribution({**phase.told["ada"].tensors, "running_mean": torch.ones(3)}, {WEIGHT: 1.0}),
        "bob": Contribution({**phase.told["bob"].tensors, "delta/steps": torch.tensor(1)}, {WEIGHT: 1.0}),
    }
    made = world(CENTRAL, [phase])
    grid = made.grid()
    outcome = made.run(grid=grid)
    # Clients keep moments and rounds; the state counts steps.
    assert {name for told in grid.told(TRAIN) for name in told.tensors} == {"delta/w", "delta/matrix"}
    assert outcome.counters["client_updates"] == 2
    end = outcome.artefacts["halfway"]
    assert torch.equal(end["steps"], torch.tensor(7))
    exact = world(NOISELESS, [phase]).run().artefacts["halfway"]
    assert all(bool((end[name] != exact[name]).all()) for name in ("w", "matrix"))


def test_10_every_number_that_is_released_is_charged_or_off(world: Maker) -> None:
    made = world(CENTRAL, [Halfway(rounds=3)])
    grid = made.grid()
    made.run(grid=grid)
    # The toy tells how many rounds a client has had.
    assert {name for told in grid.told(TRAIN) for name in told.scalars} == {WEIGHT}
    assert grid.told(EVALUATE) == []

    summed = world(replace(CENTRAL, metrics=SummedMetrics((), 1.0)), [Halfway(rounds=3)])
    grid = summed.grid()
    outcome = summed.run(grid=grid)
    assert {name for told in grid.told(TRAIN) for name in told.scalars} == {WEIGHT}
    assert {item.name for told in grid.told(EVALUATE) for item in decode(told.scalars)} == {"train/closeness"}
    assert outcome.privacy is not None
    assert outcome.privacy["releases"] == 3 + 4
    assert outcome.privacy["epsilon"] > max(outcome.privacy["epsilon_by_phase"].values())
    with pytest.raises(UserError, match=r"privacy\.metrics\.noise_multiplier=0"):
        replace(CENTRAL, metrics=SummedMetrics((), 0.0))
    with pytest.raises(UserError, match=r"privacy/metrics=open"):
        replace(DISTRIBUTED, metrics=OpenMetrics())
    with pytest.raises(UserError, match=r"privacy/metrics=summed"):
        replace(LOCAL, metrics=SummedMetrics((), 5.0))
    # What is exact all the same is said to be.
    opened = world(replace(CENTRAL, metrics=OpenMetrics()), [Halfway(rounds=3)]).begun()[0].statement()
    assert opened is not None
    assert any(left.startswith("metrics: they are exact") for left in opened["not_covered"])
    assert outcome.privacy["metrics"] == "summed"
    assert any("metrics.jsonl" in left for left in outcome.privacy["not_covered"])


def test_11_no_two_releases_share_their_noise(world: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Wide(), Wide()
    second.name = "second"
    custodian, _ = World(CENTRAL, [first, second]).begun()
    rows = [noise_of(custodian, phase, number) for phase in (first, second) for number in (1, 2)]
    # The same round again, with noise of the system's: as a run that is started again has it.
    secret, _ = World(replace(CENTRAL, randomness=SystemNoise()), [first]).begun()
    rows += [noise_of(secret, first), noise_of(secret, first)]
    assert uncorrelated(rows)

    for source in (SeededNoise(), SystemNoise()):
        made = World(replace(DISTRIBUTED, randomness=source), [first])
        rows = [share(made, client, number) for client in ("ada", "bob") for number in (1, 2)]
        assert uncorrelated(rows)

    # Over a whole run nothing is drawn twice, by whomever and for whatever; a seed would draw the same again.
    drawn: list[tuple[Streams, str]] = []
    usual = SeededNoise.generator

    def noting(source: SeededNoise, streams: Streams, purpose: str) -> np.random.Generator:
        drawn.append((streams, purpose))
        return usual(source, streams, purpose)

    monkeypatch.setattr(SeededNoise, "generator", noting)
    for privacy, draws in ((ADAPTIVE, 3 * 2 + 4), (DISTRIBUTED, 3 * 5 + 4 * 5)):
        drawn.clear()
        world(replace(privacy, metrics=SummedMetrics((), 1.0)), [Halfway(rounds=3)]).run()
        assert len(set(drawn)) == len(drawn) == draws


def share(made: World, client: str, number: int) -> Tensor:
    """Return a client's share of the noise of a sum."""
    phase = made.phases[0]
    state = phase.initial(Streams(5), {})
    terms = Terms(bound=1.0, noise_multiplier=1.0, cohort=4, size=WIDTH)
    order = Instruction("{}", 0, number, (client,), terms)
    grid = made.grid()
    message = grid.create_message(encoded(state), TRAIN, 1, "1")
    desk = TrainingDesk(made.site(), order, message, node(1))
    assert isinstance(made.privacy.mechanism, DistributedMechanism)
    code = WordCode(SECAGG, made.privacy.mechanism)
    noisy = code.decode(desk.words(client), terms, public_streams(5, order))
    return torch.from_numpy(noisy - desk.vector(client, made.privacy))


def encoded(state: State) -> Any:
    from flwr.app import RecordDict

    return RecordDict({STATE: encode_tensors(state)})


def uncorrelated(rows: Sequence[Tensor]) -> bool:
    matrix = torch.corrcoef(torch.stack(list(rows)).double()) - torch.eye(len(rows), dtype=torch.float64)
    return float(matrix.abs().max()) < 5 / math.sqrt(WIDTH)


@pytest.mark.parametrize("bit", [0.5, -0.5])
def test_12_a_round_clips_and_hides_with_one_bound_which_then_moves_the_right_way(bit: float) -> None:
    phase = Wide(rounds=9)
    custodian, account = World(ADAPTIVE, [phase]).begun()
    state = phase.initial(Streams(5), {})
    bounds, spreads = [], []
    for number in range(1, 4):
        # All four within the bound, or all beyond it; the count without noise, so that it costs nothing.
        bounds.append(custodian.training_terms(phase, state, sorted(VECTORS)).bound)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(AdaptiveClip, "count_std", lambda clip, expected: 1e9)
            patch.setattr("fedalign.federation.custodian.add_gaussian", lambda values, std, generator: values)
            spreads.append(float(noise_of(custodian, phase, number, 4 * bit).std()))
    factor = math.exp(-0.2 * bit)
    assert bounds == pytest.approx([1.0, factor, factor**2])
    assert spreads == pytest.approx([account.noise_multipliers["halfway"] * bound for bound in bounds], rel=0.02)


def test_13_counting_the_norm_bits_is_charged() -> None:
    phase = Wide(rounds=1)
    custodian, account = World(ADAPTIVE, [phase]).begun()
    updates = float(noise_of(custodian, phase).std())
    narrow, moves = Halfway(rounds=1), []
    counting, _ = World(ADAPTIVE, [narrow]).begun()
    for number in range(2000):
        counting.restore({}, {})
        noise_of(counting, narrow, number)
        moves.append(math.log(counting.facts()["bounds"]["halfway"]))
    # Half are within, as they should be: the bound moves by the noise of the count alone, cut where a share ends. Half
    # of a normal's mass lies within 0.6745 standard deviations.
    count_std = 4 * float(np.median(np.abs(moves))) / 0.2 / 0.6745
    (event,) = account.ledger.events
    assert isinstance(event, GaussianEvent)
    spent = (updates**-2 + (2 * count_std) ** -2) ** -0.5
    assert spent == pytest.approx(event.noise_multiplier, rel=0.02)
    assert updates > 1.02 * event.noise_multiplier


def test_14_one_unit_s_gradient_does_not_depend_on_another_s_data(reward: RewardPhase) -> None:
    people = [random_person(f"p{place}", 6, place) for place in range(3)]
    changed = [turned(people[0], torch.arange(6)), people[1], random_person("p2", 6, 9)]
    plan = reward.method.episodes
    by_person = [own_gradient(reward, EachPerson(reward.network, each, plan, PLACE), 1) for each in (people, changed)]
    by_judgment = [own_gradient(reward, EachJudgment(reward.network, each, PLACE), 8) for each in (people, changed)]
    assert torch.equal(*by_person)
    assert torch.equal(*by_judgment)
    assert not torch.equal(own_gradient(reward, EachPerson(reward.network, changed, plan, PLACE), 0), by_person[0])


@pytest.mark.parametrize(
    "change",
    ["algorithm.epochs=2", "algorithm.minibatches=2", "algorithm.whiten=true", f"adaptive={ADAPTIVE_KL}"],
)
def test_14_what_uses_a_prompt_twice_or_lets_it_reach_others_is_refused(language_model: Path, change: str) -> None:
    chosen = LocalPrivacy(DPSGD("example", 1.0, 0.5, "hooks"), 1.0, SeededNoise())
    plain = phases(language_model, f"method.rl.{change}")
    assert "rl" in plain
    with pytest.raises(UserError, match=r"method\.rl\."):
        phases(language_model, f"method.rl.{change}", local=chosen)


def test_15_a_pair_is_one_unit_and_a_client_is_one_over_all_phases(reward: RewardPhase) -> None:
    people: list[Judgments] = [random_person(f"p{place}", 6, place) for place in range(2)]
    units = EachJudgment(reward.network, people, PLACE)
    assert units.units == 12
    gradients = HookedGradients(reward.network, 1e-3, functorch=False)
    # Two responses, one clip.
    parts = gradients.clipped_sum(lambda chosen: units.losses(chosen, 0), torch.tensor([3]))
    gradients.close()
    assert float(torch.cat([p.flatten() for p in parts]).norm()) == pytest.approx(1e-3, rel=1e-5)

    first, second = Halfway(rounds=2), Halfway(rounds=2)
    second.name = "second"
    _, account = World(STRICT, [first, second], CyclicSampler(2)).begun()
    account.charge("halfway", ["ada", "cid"])
    once = account.ledger.epsilon()
    account.charge("second", ["ada"])
    assert account.ledger.epsilon() > 1.3 * once


def test_16_phases_are_side_by_side_only_for_clients_that_are_not_in_both() -> None:
    first, second = Halfway(rounds=2), Halfway(rounds=2)
    second.name = "second"
    _, account = World(STRICT, [first, second], CyclicSampler(2)).begun()
    account.charge("halfway", ["ada", "cid"])
    once = account.ledger.epsilon()
    account.charge("second", ["bob", "dee"])
    assert account.ledger.epsilon() == pytest.approx(once)

    # Whoever may have been drawn has been, as far as the ledger knows.
    _, account = World(STRICT, [first, second], PoissonSampler(0.5)).begun()
    account.charge("halfway", ["ada"])
    once = account.ledger.epsilon()
    account.charge("second", ["bob"])
    assert account.ledger.epsilon() > 1.1 * once


class Killed(BaseException):
    """Stands for the end of the process."""


def killed(made: World, owner: type, method: str, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run until a method is called for the given time, which the process does not survive."""
    count, usual = itertools.count(1), getattr(owner, method)

    def mortal(*arguments: Any) -> Any:
        if next(count) == number:
            raise Killed
        return usual(*arguments)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(owner, method, mortal)
        made.run()


def spent(outcome: Outcome) -> tuple[float, int]:
    assert outcome.privacy is not None
    return outcome.privacy["epsilon"], outcome.privacy["releases"]


@pytest.mark.parametrize("privacy", [CENTRAL, replace(ADAPTIVE, randomness=SystemNoise()), LOCAL])
def test_17_a_resumed_run_has_spent_what_it_had_spent(
    world: Maker, monkeypatch: pytest.MonkeyPatch, privacy: Protection
) -> None:
    phases = [Noisy(rounds=3)]
    made = world(privacy, phases)
    killed(made, Conductor, "_train", 3, monkeypatch)
    assert spent(made.run(resume=True)) == spent(world(privacy, phases).run())


def test_18_a_round_that_is_run_again_is_charged_again(world: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = replace(CENTRAL, randomness=SystemNoise())
    made, straight = (world(chosen, [Halfway(rounds=3)]) for _ in range(2))
    killed(made, Conductor, "_checkpoint", 2, monkeypatch)
    again, once = spent(made.run(resume=True)), spent(straight.run())
    assert (again[1], once[1]) == (4, 3)
    assert again[0] > once[0]
    # Where clients add the noise themselves, they have released as soon as they reply.
    for privacy, phase in ((LOCAL, Noisy(rounds=2)), (DISTRIBUTED, Halfway(rounds=2))):
        made = world(replace(privacy, randomness=SystemNoise()), [phase])
        killed(made, SumStrategy, "aggregate_train", 2, monkeypatch)
        assert spent(made.run(resume=True))[1] == 3 * max(1, phase.local_steps)
    # Noise of the seed is the same noise.
    seeded, straight = (world(CENTRAL, [Halfway(rounds=3)]) for _ in range(2))
    killed(seeded, Conductor, "_checkpoint", 2, monkeypatch)
    twice, straight_through = seeded.run(resume=True), straight.run()
    assert spent(twice) == spent(straight_through)
    assert torch.equal(twice.artefacts["halfway"]["w"], straight_through.artefacts["halfway"]["w"])
    # Who is asked and fails is charged as well: that nothing came is told too.
    failing = world(CENTRAL, [Halfway(rounds=3, failing=["bob", "cid"])]).run()
    assert spent(failing) == once


def test_18_metrics_that_clients_have_released_are_charged(world: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    private = replace(DISTRIBUTED, metrics=SummedMetrics((), 1.0), randomness=SystemNoise())
    made = world(private, [Halfway(rounds=3)])
    killed(made, SumStrategy, "aggregate_evaluate", 3, monkeypatch)
    # Round 2 and the evaluation after it happen twice.
    assert spent(made.run(resume=True))[1] == 3 + 1 + 4 + 1


def test_18_a_cohort_that_fails_whole_ends_in_noise_and_is_charged(world: Maker) -> None:
    made = world(CENTRAL, [FailsFirst(rounds=3)])
    assert spent(made.run())[1] == 3


def test_19_delta_is_below_one_over_the_units() -> None:
    _, account = World(CENTRAL, [Halfway(rounds=2)]).begun(1000)
    assert account.delta < 1 / 1000
    with pytest.raises(UserError, match=r"privacy\.delta=0\.001 must be below 1/1000"):
        World(replace(CENTRAL, delta=1e-3)).begun(1000)
    with pytest.raises(UserError, match=r"privacy\.delta=null"):
        World(replace(LOCAL, delta=None), [Noisy()]).begun()
    # All phases and metrics share the one delta.
    assert account.ledger.delta == account.delta


def test_19_a_run_that_goes_on_with_other_clients_is_refused() -> None:
    """Its delta would be another, and the epsilon that was spent belongs to the old one."""
    custodian, account = World(CENTRAL, [Halfway(rounds=2)]).begun()
    account.charge("halfway", ["ada"])
    resumed, _ = World(CENTRAL, [Halfway(rounds=2)]).begun(1000)
    with pytest.raises(UserError, match="resume it with the clients that it was started with"):
        resumed.restore(custodian.facts(), {})


def not_covered(privacy: Protection) -> list[str]:
    custodian = World(privacy, [Noisy(rounds=1)]).custody()
    custodian.begin(ClientDirectory(sorted(VECTORS), [], {}))
    told = custodian.statement()
    assert told is not None
    found: list[str] = told["not_covered"]
    return found


@pytest.mark.parametrize("privacy", [CENTRAL, ADAPTIVE, DISTRIBUTED, LOCAL])
def test_20_the_choice_of_hyperparameters_is_said_not_to_be_covered(privacy: Protection) -> None:
    assert any("hyperparameter search" in left for left in not_covered(privacy))


def test_21_epsilon_is_neither_the_central_limit_s_nor_cut_off_by_few_orders() -> None:
    chosen = replace(CENTRAL, delta=4e-5)
    _, account = World(chosen, [Halfway(rounds=976)], PoissonSampler(0.041)).begun(1000)
    for _ in range(976):
        account.charge("halfway", [])
    # PLD says 7.944, the central limit 7.512, Rényi 8.772.
    assert account.ledger.epsilon() == pytest.approx(7.944, rel=2e-3)
    assert account.ledger.epsilon_rdp() == pytest.approx(8.772, rel=2e-3)
    # Orders reach where a usual grid ends: little noise, and much.
    for noise in (0.3, 300.0):
        _, account = World(replace(chosen, noise_multiplier=noise)).begun(1000)
        account.charge("halfway", sorted(VECTORS))
        assert account.ledger.epsilon() <= account.ledger.epsilon_rdp() <= 1.6 * account.ledger.epsilon()


def test_22_noise_is_float64_from_the_system_on_a_grid_that_hides_the_last_bits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    phase = Wide(rounds=1)
    secret = replace(CENTRAL, randomness=SystemNoise())
    custodian, _ = World(secret, [phase]).begun()
    noise = noise_of(custodian, phase)
    assert noise.dtype is torch.float64
    # What is added to 0 and what is added to 1/3 lie on one grid: last bits tell nothing.
    third = Contribution({"delta/w": torch.full((WIDTH,), 1 / 3, dtype=torch.float64)})
    state = phase.initial(Streams(5), {})
    beside = custodian.release(phase, state, 1, sorted(VECTORS), third).tensors["delta/w"]
    for values in (noise, beside):
        assert bool((values * 2.0**16 == (values * 2.0**16).round()).all())
    assert len(set(noise.tolist())) > 0.8 * WIDTH
    with pytest.raises(UserError, match="lost in float64"):
        custodian.release(phase, state, 1, sorted(VECTORS), third.scale(1e9))
    with monkeypatch.context() as patch:
        patch.setattr("os.urandom", lambda size: bytes(size))
        assert torch.equal(noise_of(custodian, phase), noise_of(custodian, phase, 2))
    assert not torch.equal(noise_of(custodian, phase), noise_of(custodian, phase))


def test_23_a_sum_over_too_few_is_never_opened(world: Maker) -> None:
    all_four = replace(DISTRIBUTED, secure=replace(SECAGG, minimum=4))
    assert world(all_four).run().counters["client_updates"] == 4
    # Three could still take the masks off.
    assert world(DISTRIBUTED, [Halfway(1, failing=["ada"])]).run().counters["client_updates"] == 3
    with pytest.raises(RunFailed, match=r"only 3 clients .*, at least 4 needed"):
        world(all_four, [Halfway(1, failing=["ada"])]).run()
    # Nor are cohorts asked that would be too few from the start.
    with pytest.raises(UserError, match=r"privacy\.secure\.minimum=4"):
        World(all_four, sampler=FixedSampler(3)).begun()


def test_24_exact_metrics_pick_no_checkpoint(world: Maker) -> None:
    kept = {}
    for metrics in (OpenMetrics(), WithheldMetrics(), SummedMetrics((), 0.01)):
        made = world(replace(CENTRAL, metrics=metrics))
        made.run()
        assert made.folder is not None
        kept[type(metrics)] = (made.folder / BEST).exists()
    # With noise of its own, charged, a metric may choose.
    assert kept == {OpenMetrics: False, WithheldMetrics: False, SummedMetrics: True}


def test_25_a_frozen_factor_is_neither_hidden_in_noise_nor_sent() -> None:
    def spread(std: float, frozen_a: bool) -> float:
        network, generator = Adapter(), torch.Generator().manual_seed(3)
        a, b = network.a.weight.detach(), network.b.weight.detach()
        draws = [
            (b + std * torch.randn(b.shape, generator=generator))
            @ (a if frozen_a else a + std * torch.randn(a.shape, generator=generator))
            for _ in range(4000)
        ]
        return float(torch.stack(draws).var(0).sum())

    # Noise on both factors is multiplied: beside what is linear in it there is its square.
    assert spread(4.0, frozen_a=True) / spread(1.0, frozen_a=True) == pytest.approx(16, rel=0.05)
    a, b = Adapter().a.weight.detach(), Adapter().b.weight.detach()
    linear = 3 * float(a.square().sum()) + 4 * float(b.square().sum())
    assert spread(4.0, frozen_a=False) == pytest.approx(16 * linear + 4**4 * 2 * 3 * 4, rel=0.05)

    network = Adapter(frozen_a=True)
    assert Template.of_deltas(trainable_state(network)).tensors == {DELTA + "b.weight": (3, 2)}
    kept = network.a.weight.detach().clone()
    chosen = LocalPrivacy(DPSGD("example", 1.0, 0.5, "hooks"), 1.0, SeededNoise())
    with private_gradients(network, Rows(network, 8, 4), chosen, PLACE) as gradients:
        gradients.write(0)
        assert network.a.weight.grad is None
        assert network.b.weight.grad is not None
    short = replace(TRAINING, steps=3)
    train_privately(network, start_of(network), Rows(network, 8, 4), short, chosen, 0, 3, {}, PLACE)
    assert torch.equal(network.a.weight, kept)


def test_25_nothing_that_a_stage_keeps_frozen_is_hidden_in_noise_or_sent(language_model: Path) -> None:
    """Half of an adapter, the reference and the reward model: noise on them would hide nothing and harm all."""
    found = phases(language_model, "model.freeze_a=true", arm="dprlhf_preferences")
    phase = found["rl"]
    state = phase.initial(Streams(5, "rl"), {})
    learnt = {name for name in state if ".lora_B." in name and "/" not in name} | {"head.weight", "head.bias"}
    frozen = set(state) - learnt
    assert any(".lora_A." in name for name in frozen)
    assert any(name.startswith("reference/") for name in frozen)
    assert any(name.startswith("reward/") for name in frozen)
    template = phase.template(state)
    assert template is not None
    assert set(template.tensors) == {DELTA + name for name in learnt}
    custodian, _ = World(CENTRAL, [phase]).begun()
    told = custodian.release(phase, state, 1, sorted(VECTORS), Contribution(scalars={NORM_BIT: 0.0}))
    end = phase.update(state, Contribution(told.tensors, {WEIGHT: 1.0}), FedAvg(1.0).build())
    assert {name for name in state if not torch.equal(end[name], state[name])} == learnt
    chosen = LocalPrivacy(DPSGD("example", 1.0, 1.0, "hooks"), 1.0, SeededNoise())
    private = phases(language_model, "model.freeze_a=true", local=chosen)["rl"]
    start = private.initial(PLACE, {})
    assert set(private.local(start, texts(), PLACE, {}).tensors) == {DELTA + name for name in learnt}


def test_26_an_adapter_that_does_not_train_is_an_error_and_gradients_are_autograd_s() -> None:
    chosen = LocalPrivacy(DPSGD("example", 1.0, 1.0, "hooks"), 0.0, SeededNoise())
    short = replace(TRAINING, steps=2)
    network = Adapter()
    before = start_of(network)
    train_privately(network, before, Rows(network, 8, 4), short, chosen, 0, 2, {}, PLACE)
    assert all(float((tensor - before[name]).abs().max()) > 1e-4 for name, tensor in trainable_state(network).items())
    cut = Adapter(connected=False)
    with pytest.raises(RuntimeError, match=r"no unit's loss depends on it: b\.weight"):
        train_privately(cut, before, Rows(cut, 8, 4), short, chosen, 0, 2, {}, PLACE)

    # The oracle: one functional gradient a row.
    network = Adapter()
    units = Rows(network, 8, 4)
    frozen = {"base.weight": network.base.weight.detach()}

    def loss(parameters: dict[str, Tensor], row: Tensor) -> Tensor:
        output: Tensor = torch.func.functional_call(network, {**parameters, **frozen}, (row[None],))
        return (output - 1).square().sum()

    rows = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(dict(trainable_state(network)), units.data)
    norms = torch.stack([g.flatten(1).norm(dim=1) for g in rows.values()]).norm(dim=0)
    bound = float(norms.median())
    found = HookedGradients(network, bound, functorch=False)
    sums = found.clipped_sum(lambda some: units.losses(some, 0), torch.arange(8))
    found.close()
    for summed, gradient in zip(sums, rows.values(), strict=True):
        expected = torch.tensordot((bound / norms).clamp(max=1), gradient, 1)
        torch.testing.assert_close(summed.float(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("privacy", [CENTRAL, ADAPTIVE, DISTRIBUTED, LOCAL])
def test_27_what_the_initial_model_has_learnt_is_said_not_to_be_covered(privacy: Protection) -> None:
    assert any(left.startswith("what the initial model, its tokenizer") for left in not_covered(privacy))
