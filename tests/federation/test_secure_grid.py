"""Secure sums over messages: exact for those who stay, silent about each, and not to be upset by anybody."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from fedalign.contribution import Contribution
from fedalign.federation.messages import (
    EVALUATE,
    INSTRUCTION,
    REPORT,
    STATE,
    TRAIN,
    Instruction,
    NodeReport,
    Terms,
)
from fedalign.federation.records import decode_contribution, encode_tensors
from fedalign.federation.secure.coordinator import SecureSumAborted
from fedalign.federation.secure.letters import KEYS, LETTERS, MASKED, SHARES, UNMASK, read_letters, write_letters
from fedalign.federation.secure_grid import SUM, SecureSumGrid
from fedalign.federation.vectors import WordCode
from fedalign.federation.versions import VERSIONS, versions_record
from fedalign.privacy.distributed import Skellam
from fedalign.privacy.metric_release import SummedMetrics, WithheldMetrics
from fedalign.privacy.rounding import Rounding

from .guarded import CLIENTS, SECAGG, SEED, Guarded, Lossy, Pull, protection, secure_sum, vector_of

SIZE = 8
STAGES = (KEYS, SHARES, TRAIN, UNMASK)
Loses = Callable[[Message], bool]


def told(client: str) -> np.ndarray:
    """Return what a client adds to the secure sum of the first round: its weighted delta and its weight."""
    return np.append(2 * vector_of(client, SIZE).numpy(), 2.0)


def world(tmp_path: Path, **changes: Any) -> Guarded:
    return Guarded(tmp_path, **{"privacy": secure_sum(), "phases": [Pull(1, SIZE)], "separate": True, **changes})


def exchange(setting: Guarded, loses: Loses = lambda message: False, wrap: Callable[[Grid], Grid] | None = None) -> Any:
    """Run one secure sum over all clients; return the reply's vector, the report and the grid that was spied on."""
    spy = Lossy(setting.grid() if wrap is None else wrap(setting.grid()), loses)
    grid = SecureSumGrid(spy, WordCode(setting.privacy.secure, None), SEED)  # type: ignore[arg-type]
    (reply,) = grid.send_and_receive(orders(grid, setting))
    vector = decode_contribution(reply.content).tensors[SUM].numpy()
    return vector, NodeReport.of(reply.content), spy


def orders(grid: Grid, setting: Guarded, kind: str = TRAIN, size: int = SIZE + 1) -> list[Message]:
    nodes = {100 - place: (name,) for place, name in enumerate(setting.clients)}
    hosted = nodes if setting.separate else {1: tuple(setting.clients)}
    messages = []
    for node, clients in hosted.items():
        order = Instruction("{}", 0, 1, clients, Terms(cohort=len(setting.clients), size=size))
        state = encode_tensors({"w": torch.zeros(SIZE, dtype=torch.float64)})
        content = RecordDict({STATE: state, INSTRUCTION: order.to_record()})
        messages.append(grid.create_message(content, kind, node, "1"))
    return messages


def losing(**lost: Collection[str]) -> Loses:
    """Return what loses the messages of stages to the clients named; keyword ``mask`` is the training itself."""
    stages = dict(zip(("keys", "shares", "mask", "unmask"), STAGES, strict=True))

    def loses(message: Message) -> bool:
        clients = Instruction.of(message.content).clients
        return any(
            message.metadata.message_type == stages[s] and set(clients) & set(names) for s, names in lost.items()
        )

    return loses


@pytest.mark.parametrize("separate", [True, False])
def test_the_one_reply_holds_the_sum_and_who_is_in_it(tmp_path: Path, separate: bool) -> None:
    vector, report, _ = exchange(world(tmp_path, separate=separate))
    np.testing.assert_allclose(vector, sum(told(c) for c in CLIENTS), atol=6 * 2.0**-33)
    assert report.clients == CLIENTS
    assert report.failures == ()
    # Words, and keys, shares and what takes the masks off besides.
    assert 6 * 500 < report.sent_bytes - 6 * 8 * (SIZE + 1) < 6 * 5000
    assert report.seconds > 0


CASES = [
    dict(zip(("keys", "shares", "mask", "unmask"), each, strict=True))
    for each in itertools.product(("", "a"), ("", "b"), ("", "c"), ("", "d"))
    if sum(map(bool, each)) <= 2
]


@pytest.mark.parametrize("lost", CASES, ids=lambda lost: "-".join(f"{s}:{n}" for s, n in lost.items() if n) or "none")
def test_whoever_falls_silent_is_left_out_and_the_rest_is_exact(tmp_path: Path, lost: dict[str, str]) -> None:
    vector, report, _ = exchange(world(tmp_path), losing(**lost))
    # A vector that has arrived counts, whether or not its client helps to take the masks off.
    stayed = [c for c in CLIENTS if c not in lost["keys"] + lost["shares"] + lost["mask"]]
    assert list(report.clients) == stayed
    np.testing.assert_allclose(vector, sum(told(c) for c in stayed), atol=6 * 2.0**-33)


@pytest.mark.parametrize("stage", ["keys", "shares", "mask"])
def test_too_few_are_not_added_up(tmp_path: Path, stage: str) -> None:
    strict = world(tmp_path, privacy=secure_sum(secure=replace(SECAGG, minimum=5)))
    exchange(strict, losing(**{stage: "a"}))
    with pytest.raises(SecureSumAborted, match=r"only 4 clients .*, at least 5 needed"):
        exchange(strict, losing(**{stage: "ab"}))


def test_too_few_to_take_the_masks_off_reveal_nothing(tmp_path: Path) -> None:
    with pytest.raises(SecureSumAborted):
        exchange(world(tmp_path), losing(unmask="abcd"))


def test_a_threshold_decides_how_many_may_fall_silent_at_the_end(tmp_path: Path) -> None:
    exchange(world(tmp_path), losing(unmask="ab"))
    with pytest.raises(SecureSumAborted):
        exchange(world(tmp_path, privacy=secure_sum(secure=replace(SECAGG, threshold=0.9))), losing(unmask="ab"))


def test_fewer_neighbours_mean_fewer_letters(tmp_path: Path) -> None:
    sparse = world(tmp_path, privacy=secure_sum(secure=replace(SECAGG, neighbours=2)))
    letters = {}
    for name, setting in (("all", world(tmp_path)), ("two", sparse)):
        vector, _, spy = exchange(setting)
        np.testing.assert_allclose(vector, sum(told(c) for c in CLIENTS), atol=1e-8)
        letters[name] = [
            len(letter)
            for reply in spy.replies
            if reply.metadata.message_type == SHARES
            for letter in read_letters(reply.content).values()
        ]
    assert (set(letters["all"]), set(letters["two"])) == ({5}, {2})


def test_a_client_that_fails_in_training_counts_as_one_that_dropped_out(tmp_path: Path) -> None:
    def tell(client: str, given: Contribution) -> Contribution:
        if client == "b":
            raise ValueError("b has no power")
        return given.scale(math.nan) if client == "c" else given

    for separate in (True, False):
        vector, report, _ = exchange(world(tmp_path, phases=[Pull(1, SIZE, tell)], separate=separate))
        np.testing.assert_allclose(vector, sum(told(c) for c in "adef"), atol=1e-8)
        assert report.clients == tuple("adef")
        reasons = dict(report.failures)
        assert reasons["b"] == "ValueError"
        # The text of an error may repeat data; it stays in the node's own log.
        assert reasons["c"] == "ValueError"


def test_a_value_that_does_not_fit_drops_its_client_and_does_not_wrap(tmp_path: Path) -> None:
    def tell(client: str, given: Contribution) -> Contribution:
        return given.scale(1e12) if client == "a" else given

    vector, report, _ = exchange(world(tmp_path, phases=[Pull(1, SIZE, tell)]))
    np.testing.assert_allclose(vector, sum(told(c) for c in "bcdef"), atol=1e-8)
    assert dict(report.failures)["a"] == "ValueError"


# What the server sees.


def arrays_in(messages: Collection[Message]) -> list[np.ndarray]:
    """Return every array of the messages' contents, whatever record it is in."""
    return [
        array.numpy()
        for message in messages
        if message.has_content()
        for record in message.content.array_records.values()
        for array in record.values()
    ]


def test_the_server_never_receives_a_contribution(tmp_path: Path) -> None:
    """Masked words are uniform: no array from a client is, holds or leans towards what it added."""
    size, clients = 4096, CLIENTS
    setting = world(tmp_path, phases=[Pull(2, size)], privacy=secure_sum())
    spies: list[Lossy] = []

    def wrap(grid: Grid) -> Grid:
        spies.append(Lossy(grid))
        return spies[0]

    setting.wrap = wrap
    setting.run()
    received = arrays_in([r for r in spies[0].replies if r.metadata.message_type in (*STAGES, EVALUATE)])
    assert len(received) == 2 * len(clients)
    code = SECAGG.codec(len(clients))
    truths = {c: 2 * vector_of(c, size).numpy() for c in clients}
    for array in received:
        assert array.dtype == np.uint64
        signed = code.decode(array)[:size]
        for truth in truths.values():
            assert not (array[:size] == code.encode(truth)).any()
            assert abs(np.corrcoef(signed, truth)[0, 1]) < 5 / math.sqrt(size)
        top = np.bincount((array >> np.uint64(60)).astype(int), minlength=16)
        assert top.min() > 0.7 * size / 16


def test_the_sum_is_not_in_what_was_received_until_the_masks_are_off(tmp_path: Path) -> None:
    vector, _, spy = exchange(world(tmp_path))
    masked = arrays_in([r for r in spy.replies if r.metadata.message_type == TRAIN])
    assert len(masked) == len(CLIENTS)
    summed = SECAGG.codec(6).decode(np.sum(masked, axis=0, dtype=np.uint64))
    assert np.abs(summed - vector).min() > 1
    # What this test would catch: an unmasked reply is recognised.
    plain = SECAGG.codec(6).encode(told("a"))
    np.testing.assert_allclose(SECAGG.codec(6).decode(plain), told("a"), atol=2.0**-33)


def test_letters_to_the_server_hold_no_secret_of_a_client(tmp_path: Path) -> None:
    """Shares for others are ciphertexts; what is disclosed are shares, one of each secret."""
    _, _, spy = exchange(world(tmp_path))
    kinds = {r.metadata.message_type for r in spy.replies}
    assert kinds == set(STAGES)
    for reply in spy.replies:
        if reply.metadata.message_type == UNMASK:
            for letter in read_letters(reply.content).values():
                assert len(letter["survivors"]) == len(CLIENTS)
                assert letter["mask_keys"] == []


def test_masks_of_two_exchanges_have_nothing_in_common(tmp_path: Path) -> None:
    one, other = (arrays_in([r for r in exchange(world(tmp_path))[2].replies if MASKED in r.content]) for _ in "ab")
    for a, b in itertools.product(one, other):
        assert not (a == b).any()


# What anybody may send.


class Forger(Lossy):
    """Changes the replies of one node in one stage."""

    def __init__(
        self, grid: Grid, stage: str, forge: Callable[[RecordDict], RecordDict | None], node: int = 100
    ) -> None:
        super().__init__(grid)
        self.stage, self.forge, self.node = stage, forge, node

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> list[Message]:
        replies = super().send_and_receive(messages, timeout=timeout)
        return [self._forged(reply) for reply in replies]

    def _forged(self, reply: Message) -> Message:
        about = reply.metadata
        if (about.message_type, about.src_node_id) != (self.stage, self.node) or reply.has_error():
            return reply
        content = self.forge(reply.content)
        if content is not None:
            reply.content = content
        return reply


def without(name: str) -> Callable[[RecordDict], RecordDict]:
    return lambda content: RecordDict({key: record for key, record in content.items() if key != name})


def letters(text: str) -> Callable[[RecordDict], RecordDict]:
    return lambda content: RecordDict({**dict(content.items()), LETTERS: ConfigRecord({"json": text})})


def report(text: str) -> Callable[[RecordDict], RecordDict]:
    return lambda content: RecordDict({**dict(content.items()), REPORT: ConfigRecord({"json": text})})


def from_another(content: RecordDict) -> RecordDict:
    own = read_letters(content)["a"]
    return RecordDict({**dict(content.items()), LETTERS: write_letters({"b": own, "nobody": own})})


def changed(**fields: Any) -> Callable[[RecordDict], RecordDict]:
    def forge(content: RecordDict) -> RecordDict:
        own = {**read_letters(content)["a"], **fields}
        return RecordDict({**dict(content.items()), LETTERS: write_letters({"a": own})})

    return forge


FORGED_LETTERS: dict[str, Callable[[RecordDict], RecordDict]] = {
    "nothing": lambda content: RecordDict({}),
    "no letters": without(LETTERS),
    "no report": without(REPORT),
    "no JSON": letters("{"),
    "a list": letters("[]"),
    "numbers": letters('{"a": {"round_id": 3, "self_masks": 5, "b": 7}}'),
    "nested": letters('{"a": {"b": {"c": {}}, "survivors": {"x": 1}}}'),
    "bad base64": letters('{"a": {"b": {"base64": "%"}}}'),
    "another's letter": from_another,
    "an extra field": changed(extra="x"),
    "short keys": changed(encryption=b"short", self_masks=[b"short"], b=b"short"),
    "zero keys": changed(encryption=bytes(32), masking=bytes(32)),
    "a report without fields": report("{}"),
    "a report of other types": report('{"clients": 3, "seconds": "x", "sent_bytes": null, "failures": [1]}'),
    "a report that is no JSON": report("no"),
}


@pytest.mark.parametrize("kind", FORGED_LETTERS)
@pytest.mark.parametrize("stage", [KEYS, SHARES, UNMASK])
def test_malformed_letters_of_a_node_do_not_stop_the_others(tmp_path: Path, stage: str, kind: str) -> None:
    vector, told_by, _ = exchange(world(tmp_path), wrap=lambda grid: Forger(grid, stage, FORGED_LETTERS[kind]))
    assert set(told_by.clients) >= set("bcdef")
    np.testing.assert_allclose(vector, sum(told(c) for c in told_by.clients), atol=1e-8)


def vectors(**arrays: Any) -> Callable[[RecordDict], RecordDict]:
    record = ArrayRecord({name: array if isinstance(array, Array) else Array(array) for name, array in arrays.items()})
    return lambda content: RecordDict({**dict(content.items()), MASKED: record})


FORGED_VECTORS: dict[str, Callable[[RecordDict], RecordDict]] = {
    "nothing": lambda content: RecordDict({}),
    "no vectors": without(MASKED),
    "floats": vectors(a=np.zeros(SIZE + 1)),
    "short words": vectors(a=np.zeros(SIZE + 1, np.uint32)),
    "a wrong length": vectors(a=np.zeros(SIZE, np.uint64)),
    "a matrix": vectors(a=np.zeros((3, 3), np.uint64)),
    "garbage": vectors(a=Array("uint64", (3,), "numpy.ndarray", b"garbage")),
    "another's": vectors(b=np.zeros(SIZE + 1, np.uint64)),
    "nobody's": vectors(nobody=np.zeros(SIZE + 1, np.uint64)),
}


@pytest.mark.parametrize("kind", FORGED_VECTORS)
def test_malformed_vectors_of_a_node_do_not_stop_the_others(tmp_path: Path, kind: str) -> None:
    vector, told_by, _ = exchange(world(tmp_path), wrap=lambda grid: Forger(grid, TRAIN, FORGED_VECTORS[kind]))
    assert told_by.clients == tuple("bcdef")
    np.testing.assert_allclose(vector, sum(told(c) for c in "bcdef"), atol=1e-8)


@pytest.mark.parametrize("stage", STAGES)
def test_a_node_that_breaks_down_is_named(tmp_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = world(tmp_path)
    inner = setting.grid()
    deliver = inner._deliver

    def breaks(message: Message) -> Message:
        if (message.metadata.message_type, message.metadata.dst_node_id) == (stage, 100):
            message.content = RecordDict({})
        return deliver(message)

    monkeypatch.setattr(inner, "_deliver", breaks)
    vector, told_by, _ = exchange(setting, wrap=lambda grid: inner)
    np.testing.assert_allclose(vector, sum(told(c) for c in told_by.clients), atol=1e-8)
    assert [who for who, _ in told_by.failures] == ["node 100"]


# The layer.


def test_other_messages_pass_and_so_do_none(tmp_path: Path) -> None:
    spy = Lossy(world(tmp_path).grid())
    grid = SecureSumGrid(spy, WordCode(SECAGG, None), SEED)
    assert list(grid.send_and_receive([])) == []
    content = RecordDict({INSTRUCTION: Instruction("{}").to_record(), VERSIONS: versions_record()})
    ask = grid.create_message(content, "query.describe", 100, "1")
    (reply,) = grid.send_and_receive([ask])
    assert "clients" in reply.content.config_records[REPORT]
    assert sorted(grid.get_node_ids()) == sorted(spy.get_node_ids())
    ids = list(grid.push_messages([ask]))
    assert len(list(grid.pull_messages(ids))) == 1
    marker: Any = object()
    grid.set_run(marker)
    assert grid.run is marker


def test_evaluations_are_summed_the_same_way(tmp_path: Path) -> None:
    setting = world(tmp_path, privacy=secure_sum(metrics=SummedMetrics((), 0.0)), metrics=("train/closeness",))
    grid = SecureSumGrid(setting.grid(), WordCode(SECAGG, None), SEED)
    (reply,) = grid.send_and_receive(orders(grid, setting, EVALUATE, 2))
    summed = decode_contribution(reply.content).tensors[SUM].numpy()
    np.testing.assert_allclose(summed, [6 * 1 / (1 + 3), 6.0], atol=1e-8)


# Runs.


def test_a_secure_run_ends_where_the_plain_one_does(tmp_path: Path) -> None:
    """The mean of weighted deltas, up to quantisation, on one node or many."""
    states = []
    for separate in (True, False):
        setting = Guarded(tmp_path / str(separate), secure_sum(), [Pull(3)], separate=separate)
        states.append(setting.run().artefacts["pull"]["w"])
    expected = torch.stack([vector_of(c, 8) for c in CLIENTS]).mean(0)
    for state in states:
        torch.testing.assert_close(state, expected, rtol=0, atol=1e-8)


def test_a_distributed_run_has_the_noise_of_its_minimum_and_the_same_state_on_any_layout(tmp_path: Path) -> None:
    size, privacy = 2**14, protection(
        mechanism=Skellam(Rounding(0.001, 0.6)),
        secure=replace(SECAGG, minimum=6),
        metrics=WithheldMetrics(),
        noise_multiplier=2.0,
    )  # fmt: skip
    states = []
    for separate in (True, False):
        run = Guarded(tmp_path / str(separate), privacy, [Pull(1, size)], separate=separate).run()
        states.append(run.artefacts["pull"]["w"])
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=1e-12)
    mean = torch.stack([vector_of(c, size) / 3 for c in CLIENTS]).mean(0)
    assert float((states[0] - mean).std()) == pytest.approx(2.0 * 1.001 * (6 / 5) ** 0.5 / 6, rel=0.02)


def test_a_round_below_the_minimum_is_given_up_and_a_phase_of_such_rounds_fails(tmp_path: Path) -> None:
    def failing(rounds: Collection[int]) -> Callable[[Grid], Grid]:
        def loses(message: Message) -> bool:
            order = Instruction.of(message.content)
            return message.metadata.message_type == KEYS and order.round in rounds

        return lambda grid: Lossy(grid, loses)

    once = world(tmp_path / "once", phases=[Pull(2)], evaluate_every=9, wrap=failing([1]))
    assert once.run().artefacts["pull"]["w"].any()
    with pytest.raises(SecureSumAborted, match="only 0 clients sent keys"):
        world(tmp_path / "never", phases=[Pull(2)], evaluate_every=9, wrap=failing([1, 2])).run()
