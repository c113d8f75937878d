"""The question prior against sums written out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedalign.contribution import Contribution, State, total
from fedalign.data.encoders.hashing import HashingEncoder
from fedalign.data.schema import Role, SurveyShard
from fedalign.federation.server_optimizer import FedAvg
from fedalign.methods.base import Participation, Setting
from fedalign.methods.question_prior import (
    COUNTS,
    IDS,
    OFFSETS,
    SUMS,
    QuestionMean,
    QuestionPriorPhase,
    base_of,
    contribute_answers,
    contribute_to_known,
    empty_prior,
    pack_prior,
    stable_id,
    update_known,
)
from fedalign.methods.survey import Evaluation
from fedalign.models.base import ModelSpec
from fedalign.rng import Streams

from .surveys import answers, group, shard

SIZES = {"q0": 2, "q1": 4, "q2": 3, "q3": 5, "q4": 2}
SMOOTHING = 0.5
EVALUATION = Evaluation(draws=1, context_questions=2, train=True)


def clients(seed: int, number: int) -> list[SurveyShard]:
    """Return groups that each answered some of the questions; one of each group's questions is held out."""
    generator = np.random.default_rng(seed)
    made = []
    for place in range(number):
        ids = [q for q in SIZES if generator.random() < 0.7] or ["q1"]
        generator.shuffle(ids)
        made.append(shard(group(f"g{place}", [SIZES[q] for q in ids], seed + place, min(1, len(ids) - 1), ids)))
    return made


def told(shards: list[SurveyShard]) -> State:
    return pack_prior(total(contribute_answers(each) for each in shards))


def by_hand(question: str, others: list[SurveyShard]) -> tuple[np.ndarray, int]:
    """Return the smoothed mean of the training answers of other clients, and how many they are."""
    rows = [
        answers(judgments)[question]
        for other in others
        for judgments in other.groups
        if question in {judgments.question_ids[q] for q in judgments.train.tolist()}
    ]
    uniform = np.full(SIZES[question], 1 / SIZES[question])
    return (sum(rows) + SMOOTHING * uniform) / (len(rows) + SMOOTHING), len(rows)


@given(seed=st.integers(0, 500), number=st.integers(1, 5))
def test_a_client_is_told_the_mean_of_the_others(seed: int, number: int) -> None:
    shards = clients(seed, number)
    state = told(shards)
    for own in shards:
        judgments = own.groups[0]
        base = base_of(state, own, judgments, SMOOTHING)
        others = [other for other in shards if other is not own]
        for place, question in enumerate(judgments.question_ids):
            span = slice(int(judgments.offsets[place]), int(judgments.offsets[place + 1]))
            expected, support = by_hand(question, others)
            np.testing.assert_allclose(base.shares[span].numpy(), expected, atol=1e-5)
            assert set(base.support[span].tolist()) == {support}


@given(seed=st.integers(0, 500))
def test_a_new_group_is_told_the_mean_of_all(seed: int) -> None:
    shards = clients(seed, 4)
    new = shard(group("new", list(SIZES.values()), seed + 9), role=Role.UNSEEN)
    base = base_of(told(shards), new, new.groups[0], SMOOTHING)
    expected = [by_hand(question, shards) for question in SIZES]
    np.testing.assert_allclose(base.shares.numpy(), np.concatenate([row for row, _ in expected]), atol=1e-5)


def test_a_client_that_did_not_contribute_takes_nothing_out() -> None:
    """A training client whose reply was lost sees the prior as it is."""
    first, second, lost = (shard(group(name, [2, 3], seed)) for seed, name in enumerate("abc"))
    base = base_of(told([first, second]), lost, lost.groups[0], SMOOTHING)
    mean = (first.groups[0].shares + second.groups[0].shares).numpy()
    uniform = np.array([1 / 2] * 2 + [1 / 3] * 3)
    np.testing.assert_allclose(base.shares.numpy(), (mean + SMOOTHING * uniform) / (2 + SMOOTHING), atol=1e-6)


def test_of_several_groups_on_a_client_each_takes_out_its_own_answers() -> None:
    one, other = group("one", [3, 2], 1), group("other", [3, 2], 2)
    client = shard(one, other, client="both")
    base = base_of(told([client]), client, one, SMOOTHING)
    uniform = np.array([1 / 3] * 3 + [1 / 2] * 2)
    expected = (other.shares.numpy() + SMOOTHING * uniform) / (1 + SMOOTHING)
    np.testing.assert_allclose(base.shares.numpy(), expected, atol=1e-6)
    assert set(base.support.tolist()) == {1.0}


def test_what_nobody_answered_is_uniform() -> None:
    new = shard(group("new", [4, 2], 3, ids=("unheard", "q0")), role=Role.UNSEEN)
    for state in (empty_prior({}), empty_prior({"q0": 2}), pack_prior(Contribution())):
        base = base_of(state, new, new.groups[0], SMOOTHING)
        assert base.shares.tolist() == [0.25] * 4 + [0.5] * 2
        assert base.support.tolist() == [0.0] * 6
    partly = base_of(told([shard(group("a", [2], 0))]), new, new.groups[0], SMOOTHING)
    assert partly.shares[:4].tolist() == [0.25] * 4
    assert partly.support.tolist() == [0.0] * 4 + [1.0] * 2


def test_the_answers_themselves_are_not_changed() -> None:
    own = clients(1, 1)[0]
    before = own.groups[0].shares.clone()
    base_of(told([own]), own, own.groups[0], SMOOTHING)
    assert torch.equal(own.groups[0].shares, before)


def test_the_order_of_clients_does_not_change_the_prior() -> None:
    shards = clients(5, 4)
    one, other = told(shards), told(shards[::-1])
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name])


def test_ids_are_fixed_and_fit_a_tensor() -> None:
    ids = [stable_id(name) for name in ("", "q", "Côte d'Ivoire", "q" * 1000)]
    assert len(set(ids)) == 4
    assert torch.tensor(ids).tolist() == ids
    assert stable_id("q") == 1_556_759_470_717_962_778


@pytest.mark.parametrize("questionnaire", [{}, {**SIZES, "unasked": 4}], ids=["by name", "known"])
def test_the_phase_asks_every_client_once_and_predicts_the_base(questionnaire: dict[str, int]) -> None:
    phase = QuestionPriorPhase(SMOOTHING, EVALUATION, questionnaire)
    assert (phase.rounds, phase.participation) == (1, Participation.ALL)
    shards = clients(7, 3)
    state = phase.initial(Streams(0), {})
    replies = [phase.local(state, each, Streams(0), {}) for each in shards]
    state = phase.update(state, total(replies), FedAvg(1.0).build())
    new = shard(group("new", list(SIZES.values()), 1), role=Role.UNSEEN)
    predicted = phase.predict(state, new, new.groups[0], torch.tensor([0]), torch.tensor([3, 1]))
    expected = np.concatenate([by_hand(question, shards)[0] for question in ("q3", "q1")])
    np.testing.assert_allclose(predicted.numpy(), expected, atol=1e-5)


@given(st.integers(1, 6), st.integers(0, 99))
def test_known_questions_give_the_prior_that_names_give(number: int, seed: int) -> None:
    """The known form tells the server nothing by its names; a question with other options is left out."""
    shards = [*clients(seed, number), shard(group("odd", [7], 1, ids=("q0",)), client="odd")]
    state = empty_prior({**SIZES, "unasked": 4})
    dense = [contribute_to_known(state, each) for each in shards]
    assert {name for each in dense for name in each.tensors} == {SUMS, COUNTS}
    known = update_known(state, total(dense))
    named = pack_prior(total(contribute_answers(each) for each in shards[:-1]))
    for name in (IDS, OFFSETS, SUMS, COUNTS):
        torch.testing.assert_close(known[name], named[name])


def test_noise_below_zero_is_cut_off() -> None:
    state = empty_prior({"a": 2, "b": 2, "c": 2})
    noisy = Contribution({SUMS: torch.tensor([1.5, -0.5, 0.2, 0.1, 0.0, 0.0]), COUNTS: torch.tensor([1.2, -0.3, 0.0])})
    prior = update_known(state, noisy)
    assert prior[SUMS].tolist() == pytest.approx([1.5, 0.0, 0.2, 0.1])
    assert prior[COUNTS].tolist() == pytest.approx([1.2, 0.0])
    assert prior[IDS].tolist() == state[IDS][:2].tolist() and prior[OFFSETS].tolist() == [0, 2, 4]


class NoModel(ModelSpec):
    """For methods that train no network."""

    def build(self, features: int, extra: int) -> torch.nn.Module:
        raise AssertionError("nothing is trained")


def test_the_baseline_is_that_phase_alone_whatever_the_rounds() -> None:
    method = QuestionMean("question_mean", SMOOTHING, EVALUATION)
    phases = method.phases(Setting(rounds=30, features=6, model=NoModel(), encoder=HashingEncoder("{option}", 8, True)))
    assert [(type(phase), phase.rounds) for phase in phases] == [(QuestionPriorPhase, 1)]


@pytest.mark.parametrize("smoothing", [1e-3, 1.0, 100.0])
def test_smoothing_pulls_towards_uniform(smoothing: float) -> None:
    known, new = shard(group("a", [2], 0)), shard(group("new", [2], 1), role=Role.UNSEEN)
    base = base_of(told([known]), new, new.groups[0], smoothing).shares[0]
    share = float(known.groups[0].shares[0])
    assert float(base) == pytest.approx((share + smoothing / 2) / (1 + smoothing), rel=1e-5)
