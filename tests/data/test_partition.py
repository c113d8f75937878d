"""Whole-group partitions: every answer placed once, test and train disjoint, and each refusal in one line."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedalign.data.partition import ByGroup, Pooled
from fedalign.data.schema import ClientAnswers, Role, Survey
from fedalign.errors import UserError
from fedalign.rng import Streams

Make = Callable[..., Any]
KEYS: dict[str, Any] = {
    "train": None,
    "unseen": 2,
    "test_fraction": 0.1,
    "holdout": "random",
    "min_questions": 21,
    "small_groups": "error",
}


def by_group(survey: Survey, seed: int = 0, **changes: Any) -> Sequence[ClientAnswers]:
    return ByGroup(**{**KEYS, **changes}).split(survey, Streams(seed))


def placed(clients: Sequence[ClientAnswers]) -> list[tuple[str, str]]:
    return [(group, q) for client in clients for group, own in client.answers.items() for q in own]


def test_one_client_a_group_training_clients_first(survey: Survey) -> None:
    clients = by_group(survey)
    assert [client.name for client in clients] == list(survey.answers)
    assert [client.role for client in clients] == [Role.TRAIN] * 4 + [Role.UNSEEN] * 2
    for client in clients:
        assert dict(client.answers) == {client.name: survey.answers[client.name]}


@given(
    seed=st.integers(0, 2**32),
    unseen=st.integers(0, 5),
    test_fraction=st.floats(0.0, 0.4),
    holdout=st.sampled_from(["random", "last"]),
    kind=st.sampled_from([ByGroup, Pooled]),
)
def test_every_answer_is_placed_once_and_held_out_right(
    survey: Survey, seed: int, unseen: int, test_fraction: float, holdout: str, kind: type[ByGroup]
) -> None:
    keys = {**KEYS, "unseen": unseen, "test_fraction": test_fraction, "holdout": holdout, "min_questions": 1}
    clients = kind(**keys).split(survey, Streams(seed))
    everything = [(group, question) for group, own in survey.answers.items() for question in own]
    assert sorted(placed(clients)) == sorted(everything)
    for client in clients:
        for group, own in client.answers.items():
            held_out = client.test[group]
            assert held_out < set(own)
            expected = 0 if client.role is Role.UNSEEN else test_fraction * len(own)
            assert expected - 1e-6 <= len(held_out) < expected + 1


def test_a_seed_is_a_split_and_another_seed_another(survey: Survey) -> None:
    assert by_group(survey, 1) == by_group(survey, 1)
    assert [client.test for client in by_group(survey, 1)] != [client.test for client in by_group(survey, 2)]


def test_the_last_questions_in_file_order_can_be_held_out(survey: Survey) -> None:
    client = by_group(survey, holdout="last")[0]
    questions = list(client.answers["land 0"])
    assert client.test["land 0"] == set(questions[27:])  # the first int(0.9 * 30) train


@pytest.mark.parametrize(("n", "fraction", "held_out"), [(30, 0.1, 3), (30, 0.0, 0), (30, 0.3, 9), (30, 0.7, 21)])
def test_the_test_fraction_rounds_up_and_is_not_off_by_one(
    survey: Survey, n: int, fraction: float, held_out: int
) -> None:
    client = by_group(survey, test_fraction=fraction, min_questions=1)[0]
    assert (len(client.answers["land 0"]), len(client.test["land 0"])) == (n, held_out)


def test_held_out_questions_are_the_same_in_every_partition(survey: Survey) -> None:
    apart = by_group(survey, 5, train=("land 1", "land 3"), unseen=None)
    pooled = Pooled(**{**KEYS, "unseen": 1}).split(survey, Streams(5))[0]
    assert pooled.name == "pooled" and pooled.role is Role.TRAIN
    assert list(pooled.answers) == [f"land {g}" for g in range(5)]
    for client in apart:
        assert client.test[client.name] == pooled.test[client.name]


def test_fixed_lists_leave_other_groups_out(survey: Survey) -> None:
    clients = by_group(survey, train=("land 3", "land 1"), unseen=("land 0",))
    assert [(client.name, client.role.value) for client in clients] == [
        ("land 3", "train"),
        ("land 1", "train"),
        ("land 0", "unseen"),
    ]


@pytest.mark.parametrize("unseen", [None, 0])
def test_there_may_be_no_unseen_groups(survey: Survey, unseen: int | None) -> None:
    assert {client.role for client in by_group(survey, unseen=unseen)} == {Role.TRAIN}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": ("lund 3",)}, "partition.train: no group 'lund 3' in the data; did you mean 'land 3'?"),
        ({"unseen": ("Land1",)}, "partition.unseen: no group 'Land1' in the data; did you mean 'land 1'?"),
        ({"train": ("land 1",), "unseen": ("land 1",)}, "group 'land 1' is both in train and in unseen"),
        ({"train": ("land 5",), "unseen": 1}, "group 'land 5' is both in train and in unseen"),
        ({"train": ("land 1", "land 1")}, "partition.train: group 'land 1' is listed 2 times"),
        ({"train": ()}, "no group is left to train on (2 unseen)"),
        ({"unseen": 6}, "no group is left to train on (6 unseen)"),
        ({"min_questions": 28}, "group 'land 0' has 30 questions, 27 of them to learn from"),
        ({"unseen": ("land 0",), "min_questions": 31}, "group 'land 1' has 32 questions, 28 of them"),
        ({"train": ("land 5",), "unseen": ("land 0",), "min_questions": 31}, "group 'land 0' has 30 questions, 30 of"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(survey: Survey, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        by_group(survey, **changes)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_min_questions_is_a_sharp_bound(survey: Survey) -> None:
    assert len(by_group(survey, min_questions=27)) == 6
    with pytest.raises(UserError, match=r"partition.min_questions=28: .*partition.small_groups=drop"):
        by_group(survey, min_questions=28)


def test_small_groups_can_be_dropped_with_a_warning(survey: Survey, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        clients = by_group(survey, min_questions=30, small_groups="drop")
    assert [client.name for client in clients] == ["land 2", "land 3", "land 4", "land 5"]
    assert [record.getMessage().split(" has ")[0] for record in caplog.records] == ["group 'land 0'", "group 'land 1'"]


def test_a_named_small_group_is_never_dropped(survey: Survey) -> None:
    for changes in ({"train": ("land 0", "land 4"), "unseen": None}, {"unseen": ("land 0",)}):
        with pytest.raises(UserError, match="group 'land 0' has 30 questions"):
            by_group(survey, min_questions=31, small_groups="drop", **changes)


def test_the_last_unseen_groups_are_counted_among_those_that_are_large_enough(survey: Survey) -> None:
    smallest_last = Survey(survey.questions, dict(reversed(survey.answers.items())))
    clients = by_group(smallest_last, min_questions=31, test_fraction=0.0, unseen=1, small_groups="drop")
    assert [client.name for client in clients if client.role is Role.UNSEEN] == ["land 1"]
    assert "land 0" not in [client.name for client in clients]


def test_two_clients_of_one_name_are_refused(survey: Survey) -> None:
    renamed = Survey(survey.questions, {**survey.answers, "pooled": survey.answers["land 0"]})
    with pytest.raises(UserError, match="2 clients are called 'pooled'"):
        Pooled(**{**KEYS, "unseen": 1}).split(renamed, Streams(0))


def test_the_shipped_pluralllm_split_is_the_papers(make: Make) -> None:
    for name, kind in (("partition/pluralllm", ByGroup), ("partition/pluralllm_pooled", Pooled)):
        split = make(name)
        assert type(split) is kind
        assert len(split.train) == 8 and len(split.unseen) == 6
        assert not set(split.train) & set(split.unseen)
        assert {"Nigeria", "India (Current national sample)", "Australia"} < set(split.train)
        assert {"China", "New Zealand"} < set(split.unseen)
