"""Mutated messages: no node makes the server fail, or moves a sum by more than it may; no server makes a node fail."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedalign.contribution import State, total
from fedalign.errors import RunFailed
from fedalign.federation.aggregation import Aggregation, Mean, Median
from fedalign.federation.custody import NoCustody
from fedalign.federation.directory import ClientDirectory, discover
from fedalign.federation.messages import (
    DESCRIBE,
    EVALUATE,
    INSTRUCTION,
    RESTORE,
    SAVE,
    STATE,
    TRAIN,
    Instruction,
    NodeReport,
    Terms,
)
from fedalign.federation.metric_values import means_by_group
from fedalign.federation.records import decode_tensors, encode_tensors
from fedalign.federation.sampling import FractionSampler
from fedalign.federation.secure.letters import LETTERS
from fedalign.federation.secure_grid import SecureSumGrid
from fedalign.federation.server_optimizer import FedAvg
from fedalign.federation.strategy import SumStrategy
from fedalign.federation.vectors import WordCode
from fedalign.methods.base import Needs

from .guarded import CLIENTS, SEED, Guarded, Pull, secure_sum
from .malice import message_with, mutated_contents
from .toy import Halfway, grid_of, node, one_client_a_node, opener

RELAXED = [
    HealthCheck.too_slow,
    HealthCheck.data_too_large,
    HealthCheck.large_base_example,
    HealthCheck.filter_too_much,
]
FEW = settings(max_examples=120, deadline=None, suppress_health_check=RELAXED)
MANY = settings(max_examples=10_000, deadline=None, suppress_health_check=RELAXED)

START = {"w": torch.zeros(2, dtype=torch.float64)}
NORM, BAD = 10.0, 3
STRICT = Mean(client_weight=3.0, client_norm=NORM, client_scalars=50)
TRUSTING = Mean(client_weight=None, client_norm=None, client_scalars=50)
MEDIAN = Median(client_weight=None, client_norm=None, client_scalars=50)


class Known(Halfway):
    """The toy; of single replies it makes the mean."""

    def update_each(self, state: State, replies: Any, optimizer: Any) -> State:
        return self.update(state, total(replies), optimizer)


METADATA: list[dict[str, Any]] = [
    {},
    {},
    {},
    {"group_id": "2"},
    {"message_type": "evaluate"},
    {"src_node_id": 1},
    {"src_node_id": 99},
]
"""What a message may say about itself that is not so."""


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Ten thousand tracebacks take longer to write than to survive."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@functools.cache
def honest(needs: Needs) -> tuple[ClientDirectory, Grid, list[Message], list[Message]]:
    """Return a federation of one client a node, and its replies to a training and an evaluation."""
    phase = Known(needs=needs)
    grid = one_client_a_node(opener([phase]), (1, 2, 3, 4, 5))
    directory = discover(grid, "{}", 5, 1.0)
    strategy = strategy_of(phase, directory, TRUSTING)
    arrays = encode_tensors(START)
    trained = list(grid.send_and_receive(strategy.configure_train(1, arrays, ConfigRecord(), grid)))
    evaluated = list(grid.send_and_receive(strategy.configure_evaluate(1, arrays, ConfigRecord(), grid)))
    return directory, grid, trained, evaluated


def strategy_of(phase: Halfway, directory: ClientDirectory, aggregation: Aggregation) -> SumStrategy:
    strategy = SumStrategy(phase, 0, directory, FractionSampler(1.0), FedAvg(1.0).build(), "{}", 5, NoCustody())
    strategy.aggregation = aggregation
    return strategy


@st.composite
def attacks(draw: st.DrawFn) -> tuple[Needs, Aggregation, list[Message], list[Message]]:
    """A federation one of whose nodes replies with anything, once or more often."""
    needs = draw(st.sampled_from(list(Needs)))
    aggregation = draw(st.sampled_from([STRICT, TRUSTING] if needs is Needs.INDIVIDUAL else [STRICT, TRUSTING, MEDIAN]))
    _, _, trained, evaluated = honest(needs)
    attacked = []
    for replies in (trained, evaluated):
        (good,) = [reply for reply in replies if reply.metadata.src_node_id == BAD]
        others = [reply for reply in replies if reply is not good]
        metadata = draw(
            st.sampled_from(
                [{}, {}, {}, {"group_id": "2"}, {"message_type": "evaluate"}, {"src_node_id": 1}, {"src_node_id": 99}]
            )
        )
        bad = [message_with(good, draw(mutated_contents(good.content)), **metadata)]
        bad += [good] * draw(st.sampled_from([0, 0, 1, 2])) + bad * draw(st.sampled_from([0, 0, 1]))
        order = draw(st.permutations([*others, *bad]))
        attacked.append(order)
    return needs, aggregation, attacked[0], attacked[1]


def survive(attack: tuple[Needs, Aggregation, list[Message], list[Message]]) -> None:
    """Let the server read an attack, and check what it did to the state and the metrics."""
    needs, aggregation, trained, evaluated = attack
    phase = Known(needs=needs)
    directory, grid, _, _ = honest(needs)
    strategy = strategy_of(phase, directory, aggregation)
    strategy.configure_train(1, encode_tensors(START), ConfigRecord(), grid)
    arrays, _ = strategy.aggregate_train(1, trained)
    assert arrays is not None
    state = decode_tensors(arrays)
    assert state.keys() == START.keys()
    assert state["w"].shape == (2,)
    assert torch.isfinite(state["w"]).all()
    # Three honest clients, of weights 1, 2 and 3, and one of at most three and at most NORM.
    assert strategy.tally.updates in (3, 4)
    if aggregation is STRICT:
        assert float(state["w"].norm()) <= NORM
    json.dumps([asdict(m) for m in means_by_group(phase, 1, "train", strategy.train_sums, {})], allow_nan=False)
    strategy.configure_evaluate(1, encode_tensors(state), ConfigRecord(), grid)
    strategy.aggregate_evaluate(1, evaluated)
    told = means_by_group(phase, 1, "eval", strategy.evaluation_sums, strategy.evaluation_tensors)
    json.dumps([asdict(metric) for metric in told], allow_nan=False)
    assert all(len(reason) < 1000 and reason.isprintable() for reason in strategy.tally.reasons)


@FEW
@given(attacks())
def test_a_server_survives_replies_that_may_be_anything(attack: Any) -> None:
    survive(attack)


@pytest.mark.slow
@MANY
@given(attacks())
def test_a_server_survives_ten_thousand_replies_that_may_be_anything(attack: Any) -> None:
    survive(attack)


def the_secure_sum_survives(draw: Any, folder: Path) -> None:
    """One of six nodes changes its answers in one or more stages of a secure sum."""
    setting = Guarded(folder, **{"privacy": secure_sum(), "phases": [Pull(1, 4)], "separate": True})
    inner = setting.grid()
    changed = draw(st.sets(st.integers(0, 3), min_size=1, max_size=2))
    stages: list[str] = []
    send = inner.send_and_receive

    def tampered(messages: Any, *, timeout: float | None = None) -> list[Message]:
        replies = list(send(messages, timeout=timeout))
        stages.append("")
        if len(stages) - 1 in changed and replies:
            replies[0] = message_with(replies[0], draw(mutated_contents(replies[0].content)))
        return replies

    inner.send_and_receive = tampered  # type: ignore[method-assign]
    grid = SecureSumGrid(inner, WordCode(setting.privacy.secure, None), SEED)  # type: ignore[arg-type]
    orders = []
    for place, name in enumerate(CLIENTS):
        order = Instruction("{}", 0, 1, (name,), Terms(cohort=len(CLIENTS), size=5))
        content = RecordDict(
            {STATE: encode_tensors({"w": torch.zeros(4, dtype=torch.float64)}), INSTRUCTION: order.to_record()}
        )
        orders.append(grid.create_message(content, TRAIN, 100 - place, "1"))
    try:
        (reply,) = grid.send_and_receive(orders)
    except RunFailed:
        return
    report = NodeReport.of(reply.content)
    assert set(report.clients) <= set(CLIENTS)


@settings(max_examples=15, deadline=None, suppress_health_check=[*RELAXED, HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_secure_sum_survives_a_node_that_answers_anything(tmp_path: Path, data: st.DataObject) -> None:
    the_secure_sum_survives(data.draw, tmp_path)


@pytest.mark.slow
@settings(max_examples=2000, deadline=None, suppress_health_check=[*RELAXED, HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_secure_sum_survives_many_answers(tmp_path: Path, data: st.DataObject) -> None:
    the_secure_sum_survives(data.draw, tmp_path)


KINDS = [TRAIN, EVALUATE, DESCRIBE, SAVE, RESTORE, "query.secure_keys", "query.secure_shares", "query.secure_unmask"]


@st.composite
def orders(draw: st.DrawFn) -> tuple[str, RecordDict]:
    """An order of a kind with anything in it."""
    order = Instruction("{}", 0, 1, ("ada", "bob"), Terms(cohort=2, size=2))
    letters = ConfigRecord({"json": json.dumps({"ada": {"round_id": "r"}, "bob": {}})})
    good = RecordDict({INSTRUCTION: order.to_record(), STATE: encode_tensors(START), LETTERS: letters})
    return draw(st.sampled_from(KINDS)), draw(mutated_contents(good))


def endure(folder: Path, order: tuple[str, RecordDict]) -> None:
    """Let a node carry an order out; it answers, with an error or without, and leaves other files alone."""
    kept = folder / "kept"
    kept.mkdir(exist_ok=True)
    (folder / "thesis.txt").write_text("precious")
    grid = grid_of(opener([Halfway()]), node(1, **{"state-path": str(kept), "data-path": "own.jsonl"}))
    kind, content = order
    (reply,) = grid.send_and_receive([grid.create_message(content, kind, 1, "1")])
    assert reply.has_error() or reply.has_content()
    outside = {path.relative_to(folder).parts[0] for path in folder.rglob("*")}
    assert outside == {"kept", "thesis.txt"}
    if reply.has_error():
        assert "own.jsonl" not in str(reply.error.reason)


@settings(parent=FEW, suppress_health_check=[*RELAXED, HealthCheck.function_scoped_fixture])
@given(orders())
def test_a_node_answers_orders_that_may_be_anything(tmp_path: Path, order: Any) -> None:
    endure(tmp_path, order)


@pytest.mark.slow
@settings(parent=MANY, suppress_health_check=[*RELAXED, HealthCheck.function_scoped_fixture])
@given(orders())
def test_a_node_answers_ten_thousand_orders_that_may_be_anything(tmp_path: Path, order: Any) -> None:
    endure(tmp_path, order)
