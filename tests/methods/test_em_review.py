"""What a review of EM-DPO found: tempering that turned round, types that drifted, folds that leaked."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from fedalign.contribution import WEIGHT, Contribution, State
from fedalign.errors import UserError
from fedalign.methods.em import MASS
from fedalign.methods.type_assignment import Evidence, KnownTypes, Posterior, cluster_shares
from fedalign.methods.type_model import TYPES
from fedalign.rng import Streams

from .ranking_worlds import Rounds, em, method_of, shard, starting


def evidence(round_number: int) -> Evidence:
    return Evidence(
        torch.tensor([[-1.0], [-3.0]]), torch.tensor([0]), torch.tensor([0.5, 0.5]).log(), round_number, None, (None,)
    )


@pytest.mark.parametrize("round_number", [-20, 0, 1])
def test_tempering_never_turns_a_posterior_round(round_number: int) -> None:
    shares = Posterior(0.2, 10).annotators(evidence(round_number))
    torch.testing.assert_close(shares, Posterior(0.2, 10).annotators(evidence(1)))
    assert float(shares[0, 0]) > 0.5


def test_tempering_ends() -> None:
    expected = torch.softmax(torch.tensor([[-1.0], [-3.0]], dtype=torch.float64), 0)
    torch.testing.assert_close(Posterior(0.2, 10).annotators(evidence(1 << 30)), expected)


def test_one_type_has_no_clusters() -> None:
    assert cluster_shares(dataclasses.replace(evidence(1), log_prior=torch.zeros(1))).tolist() == [[1.0]]


def test_true_types_that_nobody_named_are_refused_before_the_run() -> None:
    with pytest.raises(UserError, match="annotators here are of type None, c; name all true types"):
        KnownTypes(("a", "b")).check_people(("a", None, "c"))
    KnownTypes(("a", "b")).check_people(("a", "b"))


def test_a_type_that_nobody_trained_stays_where_it_is_whatever_momentum_the_server_has() -> None:
    phase = em("method.types=2")
    rounds = Rounds(phase)
    zeros = {name: torch.zeros(shape) for name, shape in phase.template(rounds.state).tensors.items()}
    zeros[MASS] = torch.tensor([1.0, 0.0])
    sums = Contribution({name: torch.ones_like(t) if ".0." in name else t for name, t in zeros.items()}, {WEIGHT: 1.0})
    after = phase.update(rounds.state, sums, Restless())
    for name, tensor in after.items():
        if name.startswith(TYPES):
            assert torch.equal(tensor, rounds.state[name]) == name.startswith(f"{TYPES}1.")


def test_signatures_by_training_leave_out_what_is_held_out() -> None:
    start, phase = starting("method/start=deltas", "method.start.local.steps=2", "method.folds.validation=0.25")
    client = shard()
    held = method_of(phase).folds.validating(client, 0)
    assert len(held)
    features = client.features.clone()
    features[held] += 1.0
    changed = dataclasses.replace(client, features=features)
    state = start.initial(Streams(0, start.name), {})
    one, other = (start.local(state, each, Streams(0, start.name, 1, each.client), {}) for each in (client, changed))
    assert all(torch.equal(one.tensors[name], other.tensors[name]) for name in one.tensors)


class Restless:
    """A server optimiser that moves all it is given by 1, as momentum would, however small the delta."""

    def step(self, state: State, delta: State) -> State:
        """Return the state, moved."""
        return {**state, **{name: state[name] + 1.0 for name in delta}}
