"""The length rule: characters decide, nothing is learnt, nothing is sent."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedalign.contribution import Contribution
from fedalign.data.pairs import Judgments, Role
from fedalign.methods.length_rule import LengthPhase, LengthRule
from fedalign.methods.pairs import PairEvaluation
from fedalign.metrics.record import decode
from fedalign.rng import Streams

from .judgments import judgments, random_person, shard

LENGTHS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=2, max_size=12)


def person(lengths: list[tuple[int, int]], seen: int) -> Judgments:
    features = torch.randn(len(lengths), 2, 4, generator=torch.Generator().manual_seed(0))
    return judgments("ann", features, test=len(lengths) - seen, lengths=torch.tensor(lengths))


def scores(prefer: str, client: Judgments, role: Role) -> dict[str, tuple[float, float]]:
    phase = LengthPhase(LengthRule("length_rule", prefer, PairEvaluation(2, 3, False)))
    found = decode(phase.evaluate({}, shard(client, role=role), Streams(0)).scalars)
    return {item.name: (item.total, item.n) for item in found}


@given(lengths=LENGTHS)
def test_the_longer_response_wins_and_equal_lengths_are_a_coin(lengths: list[tuple[int, int]]) -> None:
    held_out = lengths[1:]
    correct = sum(1.0 if chosen > rejected else 0.5 * (chosen == rejected) for chosen, rejected in held_out)
    longer = scores("longer", person(lengths, 1), Role.UNSEEN)["unseen/accuracy"]
    shorter = scores("shorter", person(lengths, 1), Role.UNSEEN)["unseen/accuracy"]
    assert longer == (pytest.approx(3 * correct), 3 * len(held_out))
    assert longer[0] + shorter[0] == pytest.approx(3 * len(held_out))


def test_training_people_are_scored_on_what_is_held_out() -> None:
    client = person([(9, 1), (9, 1), (1, 9), (9, 1)], 2)
    assert scores("longer", client, Role.TRAIN) == {"test/accuracy": (3.0, 6)}


def test_nothing_is_learnt_and_nothing_is_sent() -> None:
    method = LengthRule("length_rule", "longer", PairEvaluation(2, 1, True))
    phase = LengthPhase(method)
    assert phase.rounds == 0
    assert phase.initial(Streams(0), {}) == {}
    assert phase.local({}, shard(random_person("ann", 4, 0)), Streams(0), {}) == Contribution()
