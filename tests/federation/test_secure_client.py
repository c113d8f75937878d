"""A node's side of a secure sum: secrets wait in its own state, are asked for once, and are gone afterwards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Message, RecordDict

from fedalign.contribution import Contribution
from fedalign.engines.in_process import InProcessGrid
from fedalign.federation.messages import EVALUATE, INSTRUCTION, STATE, TRAIN, Instruction, NodeReport, Terms
from fedalign.federation.records import encode_tensors
from fedalign.federation.secure.coordinator import Coordinator
from fedalign.federation.secure.letters import (
    KEYS,
    LETTERS,
    MASKED,
    SHARES,
    UNMASK,
    read_letters,
    read_vectors,
    write_letters,
)
from fedalign.federation.secure.messages import Disclosure, PublicKeys
from fedalign.federation.site import save_memories

from .guarded import CLIENTS, SECAGG, Guarded, Pull, protection, secure_sum, vector_of

TERMS = Terms(cohort=6, size=9)


class Node:
    """One node that hosts everybody, asked stage by stage as the server does."""

    def __init__(self, world: Guarded) -> None:
        self.grid: InProcessGrid = world.grid()
        self.context = self.grid.contexts[1]
        self.coordinator = Coordinator("round", list(CLIENTS), SECAGG, 9)

    def ask(self, kind: str, letters: dict[str, Any]) -> Message:
        order = Instruction("{}", 0, 1, tuple(letters), TERMS)
        content = RecordDict({INSTRUCTION: order.to_record(), LETTERS: write_letters(letters)})
        if kind == TRAIN:
            content[STATE] = encode_tensors({"w": torch.zeros(8, dtype=torch.float64)})
        (reply,) = self.grid.send_and_receive([self.grid.create_message(content, kind, 1, "1")])
        return reply

    def keys(self) -> Message:
        reply = self.ask(KEYS, {client: {"round_id": "round"} for client in CLIENTS})
        for client, fields in read_letters(reply.content).items():
            self.coordinator.receive_keys(client, PublicKeys.from_dict(fields))
        return reply

    def shares(self) -> Message:
        hoods = self.coordinator.neighbourhoods()
        letters = {c: {name: keys.to_dict() for name, keys in others.items()} for c, others in hoods.items()}
        reply = self.ask(SHARES, letters)
        for client, fields in read_letters(reply.content).items():
            self.coordinator.receive_shares(client, fields)
        return reply

    def masks(self) -> Message:
        reply = self.ask(TRAIN, self.coordinator.inboxes())
        for client, vector in read_vectors(reply.content):
            self.coordinator.receive_masked(client, vector)
        return reply

    def unmasked(self) -> Message:
        requests = {client: request.to_dict() for client, request in self.coordinator.unmask_requests().items()}
        reply = self.ask(UNMASK, requests)
        for client, fields in read_letters(reply.content).items():
            self.coordinator.receive_unmask(client, Disclosure.from_dict(fields))
        return reply

    def stage_of(self, client: str) -> str | None:
        record = self.context.state.config_records.get(f"secure/{client}")
        return None if record is None else json.loads(bytes(record["party"]))["stage"]  # type: ignore[arg-type]


def node(tmp_path: Path, **changes: Any) -> Node:
    return Node(Guarded(tmp_path, **{"privacy": secure_sum(), **changes}))


def test_four_messages_make_the_sum_and_the_secrets_are_gone(tmp_path: Path) -> None:
    at = node(tmp_path)
    stages = []
    for step in (at.keys, at.shares, at.masks, at.unmasked):
        step()
        stages.append(at.stage_of("a"))
    assert stages == ["share", "mask", "unmask", None]
    summed = SECAGG.codec(6).decode(at.coordinator.result())
    expected = sum(np.append(2 * vector_of(c, 8).numpy(), 2.0) for c in CLIENTS)
    np.testing.assert_allclose(summed, expected, atol=1e-8)


def test_a_report_tells_who_answered_and_what_the_work_took(tmp_path: Path) -> None:
    at = node(tmp_path)
    assert NodeReport.of(at.keys().content) == NodeReport(CLIENTS, 0.0, 0)
    assert NodeReport.of(at.shares().content) == NodeReport(CLIENTS, 0.0, 0)
    told = NodeReport.of(at.masks().content)
    assert (told.clients, told.sent_bytes) == (CLIENTS, 6 * 9 * 8)
    assert told.seconds > 0


def test_a_client_that_fails_is_left_out_of_the_masked_vectors_and_named(tmp_path: Path) -> None:
    def tell(client: str, told: Contribution) -> Contribution:
        if client == "c":
            raise RuntimeError("no power")
        return told

    at = node(tmp_path, phases=[Pull(tell=tell)])
    at.keys()
    at.shares()
    reply = at.masks()
    assert list(reply.content.array_records[MASKED]) == list("abdef")
    assert NodeReport.of(reply.content).failures == (("c", "RuntimeError"),)
    assert at.stage_of("c") == "mask"


def test_a_client_is_asked_for_its_vector_once(tmp_path: Path) -> None:
    """A second vector under the same masks would tell the difference of the two."""
    at = node(tmp_path)
    at.keys()
    at.shares()
    inboxes = at.coordinator.inboxes()
    assert len(at.ask(TRAIN, inboxes).content.array_records[MASKED]) == 6
    again = at.ask(TRAIN, inboxes)
    assert len(again.content.array_records[MASKED]) == 0
    assert {who for who, _ in NodeReport.of(again.content).failures} == set(CLIENTS)


def test_secrets_are_disclosed_once(tmp_path: Path) -> None:
    at = node(tmp_path)
    for step in (at.keys, at.shares, at.masks):
        step()
    requests = {client: request.to_dict() for client, request in at.coordinator.unmask_requests().items()}
    turned = {c: {**r, "dropped": r["survivors"][:1], "survivors": r["survivors"][1:]} for c, r in requests.items()}
    assert len(read_letters(at.ask(UNMASK, requests).content)) == 6
    for asked in (requests, turned):
        reply = at.ask(UNMASK, asked)
        assert read_letters(reply.content) == {}
        assert "takes part in no secure sum" in NodeReport.of(reply.content).failures[0][1]


@pytest.mark.parametrize("stage", [SHARES, UNMASK])
def test_stages_out_of_turn_are_refused_client_by_client(tmp_path: Path, stage: str) -> None:
    at = node(tmp_path)
    reply = at.ask(stage, {"a": {}})
    assert not reply.has_error()
    assert read_letters(reply.content) == {}
    assert "a takes part in no secure sum" in NodeReport.of(reply.content).failures[0][1]


def test_a_training_without_keys_is_refused_after_the_fact(tmp_path: Path) -> None:
    at = node(tmp_path)
    reply = at.ask(TRAIN, {"a": {}})
    assert len(reply.content.array_records[MASKED]) == 0


def test_a_run_without_a_secure_sum_hands_out_no_keys(tmp_path: Path) -> None:
    reply = node(tmp_path, privacy=protection()).ask(KEYS, {"a": {"round_id": "x"}})
    assert reply.has_error()
    assert "this run asks for no secure sum" in str(reply.error.reason)


@pytest.mark.parametrize("kind", [TRAIN, EVALUATE])
def test_whoever_leaves_the_letters_out_gets_nothing_in_the_open(tmp_path: Path, kind: str) -> None:
    world = Guarded(tmp_path, secure_sum())
    grid, order = world.grid(), Instruction("{}", 0, 1, CLIENTS, TERMS)
    state = encode_tensors({"w": torch.zeros(8, dtype=torch.float64)})
    content = RecordDict({STATE: state, INSTRUCTION: order.to_record()})
    (reply,) = grid.send_and_receive([grid.create_message(content, kind, 1, "1")])
    assert reply.has_error()
    assert "under masks only" in str(reply.error.reason)


def test_a_new_exchange_begins_with_new_secrets(tmp_path: Path) -> None:
    at = node(tmp_path)
    first = read_letters(at.keys().content)
    at.coordinator = Coordinator("round", list(CLIENTS), SECAGG, 9)
    second = read_letters(at.keys().content)
    assert first["a"]["masking"] != second["a"]["masking"]


def test_secrets_are_not_saved_with_what_a_client_remembers(tmp_path: Path) -> None:
    at = node(tmp_path)
    at.keys()
    save_memories(at.context, tmp_path / "saved", "0-1")
    assert list((tmp_path / "saved").rglob("*.safetensors")) == []
