"""Mixed partitions: every answer placed once whatever the draw, equal parts for IID, concentration for Dirichlet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedalign.data.mixed_partition import IID, Dirichlet, MixedPartition
from fedalign.data.partition import ByGroup
from fedalign.data.schema import ClientAnswers, Role, Survey
from fedalign.errors import UserError
from fedalign.rng import Streams

KEYS: dict[str, Any] = {
    "train": None,
    "unseen": 1,
    "test_fraction": 0.2,
    "holdout": "random",
    "min_questions": 5,
    "small_groups": "error",
    "clients": 4,
}


def iid(survey: Survey, seed: int = 0, **changes: Any) -> Sequence[ClientAnswers]:
    return IID(**{**KEYS, **changes}).split(survey, Streams(seed))


def dirichlet(survey: Survey, seed: int = 0, alpha: float = 1.0, **changes: Any) -> Sequence[ClientAnswers]:
    return Dirichlet(**{**KEYS, "alpha": alpha, **changes}).split(survey, Streams(seed))


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**32),
    clients=st.integers(1, 8),
    unseen=st.integers(0, 3),
    alpha=st.one_of(st.none(), st.floats(0.5, 100.0)),
)
def test_every_answer_is_placed_once(survey: Survey, seed: int, clients: int, unseen: int, alpha: float | None) -> None:
    keys = {**KEYS, "clients": clients, "unseen": unseen, "min_questions": 1}
    partition: MixedPartition = IID(**keys) if alpha is None else Dirichlet(**keys, alpha=alpha)
    parts = partition.split(survey, Streams(seed))
    placed = [(group, question) for client in parts for group, own in client.answers.items() for question in own]
    assert sorted(placed) == sorted((group, question) for group, own in survey.answers.items() for question in own)
    whole = {
        client.name: client.test[client.name]
        for client in ByGroup(**{k: v for k, v in keys.items() if k != "clients"}).split(survey, Streams(seed))
    }
    for client in parts:
        assert set(client.test) == set(client.answers)
        for group, own in client.answers.items():
            assert client.test[group] == whole[group] & set(own)
            assert list(own) == [question for question in survey.answers[group] if question in own]
            assert len(set(own) - client.test[group]) >= 2


def test_clients_are_named_and_unseen_groups_stay_whole(survey: Survey) -> None:
    for parts in (iid(survey), dirichlet(survey)):
        assert [client.name for client in parts] == ["client-01", "client-02", "client-03", "client-04", "land 5"]
        assert [client.role for client in parts] == [Role.TRAIN] * 4 + [Role.UNSEEN]
        assert dict(parts[-1].answers) == {"land 5": survey.answers["land 5"]}
        assert parts[-1].test == {"land 5": frozenset()}


@pytest.mark.parametrize("split", [iid, dirichlet])
def test_a_seed_is_a_layout_and_another_seed_another(survey: Survey, split: Any) -> None:
    def layout(seed: int) -> list[dict[str, list[str]]]:
        return [{group: list(own) for group, own in client.answers.items()} for client in split(survey, seed)]

    assert layout(1) == layout(1)
    assert layout(1) != layout(2)


def test_iid_clients_hold_equal_parts(survey: Survey) -> None:
    sizes = [sum(len(own) for own in client.answers.values()) for client in iid(survey)[:-1]]
    assert sum(sizes) == 30 + 32 + 34 + 36 + 38
    assert max(sizes) - min(sizes) <= 1
    # Every group is on every client, in parts that are no whole runs of neighbouring questions.
    assert all(len(client.answers) == 5 for client in iid(survey)[:-1])


def test_alpha_concentrates_groups(survey: Survey) -> None:
    def concentration(alpha: float) -> float:
        """Mean over groups and seeds of the largest share that one client holds."""
        shares = []
        for seed in range(5):
            parts = dirichlet(survey, seed, alpha=alpha, min_questions=1)[:-1]
            for group in list(survey.answers)[:-1]:
                sizes = [len(client.answers.get(group, {})) for client in parts]
                shares.append(max(sizes) / sum(sizes))
        return float(np.mean(shares))

    assert concentration(0.3) > concentration(2.0) + 0.1 > concentration(1000.0) + 0.2
    assert concentration(1000.0) == pytest.approx(0.25, abs=0.03)


def test_a_handful_of_answers_goes_to_the_client_that_holds_most(survey: Survey) -> None:
    parts = iid(survey, clients=30, min_questions=1, test_fraction=0.0)[:-1]
    sizes = [len(own) for client in parts for own in client.answers.values()]
    assert min(sizes) >= 2
    assert sum(sizes) == 170


def test_more_clients_than_answers_allow_is_refused(survey: Survey) -> None:
    with pytest.raises(UserError, match=r"partition.clients=100: 170 answers do not give every client"):
        iid(survey, clients=100)


def test_a_dirichlet_draw_that_never_fits_is_refused(survey: Survey) -> None:
    with pytest.raises(UserError, match=r"raise partition.alpha or lower partition.clients") as error:
        dirichlet(survey, alpha=0.001, clients=8, min_questions=15)
    assert "\n" not in str(error.value)


def test_small_groups_are_refused_as_in_every_partition(survey: Survey) -> None:
    with pytest.raises(UserError, match=r"partition.min_questions=30: group 'land 0'"):
        iid(survey, min_questions=30, clients=1)
