"""Sub-samples of groups: disjoint clients of the size asked for, every answer placed once, unseen groups whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedalign.data.partition import ByGroup
from fedalign.data.schema import ClientAnswers, Role, Survey
from fedalign.data.subsample_partition import Subsamples
from fedalign.errors import UserError
from fedalign.rng import Streams

KEYS: dict[str, Any] = {
    "train": None,
    "unseen": 1,
    "test_fraction": 0.2,
    "holdout": "random",
    "min_questions": 5,
    "small_groups": "drop",
}


def subsamples(survey: Survey, seed: int = 0, questions: int = 6, **changes: Any) -> Sequence[ClientAnswers]:
    return Subsamples(**{**KEYS, **changes}, questions=questions).split(survey, Streams(seed))


def layout(clients: Sequence[ClientAnswers]) -> list[tuple[str, list[str]]]:
    return [(client.name, list(own)) for client in clients for own in client.answers.values()]


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**32),
    questions=st.integers(2, 50),
    unseen=st.integers(0, 3),
    test_fraction=st.sampled_from([0.0, 0.1, 0.5]),
)
def test_every_answer_is_on_one_client_of_its_group(
    survey: Survey, seed: int, questions: int, unseen: int, test_fraction: float
) -> None:
    keys = {**KEYS, "unseen": unseen, "test_fraction": test_fraction}
    clients = Subsamples(**keys, questions=questions).split(survey, Streams(seed))
    whole = {client.name: client for client in ByGroup(**keys).split(survey, Streams(seed))}
    placed = Counter((group, question) for c in clients for group, own in c.answers.items() for question in own)
    assert set(placed.values()) == {1}
    assert set(placed) == {(group, question) for group, own in survey.answers.items() for question in own}
    for client in clients:
        (group,) = client.answers
        assert list(client.test) == [group]
        # Held out are the questions that every partition of this survey and seed holds out.
        assert client.test[group] == whole[group].test[group] & set(client.answers[group])


@pytest.mark.parametrize("questions", [2, 5, 6, 7, 24])
def test_clients_have_the_size_asked_for_and_left_over_questions_in_turn(survey: Survey, questions: int) -> None:
    clients = [client for client in subsamples(survey, questions=questions) if client.role is Role.TRAIN]
    for group, answers in list(survey.answers.items())[:-1]:
        sizes = [len(c.answers[group]) - len(c.test[group]) for c in clients if group in c.answers]
        training = 4 * len(answers) // 5
        assert len(sizes) == training // questions
        assert sum(sizes) == training
        assert min(sizes) >= questions
        assert max(sizes) - min(sizes) <= 1


def test_a_group_smaller_than_a_subsample_is_a_client_by_itself(survey: Survey) -> None:
    clients = subsamples(survey, questions=30)
    assert [client.name for client in clients] == [
        "land 0 01",
        "land 1 01",
        "land 2 01",
        "land 3 01",
        "land 4 01",
        "land 5",
    ]


def test_a_group_below_the_minimum_is_dropped_and_named(survey: Survey, caplog: pytest.LogCaptureFixture) -> None:
    clients = subsamples(survey, min_questions=25)
    assert "group 'land 0' has 30 questions, 24 of them to learn from" in caplog.text
    assert {group for client in clients for group in client.answers} == {f"land {i}" for i in range(1, 6)}


def test_unseen_groups_stay_whole(survey: Survey) -> None:
    clients = subsamples(survey, unseen=("land 2",))
    (unseen,) = (client for client in clients if client.role is Role.UNSEEN)
    assert unseen is clients[-1]
    assert dict(unseen.answers) == {"land 2": survey.answers["land 2"]}
    assert unseen.test == {"land 2": frozenset()}


def test_a_seed_is_a_layout_and_another_seed_another(survey: Survey) -> None:
    assert layout(subsamples(survey, 1)) == layout(subsamples(survey, 1))
    assert layout(subsamples(survey, 1)) != layout(subsamples(survey, 2))


def test_a_group_is_split_the_same_whoever_else_trains(survey: Survey) -> None:
    alone = subsamples(survey, train=("land 3",))
    among = [client for client in subsamples(survey) if "land 3" in client.answers]
    assert layout(alone[:-1]) == layout(among)


def test_subsamples_are_random_and_not_runs_of_the_file(survey: Survey) -> None:
    clients = [client for client in subsamples(survey, test_fraction=0.0) if "land 0" in client.answers]
    order = list(survey.answers["land 0"])
    spans = [max(map(order.index, c.answers["land 0"])) - min(map(order.index, c.answers["land 0"])) for c in clients]
    assert max(spans) > 2 * len(order) // len(clients)


def test_clients_whose_names_meet_are_refused(survey: Survey) -> None:
    answers = {"land": survey.answers["land 0"], "land 01": survey.answers["land 1"]}
    with pytest.raises(UserError, match="clients are called 'land 01'"):
        subsamples(Survey(survey.questions, answers), unseen=("land 01",))


def test_the_shipped_config_makes_it(make: Callable[..., Any], survey: Survey) -> None:
    partition = make("partition/subsamples", questions=4, unseen=2)
    assert isinstance(partition, Subsamples)
    assert partition.small_groups == "drop"
    assert len(partition.split(survey, Streams(0))) == 27 // 4 + 29 // 4 + 31 // 4 + 32 // 4 + 2
