"""Reward models without a latent: what a step does, what is sent and averaged, who predicts, and what may be seen."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from fedalign.config import options, resolve
from fedalign.contribution import WEIGHT, Contribution, State, total
from fedalign.data.pairs import Judgments, PairShard, Role
from fedalign.errors import UserError
from fedalign.federation.server_optimizer import FedAvg
from fedalign.methods.base import Memory, Needs, Setting
from fedalign.methods.head_average import HEAD_WEIGHTS, head_of, mean_by_head
from fedalign.methods.reward_heads import RewardHeadsMethod, RewardPhase
from fedalign.metrics.record import decode
from fedalign.models.reward import RewardSpec
from fedalign.rng import Streams
from tests.cases import mostly_slow
from tests.configs import configured

from .judgments import FEATURES, judgments, linear_world, random_person, shard, silo, turned

ROUNDS = 4
SMALL = (
    "model.body.width=8",
    "model.body.dropout=0",
    "model.width=8",
    "method.episodes.count=2",
    "method.episodes.min_context=2",
    "method.episodes.max_context=3",
    "method.episodes.targets=2",
    "method.evaluation.context=3",
)
LOCAL = ("method.local.steps=3", "method.local.lr=0.05", "method.local.schedule=constant")
PLAIN = (*LOCAL, "method.local.optimizer=sgd", "method.local.max_grad_norm=null")
ADAPT = (
    "method.adapt.steps=5",
    "method.adapt.lr=0.05",
    "method.adapt.optimizer=sgd",
    "method.adapt.max_grad_norm=null",
)
TRAINED = ("fedavg_bt", "fedem", "pal", "fedbiscuit", "oracle_group")

Make = Callable[..., RewardPhase]


@pytest.fixture(scope="module")
def make() -> Make:
    """Give the phase of an arm, small, under some overrides; the oracle knows the groups of the linear world."""

    def build(arm: str, *overrides: str, rounds: int = ROUNDS) -> RewardPhase:
        groups = ["method.assignment.groups=[left,right]"] if arm == "oracle_group" else []
        config = configured(f"method={arm}", *SMALL, *groups, *overrides)
        assert isinstance(config.method, RewardHeadsMethod)
        (phase,) = config.method.phases(Setting(rounds, FEATURES, config.model, config.encoder))
        assert isinstance(phase, RewardPhase)
        return phase

    return build


class Federation:
    """A phase's rounds on some clients, without an engine."""

    def __init__(self, phase: RewardPhase, seed: int = 0) -> None:
        self.phase, self.seed = phase, seed
        self.memories: dict[str, Memory] = {}
        self.state = phase.initial(Streams(seed, phase.name), {})
        self.optimizer = FedAvg(1.0).build()

    def round(self, number: int, shards: Sequence[PairShard]) -> list[Contribution]:
        replies = [
            self.phase.local(
                self.state, each, Streams(self.seed, self.phase.name, number, each.client),
                self.memories.setdefault(each.client, {}),
            )
            for each in shards
        ]  # fmt: skip
        if self.phase.needs is Needs.INDIVIDUAL:
            self.state = self.phase.update_each(self.state, replies, self.optimizer)
        else:
            self.state = self.phase.update(self.state, total(replies), self.optimizer)
        return replies

    def run(self, shards: Sequence[PairShard], rounds: int = ROUNDS) -> State:
        for number in range(1, rounds + 1):
            self.round(number, shards)
        return self.state


def scores(phase: RewardPhase, state: State, shards: Sequence[PairShard]) -> dict[str, float]:
    sums = decode(
        total(phase.evaluate(state, each, Streams(0, phase.name, ROUNDS, each.client)) for each in shards).scalars
    )
    return phase.summarise(sums, {})


def heads_only(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if name.startswith("heads.")}


def same(one: State, other: State) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-5, atol=1e-6, msg=name)


def test_every_arm_without_a_latent_says_what_it_needs(make: Make) -> None:
    needs = {arm: make(arm, rounds=0).needs for arm in (*TRAINED, "local_bt", "fedavg_bt_finetuned")}
    assert {arm for arm, need in needs.items() if need is Needs.INDIVIDUAL} == {"fedbiscuit"}
    assert set(needs) < set(options()["method"])


def test_the_state_is_the_heads_and_the_first_is_the_same_for_any_number(make: Make) -> None:
    one = make("fedavg_bt").initial(Streams(3, "reward"), {})
    three = make("fedbiscuit").initial(Streams(3, "elsewhere", 5, "client"), {})
    assert {head_of(name) for name in three} == {0, 1, 2}
    same(one, {name: tensor for name, tensor in three.items() if head_of(name) == 0})
    assert any(not torch.equal(one[n], t) for n, t in make("fedavg_bt").initial(Streams(4), {}).items())


def by_hand(phase: RewardPhase, state: State, people: Sequence[Judgments], streams: Streams) -> State:
    """Train one head by hand: the same episodes, the likelihood written out, plain descent."""
    method = phase.method
    assert method.local is not None
    spec = phase._spec
    assert isinstance(spec, RewardSpec)
    network = spec.build(FEATURES, 1)
    weights = dict(network.named_parameters())
    with torch.no_grad():
        for name, parameter in weights.items():
            parameter.copy_(state[name])
    generator = streams.torch("episodes")
    for _ in range(method.local.steps):
        terms = []
        for pick in method.episodes.picks(people, generator):
            swap = (torch.rand(pick.index.shape, generator=generator) < 0.5).flatten().tolist()
            for place, turn in zip(pick.index.flatten().tolist(), swap, strict=True):
                chosen, rejected = pick.judgments.features[place]
                first, second = (rejected, chosen) if turn else (chosen, rejected)
                odds = network.logits(first, second)[0]
                odds = -odds if turn else odds
                tie = bool(pick.judgments.tie[place])
                terms.append(-0.5 * (logsigmoid(odds) + logsigmoid(-odds)) if tie else -logsigmoid(odds))
        loss = torch.stack(terms).mean()
        gradients = torch.autograd.grad(loss, list(weights.values()))
        with torch.no_grad():
            for parameter, gradient in zip(weights.values(), gradients, strict=True):
                parameter -= method.local.lr * gradient
    return {name: parameter.detach() for name, parameter in weights.items()}


def test_one_client_with_everybody_is_centralised_bradley_terry(make: Make) -> None:
    phase = make("fedavg_bt", *PLAIN, "method.weight=judgments", "method.episodes.count=3")
    people = [random_person("ann", 7, 0, test=2), random_person("ben", 9, 1, test=1)]
    people[0] = dataclasses.replace(people[0], tie=torch.tensor([True, False, True, False, False, False, False]))
    pooled = Federation(phase)
    expected = pooled.state
    for number in (1, 2):
        expected = by_hand(phase, expected, people, Streams(0, "reward", number, "silo"))
        pooled.round(number, [shard(*people, client="silo")])
        same(pooled.state, expected)


def test_a_step_trains_on_contexts_and_targets_alike(make: Make) -> None:
    phase = make("fedavg_bt", "method.episodes.min_context=3")
    picks = list(phase.method.episodes.picks([random_person("ann", 9, 0)], torch.Generator().manual_seed(0)))
    drawn = phase.method.episodes.draw([random_person("ann", 9, 0)], torch.Generator().manual_seed(0))
    sizes = drawn.context.preferred.numel() + drawn.target.preferred.numel()
    assert sum(pick.index.numel() for pick in picks) == sizes == 2 * (3 + 2)


@pytest.mark.parametrize("arm", ["fedem", "pal", "fedbiscuit", "oracle_group"])
def test_with_one_head_every_arm_is_fedavg(make: Make, arm: str) -> None:
    world = [*linear_world(3, 8, 3), shard(random_person("eve", 7, 5, test=2), random_person("kim", 6, 6, test=2))]
    if arm == "oracle_group":
        world = [dataclasses.replace(w, people=tuple(_in_one_group(p) for p in w.people)) for w in world]
    one = ["method.heads=1", *(["method.assignment.groups=[left]"] if arm == "oracle_group" else [])]
    plain, other = make("fedavg_bt", *LOCAL), make(arm, *LOCAL, *one)
    learnt, known = Federation(plain).run(world), Federation(other).run(world)
    same(learnt, heads_only(known))
    assert scores(plain, learnt, world) == pytest.approx(scores(other, known, world))


def _in_one_group(person: Judgments) -> Judgments:
    return dataclasses.replace(person, group="left", categories=("left",) * len(person.categories))


def test_each_head_moves_along_the_mean_of_those_who_trained_it(make: Make) -> None:
    phase = make("oracle_group", *LOCAL, "method.weight=judgments")
    left, right = linear_world(2, 6, 2)
    also = shard(*linear_world(1, 12, 2, seed=1)[0].people, client="also left")
    federation = Federation(phase)
    start = federation.state
    replies = federation.round(1, [left, right, also])
    assert [reply.tensors[HEAD_WEIGHTS].tolist() for reply in replies] == [[6, 0], [0, 6], [12, 0]]
    assert [reply.scalars[WEIGHT] for reply in replies] == [6, 6, 12]
    alone = {each.client: Federation(phase) for each in (left, right, also)}
    for each in (left, right, also):
        alone[each.client].round(1, [each])
    for name, tensor in federation.state.items():
        mean = (6 * alone[left.client].state[name] + 12 * alone[also.client].state[name]) / 18
        torch.testing.assert_close(tensor, alone[right.client].state[name] if head_of(name) else mean)
        untouched = alone[right.client if head_of(name) == 0 else left.client].state[name]
        assert torch.equal(untouched, start[name])


def test_contributions_of_any_partition_add_up(make: Make) -> None:
    phase = make("fedem", *LOCAL)
    replies = Federation(phase).round(1, linear_world(4, 6, 2))
    whole = mean_by_head(total(replies))
    parts = mean_by_head(total([total(replies[:1]), total(replies[1:])]))
    same(whole, parts)


@pytest.mark.parametrize("arm", TRAINED)
def test_held_out_judgments_change_nothing_that_is_sent_or_kept(make: Make, arm: str) -> None:
    phase = make(arm, *LOCAL, *(["method.assignment.warmup=0"] if arm == "fedbiscuit" else []))
    (client,) = linear_world(1, 6, 4)
    person = client.people[0]
    changed = shard(turned(person, person.test), client=client.client)
    streams = Streams(0, "reward", 1, client.client)
    state = phase.initial(streams, {})
    kept: list[Memory] = [{}, {}]
    before, after = (phase.local(state, c, streams, m) for c, m in zip((client, changed), kept, strict=True))
    assert before.scalars == after.scalars
    for one, other in ((before.tensors, after.tensors), tuple(kept)):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    learnt = shard(turned(person, person.train[:2]), client=client.client)
    moved = phase.local(state, learnt, streams, {})
    assert any(not torch.equal(before.tensors[name], moved.tensors[name]) for name in before.tensors)


@pytest.mark.parametrize("arm", TRAINED)
def test_memory_and_replies_hold_tensors_of_their_own(make: Make, arm: str) -> None:
    phase = make(arm, *LOCAL)
    federation = Federation(phase)
    world = linear_world(2, 6, 2)
    replies = federation.round(1, world)
    kept = [t.clone() for m in federation.memories.values() for t in m.values()]
    sent = [t.clone() for reply in replies for t in reply.tensors.values()]
    with torch.no_grad():
        for parameter in phase.network.parameters():
            parameter.fill_(7.0)
    assert all(map(torch.equal, kept, [t for m in federation.memories.values() for t in m.values()]))
    assert all(map(torch.equal, sent, [t for reply in replies for t in reply.tensors.values()]))
    owners = {name.split("/")[1] for client in world for name in federation.memories[client.client]}
    assert owners == ({c.client for c in world} if arm in ("fedem", "pal") else set())
    private = {name for m in federation.memories.values() for name in m}
    assert not private & {name for reply in replies for name in reply.tensors}


def told(phase: RewardPhase, state: State, client: PairShard, context: Tensor, test: Tensor) -> Tensor:
    """Return what is predicted of the judgments at ``test`` when those at ``context`` are known."""
    person = client.people[0]
    with torch.inference_mode():
        phase.load(state)
        predictor = phase.predictors(state, client, person, context, Streams(0, "reward", 1, client.client))["accuracy"]
        return predictor(person.features[test, 0][None], person.features[test, 1][None]).clone()


@pytest.mark.parametrize("arm", [*TRAINED, "fedavg_bt_finetuned"])
def test_only_the_context_moves_a_prediction(make: Make, arm: str) -> None:
    phase = make(arm, *(ADAPT if arm == "fedavg_bt_finetuned" else ()))
    client = shard(random_person("ann", 9, 0, test=4))
    person = client.people[0]
    context, rest = person.train[:3], torch.cat([person.train[3:], person.test])
    noise = torch.Generator().manual_seed(0)
    state = phase.initial(Streams(0), {})
    state = {name: tensor + 0.5 * torch.randn(tensor.shape, generator=noise) for name, tensor in state.items()}
    probe = shard(dataclasses.replace(person, features=torch.cat([person.features[:5], torch.randn(4, 2, FEATURES)])))

    def predicted(index: Tensor) -> Tensor:
        changed = turned(person, index)
        # The judgments that are predicted are the same ones in either case.
        features = changed.features.clone()
        features[5:] = probe.people[0].features[5:]
        return told(phase, state, shard(dataclasses.replace(changed, features=features)), context, person.test)

    nothing = torch.zeros(0, dtype=torch.int64)
    assert torch.equal(predicted(nothing), predicted(rest))
    if arm not in ("fedavg_bt", "oracle_group", "fedbiscuit"):
        assert not torch.equal(predicted(nothing), predicted(context))


def test_fine_tuning_is_a_local_round_on_the_person_s_own_judgments(make: Make) -> None:
    phase = make("fedavg_bt_finetuned", *ADAPT, "method.adapt.proximal_mu=0.1")
    client = shard(random_person("ann", 8, 0, test=3), role=Role.UNSEEN)
    person, context = client.people[0], torch.tensor([4, 0, 2])
    state = phase.initial(Streams(5), {})
    before = {name: tensor.clone() for name, tensor in state.items()}
    found = told(phase, state, client, context, person.test)
    federated = make(
        "fedavg_bt", *PLAIN, "method.local.steps=5", "method.local.proximal_mu=0.1", "method.local.lr=0.05"
    )  # fmt: skip
    known = shard(dataclasses.replace(person, train=context))
    delta = mean_by_head(federated.local(state, known, Streams(0, "adapt", 0, "ann"), {}))
    federated.load({name: (state[name] + delta[name]).float() for name in state})
    expected = federated.network.logits(person.features[person.test, 0], person.features[person.test, 1])
    torch.testing.assert_close(found[0], expected[0].detach())
    same(state, before)


def test_fine_tuning_shows_training_people_all_and_strangers_their_context(make: Make) -> None:
    phase, plain = make("fedavg_bt_finetuned", *ADAPT), make("fedavg_bt")
    person = random_person("ann", 9, 0, test=2)
    seen = {(p, len(c)) for role in Role for p, c, _ in phase._draws(person, role, Streams(0))}
    assert seen == {("test", 7), ("unseen", 3), ("train", 3)}
    assert {len(c) for role in Role for _, c, _ in plain._draws(person, role, Streams(0))} == {3}
    for population, context, target in phase._draws(person, Role.TRAIN, Streams(0)):
        assert not set(context.tolist()) & set(target.tolist()), population


def test_people_are_fine_tuned_independently_of_each_other_and_of_their_client(make: Make) -> None:
    phase = make("fedavg_bt_finetuned", *ADAPT)
    state = phase.initial(Streams(5), {})
    world = linear_world(3, 6, 4)
    apart = total(phase.evaluate(state, each, Streams(0, "reward", 1, each.client)) for each in world)
    together = phase.evaluate(state, silo(world[::-1]), Streams(0, "reward", 1, "silo"))
    assert apart.scalars == pytest.approx(together.scalars)


def test_local_training_alone_has_no_rounds(make: Make) -> None:
    phase = make("local_bt", *ADAPT, rounds=0)
    assert phase.rounds == 0
    with pytest.raises(UserError, match=r"federation\.rounds=3, but method=local_bt .* set federation\.rounds=0"):
        make("local_bt", rounds=3)
    assert resolve(["method=local_bt"])["federation"]["rounds"] == 0


WORLD = (
    "method.local.optimizer=adam",
    "method.local.optimizer_state=reset",
    "method.evaluation.train=false",
    "method.local.steps=10",
    "method.local.lr=0.02",
    "method.local.schedule=constant",
    "method.evaluation.context=8",
)


@pytest.mark.parametrize(
    ("arm", "extra", "least"),
    [
        ("fedem", (), 0.9),
        pytest.param("pal", (), 0.8, marks=pytest.mark.slow),
        pytest.param(
            "fedbiscuit",
            ("method.heads=2", "method.assignment.warmup=2", "method.assignment.regroup=2"),
            0.9,
            marks=pytest.mark.slow,
        ),
        pytest.param("oracle_group", (), 0.95, marks=pytest.mark.slow),
        pytest.param(
            "fedavg_bt_finetuned", ("method.adapt.steps=25", "method.adapt.lr=0.03"), 0.85, marks=pytest.mark.slow
        ),
    ],
)
def test_opposed_groups_are_both_served(make: Make, arm: str, extra: tuple[str, ...], least: float) -> None:
    world, strangers = linear_world(8, 12, 12), linear_world(4, 12, 12, seed=1, role=Role.UNSEEN)
    phase = make(arm, *WORLD, *extra, rounds=12)
    found = scores(phase, Federation(phase).run(world, 12), [*world, *strangers])
    assert found["test/accuracy_conflict"] >= least
    assert found["unseen/accuracy_conflict"] >= least - 0.05


@pytest.mark.slow
def test_one_model_for_opposed_groups_is_a_coin_on_what_divides_them(make: Make) -> None:
    world = linear_world(8, 12, 12)
    phase = make("fedavg_bt", *WORLD, rounds=12)
    found = scores(phase, Federation(phase).run(world, 12), world)
    assert 0.3 <= found["test/accuracy_conflict"] <= 0.7
    assert found["test/accuracy"] >= 0.65


@pytest.mark.parametrize("arm", TRAINED)
def test_a_silo_of_many_people_works(make: Make, arm: str) -> None:
    phase = make(arm, *LOCAL, *(["method.assignment.warmup=0"] if arm == "fedbiscuit" else []))
    together = silo(linear_world(4, 6, 3))
    federation = Federation(phase)
    state = federation.run([together], 2)
    assert set(scores(phase, state, [together])) >= {"test/accuracy", "train/accuracy", "test/accuracy_worst"}
    assert all(bool(torch.isfinite(tensor).all()) for tensor in state.values())


def test_a_judgment_s_own_category_chooses_the_oracle_s_head(make: Make) -> None:
    phase = make("oracle_group", "method.evaluation.train=false")
    state = phase.initial(Streams(0), {})
    features = torch.randn(40, 2, FEATURES, generator=torch.Generator().manual_seed(0))
    categories = ["left", "right"] * 20
    person = judgments("ann", features, test=20, categories=categories)
    phase.load(state)
    odds = phase.network.logits(features[20:, 0], features[20:, 1]).detach()
    assert not torch.equal(odds[0] > 0, odds[1] > 0)
    sums = {i.group: (i.total, i.n) for i in decode(phase.evaluate(state, shard(person), Streams(0)).scalars)}
    assert sums == {"left": (float((odds[0, ::2] > 0).sum()), 10), "right": (float((odds[1, 1::2] > 0).sum()), 10)}
    with pytest.raises(UserError, match="no head for the group 'up'"):
        phase.check(shard(random_person("ann", 4, 0), dataclasses.replace(person, categories=("up",) * 40)))


def test_a_selector_does_not_profit_from_the_place_of_the_chosen_response(make: Make) -> None:
    phase = make("fedavg_bt", "model.head=selector")
    client = shard(random_person("ann", 9, 0, test=4))
    person = client.people[0]
    state = phase.initial(Streams(0), {})
    # The last bias of a head says "the first response", whatever it is.
    state = {name: tensor + 100.0 * name.endswith("score.2.bias") for name, tensor in state.items()}
    forward = told(phase, state, client, person.train, person.test)
    flipped = shard(dataclasses.replace(person, features=person.features.flip(1)))
    torch.testing.assert_close(forward, -told(phase, state, flipped, person.train, person.test))


CHANGES = [
    ("fedavg_bt", "method.weight=judgments"),
    ("fedavg_bt", "method.episodes.count=3"),
    ("fedavg_bt", "method.heads=2"),
    ("fedem", "method.assignment.train_iterations=3"),
    ("fedem", "method.assignment.shares=uniform"),
    ("pal", "method.assignment.rate=3.0"),
    ("pal", "method.assignment.shares=uniform"),
    ("fedbiscuit", "method.assignment.warmup=2"),
    ("oracle_group", "method.assignment.groups=[right,left]"),
]


@pytest.mark.parametrize(("arm", "change"), mostly_slow(CHANGES, CHANGES[::2]))
def test_an_option_changes_what_is_learnt(make: Make, arm: str, change: str) -> None:
    first = ["method.assignment.warmup=0", "method.assignment.regroup=3"] if arm == "fedbiscuit" else []
    world = [*linear_world(2, 6, 2), *linear_world(3, 10, 2, seed=3, role=Role.UNSEEN)]
    before = Federation(make(arm, *LOCAL, *first)).run(world, 3)
    after = Federation(make(arm, *LOCAL, *first, change)).run(world, 3)
    assert before.keys() != after.keys() or any(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("arm", "change"),
    [
        *(("fedavg_bt_finetuned", f"method.adapt.{change}") for change in ("steps=9", "optimizer=adam", "lr=0.5")),
        *(("fedavg_bt_finetuned", f"method.adapt.{change}") for change in ("schedule=cosine", "proximal_mu=3.0")),
        ("fedavg_bt_finetuned", "method.adapt.max_grad_norm=0.01"),
        ("fedem", "method.assignment.context_iterations=1"),
        ("pal", "method.assignment.context_iterations=1"),
        ("fedbiscuit", "method.assignment.decide=vote"),
    ],
)
def test_an_option_changes_what_is_predicted(make: Make, arm: str, change: str) -> None:
    client = shard(random_person("ann", 9, 0, test=4))
    person = client.people[0]
    given = ADAPT if arm == "fedavg_bt_finetuned" else ()
    before, after = make(arm, *given), make(arm, *given, change)
    noise = torch.Generator().manual_seed(0)
    state = before.initial(Streams(0), {})
    state = {name: tensor + 0.5 * torch.randn(tensor.shape, generator=noise) for name, tensor in state.items()}
    one, other = (told(phase, state, client, person.train, person.test) for phase in (before, after))
    assert not torch.equal(one.float(), other.float())


def test_the_same_streams_give_the_same_reply(make: Make) -> None:
    phase = make("pal", *LOCAL, "model.body.dropout=0.3")
    (client,) = linear_world(1, 6, 2)
    state = phase.initial(Streams(0), {})
    first, again, later = (
        phase.local(state, client, Streams(0, "reward", number, client.client), {}) for number in (1, 1, 2)
    )
    assert all(torch.equal(first.tensors[name], again.tensors[name]) for name in first.tensors)
    assert any(not torch.equal(first.tensors[name], later.tensors[name]) for name in first.tensors)
