"""Who trains which head, and which heads predict: against Bayes' rule, brute force and the categories themselves."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from fedalign.contribution import Contribution
from fedalign.data.pairs import Judgments
from fedalign.errors import UserError
from fedalign.methods.assignment import Assignment, Everybody, Heads, TrueGroups
from fedalign.methods.base import Memory, Needs
from fedalign.methods.cluster_assignment import CLUSTER, LOSSES, BalancedClusters
from fedalign.methods.latent_prior import person_id
from fedalign.methods.soft_assignment import Blend, Mixture

from .judgments import judgments, random_person, shard, turned

ALL = [
    Everybody(),
    TrueGroups(("left",)),
    Mixture(1, 10, "membership"),
    Blend(30.0, 100, "membership"),
    BalancedClusters(0, 1, "own"),
]


class Fixed(Heads):
    """Heads that are linear in the features."""

    def __init__(self, *rows: list[float]) -> None:
        self.directions = torch.tensor(rows)
        self.count = len(rows)

    def logits(self, judgments: Judgments, index: Tensor) -> Tensor:
        pairs = judgments.features[index]
        return self.directions @ (pairs[:, 0] - pairs[:, 1]).T


TWO = Fixed([2.0, 0.0, 0.5, 0.0], [-2.0, 0.0, 0.5, 0.0])
ONE = Fixed([1.0, 0.5, 0.0, 0.0])


def step(person: Judgments) -> tuple[Tensor, Tensor, Tensor]:
    """Return some judgments of a person as a training step has them: log odds, mass on A, indices."""
    index = person.train[torch.tensor([[0, 1, 2], [2, 3, 0]])]
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 2, 3, generator=generator), torch.tensor([[1.0, 0.0, 0.5], [0.0, 1.0, 1.0]]), index


def nll(logits: Tensor, preferred: Tensor) -> Tensor:
    return -preferred * logsigmoid(logits) - (1 - preferred) * logsigmoid(-logits)


@pytest.mark.parametrize("assignment", ALL, ids=lambda a: type(a).__name__)
def test_with_one_head_every_rule_is_the_plain_loss_and_the_plain_prediction(assignment: Assignment) -> None:
    person = random_person("ann", 6, 0, test=2)
    logits, preferred, index = step(person)
    member = assignment.membership(ONE, {}, person, 1, {})
    torch.testing.assert_close(member.losses(logits[:1], preferred, index), nll(logits[0], preferred))
    assert member.shares().tolist() == [1.0]
    decided = assignment.decision(ONE, person, person.train[:2])(logits[:1])
    torch.testing.assert_close(decided.float(), logits[0])


@pytest.mark.parametrize("assignment", ALL, ids=lambda a: type(a).__name__)
def test_training_looks_at_training_judgments_alone(assignment: Assignment) -> None:
    person = random_person("ann", 6, 0, test=2)
    logits, preferred, index = step(person)
    heads = ONE if isinstance(assignment, TrueGroups) else TWO

    def told(client: Judgments) -> list[Tensor]:
        memory: Memory = {}
        member = assignment.membership(heads, {}, client, 1, memory)
        member.remember(memory)
        losses = member.losses(logits[: heads.count], preferred, index).detach()
        reports = assignment.report(heads, [client], 1)
        return [losses, member.shares(), *memory.values(), *reports.values()]

    for before, after in zip(told(person), told(turned(person, person.test)), strict=True):
        assert torch.equal(before, after)


@pytest.mark.parametrize("assignment", ALL, ids=lambda a: type(a).__name__)
def test_a_decision_looks_at_the_context_alone(assignment: Assignment) -> None:
    person = random_person("ann", 8, 0, test=3)
    heads = ONE if isinstance(assignment, TrueGroups) else TWO
    context = person.train[:2]
    others = torch.cat([person.train[2:], person.test])
    logits = step(person)[0][: heads.count]
    before = assignment.decision(heads, person, context)(logits)
    after = assignment.decision(heads, turned(person, others), context)(logits)
    assert torch.equal(before, after)


def test_everybody_trains_all_heads_on_everything_and_their_mean_predicts() -> None:
    person = random_person("ann", 6, 0)
    logits, preferred, index = step(person)
    member = Everybody().membership(TWO, {}, person, 1, {})
    expected = nll(logits[0], preferred) + nll(logits[1], preferred)
    torch.testing.assert_close(member.losses(logits, preferred, index), expected)
    torch.testing.assert_close(Everybody().decision(TWO, person, person.train)(logits), (logits[0] + logits[1]) / 2)


def test_fedem_weighs_judgments_by_bayes_rule_and_keeps_the_mean_to_itself() -> None:
    person = random_person("ann", 7, 1, test=2)
    memory: Memory = {}
    rule = Mixture(1, 10, "membership")
    pi = [0.5, 0.5]
    for _ in range(3):
        member = rule.membership(TWO, {}, person, 1, memory)
        margins = TWO.logits(person, person.train)
        responsibility = []
        for j in range(len(person.train)):
            joint = [pi[k] * float(torch.sigmoid(margins[k, j])) for k in range(2)]
            responsibility.append([value / sum(joint) for value in joint])
        logits, preferred, index = step(person)
        found = member.losses(logits, preferred, index)
        for place in itertools.product(range(2), range(3)):
            weights = responsibility[person.train.tolist().index(int(index[place]))]
            expected = sum(weights[k] * float(nll(logits[k][place], preferred[place])) for k in range(2))
            assert float(found[place]) == pytest.approx(expected, rel=1e-5)
        pi = [sum(column) / len(responsibility) for column in zip(*responsibility, strict=True)]
        assert member.shares().tolist() == pytest.approx(pi)
        assert list(memory) == ["mixture/ann"]
        assert memory["mixture/ann"].exp().tolist() == pytest.approx(pi)


def test_more_iterations_of_fedem_are_more_rounds_under_the_same_heads() -> None:
    person = random_person("ann", 7, 1)
    slow: Memory = {}
    fast: Memory = {}
    for _ in range(4):
        Mixture(1, 10, "uniform").membership(TWO, {}, person, 1, slow)
    member = Mixture(4, 10, "uniform").membership(TWO, {}, person, 1, fast)
    torch.testing.assert_close(slow["mixture/ann"], fast["mixture/ann"])
    assert member.shares().tolist() == [1.0, 1.0]


@pytest.mark.parametrize("rule", [Mixture(1, 30, "uniform"), Blend(30.0, 300, "uniform")], ids=["fedem", "pal"])
def test_opposed_people_get_opposed_predictions(rule: Assignment) -> None:
    features = torch.zeros(6, 2, 4)
    features[:, 0, 0] = 1.0
    left = judgments("ann", features)
    right = judgments("ben", -features)
    logits = torch.tensor([[3.0], [-3.0]])
    for person, sign in ((left, 1), (right, -1)):
        assert sign * float(rule.decision(TWO, person, person.train)(logits)) > 1.0


def test_pal_s_logits_are_trained_at_their_own_rate_remembered_and_never_shared() -> None:
    person = random_person("ann", 6, 0)
    logits, preferred, index = step(person)
    rule = Blend(10.0, 5, "membership")
    memory: Memory = {"blend/ann": torch.tensor([0.3, -0.2])}
    member = rule.membership(TWO, {}, person, 1, memory)
    (parameter,) = member.personal
    weights = torch.softmax(torch.tensor([0.3, -0.2]), 0)
    expected = nll(weights[0] * logits[0] + weights[1] * logits[1], preferred)
    torch.testing.assert_close(member.losses(logits, preferred, index), expected)
    torch.optim.SGD([parameter], lr=0.01).step(lambda: member.losses(logits, preferred, index).mean().backward())
    free = torch.tensor([0.3, -0.2], requires_grad=True)
    mixed = torch.softmax(free, 0)
    nll(mixed[0] * logits[0] + mixed[1] * logits[1], preferred).mean().backward()
    member.remember(memory)
    # The gradient and the step are each scaled once.
    torch.testing.assert_close(memory["blend/ann"], free.detach() - 0.01 * 10.0**2 * free.grad)
    torch.testing.assert_close(member.shares(), torch.softmax(memory["blend/ann"], 0))
    kept = memory["blend/ann"].clone()
    with torch.no_grad():
        parameter.zero_()
    assert torch.equal(memory["blend/ann"], kept)


def test_true_groups_train_and_predict_with_the_judgment_s_own_category() -> None:
    person = dataclasses.replace(
        random_person("ann", 6, 0, test=2), categories=("left", "right", "left", "left", "right", "left")
    )
    rule = TrueGroups(("right", "left"))
    logits, preferred, index = step(person)
    member = rule.membership(TWO, {}, person, 1, {})
    losses = torch.stack([nll(head, preferred) for head in logits])
    heads = torch.tensor([[1, 0, 1], [1, 1, 1]])
    torch.testing.assert_close(member.losses(logits, preferred, index), losses.gather(0, heads[None])[0])
    assert member.shares().tolist() == [0.25, 0.75]
    left, right = rule.scored(shard(person)).people
    assert (left.group, left.train.tolist(), left.test.tolist()) == ("left", [0, 2, 3], [5])
    assert (right.group, right.train.tolist(), right.test.tolist()) == ("right", [1], [4])
    for part, head in ((left, 1), (right, 0)):
        assert torch.equal(rule.decision(TWO, part, part.train)(logits), logits[head])


def test_true_groups_refuse_what_has_no_head() -> None:
    with pytest.raises(UserError, match=r"groups=\['lefts', 'right'\] has no head for the group 'left'"):
        TrueGroups(("lefts", "right")).check_shard(shard(random_person("ann", 3, 0)))
    with pytest.raises(
        UserError, match=r"method\.heads=3, but method\.assignment\.groups lists 2; set method\.heads=2"
    ):
        TrueGroups(("left", "right")).check_heads(3)
    with pytest.raises(UserError, match="lists a group twice"):
        TrueGroups(("left", "left")).check_heads(2)
    TrueGroups(("left", "right")).check_shard(shard(random_person("ann", 3, 0)))


def trained_head(rule: BalancedClusters, round_number: int, state: dict[str, Tensor] | None = None) -> int:
    member = rule.membership(TWO, state or {}, random_person("ann", 6, 0), round_number, {})
    (head,) = member.shares().nonzero().flatten().tolist()
    logits, preferred, index = step(random_person("ann", 6, 0))
    torch.testing.assert_close(member.losses(logits, preferred, index), nll(logits[head], preferred))
    return int(head)


def test_heads_warm_up_one_after_another() -> None:
    rule = BalancedClusters(3, 2, "own")
    assert [trained_head(rule, number) for number in range(1, 7)] == [0, 0, 0, 1, 1, 1]
    for regroup, reports in ((1, [7, 8, 9, 10]), (2, [7, 9]), (3, [7, 10])):
        often = BalancedClusters(3, regroup, "own")
        found = [number for number in range(11) if often.report(TWO, [random_person("ann", 6, 0)], number)]
        assert found == reports
    assert rule.needs is Needs.INDIVIDUAL


def test_after_the_warm_up_a_person_trains_its_cluster_or_else_its_best_head() -> None:
    rule = BalancedClusters(1, 5, "own")
    best = int(TWO.losses(random_person("ann", 6, 0), torch.arange(6)).mean(1).argmin())
    assert trained_head(rule, 3) == best
    for cluster in (0, 1):
        assert trained_head(rule, 3, {f"{CLUSTER}{person_id('ann')}": torch.tensor(cluster)}) == cluster


@pytest.mark.parametrize(("count", "heads"), [(6, 2), (5, 2), (7, 3), (2, 3)])
@pytest.mark.parametrize("seed", range(3))
def test_clusters_are_the_best_balanced_ones(count: int, heads: int, seed: int) -> None:
    losses = torch.rand(count, heads, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    replies = [Contribution({f"{LOSSES}{100 - place}": row}) for place, row in enumerate(losses)]
    found = BalancedClusters(0, 1, "own").assigned(replies)
    labels = [int(found[f"{CLUSTER}{100 - place}"]) for place in range(count)]

    def cost(way: tuple[int, ...] | list[int]) -> float:
        return sum(float(losses[place, head]) for place, head in enumerate(way))

    def even(way: tuple[int, ...] | list[int]) -> bool:
        sizes = [list(way).count(head) for head in range(heads)]
        return max(sizes) - min(sizes) <= 1

    assert even(labels)
    assert cost(labels) == pytest.approx(min(cost(w) for w in itertools.product(range(heads), repeat=count) if even(w)))
    assert BalancedClusters(0, 1, "own").assigned([Contribution({"delta/x": torch.zeros(1)})]) == {}


def test_a_report_is_the_mean_loss_under_each_head_on_training_judgments() -> None:
    person = random_person("ann", 6, 0, test=2)
    (losses,) = BalancedClusters(0, 1, "own").report(TWO, [person], 1).values()
    margins = person.features[:4, 0] - person.features[:4, 1]
    expected = [float(-logsigmoid(margins @ direction).mean()) for direction in TWO.directions]
    assert losses.tolist() == pytest.approx(expected)


def test_own_is_the_head_with_the_least_loss_and_vote_the_majority() -> None:
    features = torch.zeros(4, 2, 4)
    features[:, 0, 0] = -1.0
    person = judgments("ann", features)
    logits = torch.tensor([[2.0, -1.0, 5.0], [0.5, -3.0, -1.0]])
    assert torch.equal(BalancedClusters(0, 1, "own").decision(TWO, person, person.train)(logits), logits[1])
    votes = BalancedClusters(0, 1, "vote").decision(TWO, person, person.train)
    assert votes(logits).sign().tolist() == [1.0, -1.0, 0.0]
    assert votes(torch.tensor([[9.0], [-0.1], [-0.1]])).item() < 0
