"""The client side of every method: one Flower ClientApp that runs a phase's local work and replies with named sums."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedalign.contribution import Contribution, RunningTotal
from fedalign.data.federated import ClientInfo
from fedalign.federation.messages import REPORT, STATE, Instruction, NodeReport
from fedalign.federation.records import decode_tensors, encode_contribution, payload_bytes
from fedalign.federation.site import (
    OpenSite,
    Site,
    forget_memory,
    load_memory,
    restore_memories,
    save_memories,
    store_memory,
)
from fedalign.rng import Streams

_log = logging.getLogger(__name__)

Work = Callable[[str], Contribution]


def make_client_app(open_site: OpenSite, state_path: Path | None = None) -> ClientApp:
    """Return the ClientApp that serves any method on any engine.

    Parameters
    ----------
    open_site : callable
        Builds the node's site from the configuration that every message carries.
    state_path : Path or None
        Where the node writes its clients' memories at a checkpoint; the node configuration's
        ``state-path`` is used where this is None.
    """
    app = ClientApp()

    def site_of(message: Message, context: Context) -> tuple[Site, Instruction]:
        instruction = Instruction.of(message.content)
        site = open_site(instruction.config, context.node_config)
        if torch.get_num_threads() != site.threads:
            torch.set_num_threads(site.threads)
        return site, instruction

    @app.train()
    def train(message: Message, context: Context) -> Message:
        site, instruction = site_of(message, context)
        return _reply(message, _train_clients(message, context, site, instruction))

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        site, instruction = site_of(message, context)
        phase, state = site.phases[instruction.phase], decode_tensors(message.content.array_records[STATE])

        def work(client: str) -> Contribution:
            streams = Streams(site.seed, phase.name, instruction.round, client)
            return phase.evaluate(state, site.data.shard(client), streams)

        return _reply(message, _add_up(instruction.clients, work))

    @app.query("describe")
    def describe(message: Message, context: Context) -> Message:
        site, _ = site_of(message, context)
        hosted = [(info.name, info.role.value) for info in _hosted(site, context)]
        site.check(name for name, _ in hosted)
        record = ConfigRecord({"clients": json.dumps(hosted)})
        return _reply(message, RecordDict({REPORT: record}))

    @app.query("save")
    def save(message: Message, context: Context) -> Message:
        directory, _, tag = _checkpoint_of(message, context, state_path)
        if directory is not None:
            save_memories(context, directory, tag)
        return _reply(message, _answer(directory is not None, bool(context.state.array_records)))

    @app.query("restore")
    def restore(message: Message, context: Context) -> Message:
        directory, _, tag = _checkpoint_of(message, context, state_path)
        found = directory is not None and (directory / tag).is_dir()
        if directory is not None and found:
            restore_memories(context, directory, tag)
        return _reply(message, _answer(found, found))

    return app


def _train_clients(message: Message, context: Context, site: Site, instruction: Instruction) -> RecordDict:
    """Run a phase's local work for the clients of an instruction."""
    phase, state = site.phases[instruction.phase], decode_tensors(message.content.array_records[STATE])

    def work(client: str) -> Contribution:
        memory = load_memory(context, phase.name, client)
        streams = Streams(site.seed, phase.name, instruction.round, client)
        try:
            contribution = phase.local(state, site.data.shard(client), streams, memory)
        except Exception:
            forget_memory(context, phase.name, client)
            raise
        store_memory(context, phase.name, client, memory)
        return contribution

    return _add_up(instruction.clients, work)


def _add_up(clients: Iterable[str], work: Work) -> RecordDict:
    """Do the work for every client and return the sum with a report; one that fails is left out and named."""
    running, only = RunningTotal(), None
    failures: list[tuple[str, str]] = []
    done: list[str] = []
    sent, seconds = 0, 0.0
    for client in clients:
        start = time.perf_counter()
        try:
            contribution = work(client)
        except Exception as error:
            _log.debug("client %s failed", client, exc_info=True)
            failures.append((client, f"{type(error).__name__}: {error}"))
            continue
        seconds += time.perf_counter() - start
        sent += payload_bytes(contribution.tensors) + 8 * len(contribution.scalars)
        done.append(client)
        # A single reply keeps its own precision: as float64 it would be twice as long and no more exact.
        if len(done) == 1:
            only = contribution
            continue
        if only is not None:
            running.add(only)
            only = None
        running.add(contribution)
    content = encode_contribution(only if only is not None else running.value())
    content[REPORT] = NodeReport(tuple(done), seconds, sent, tuple(failures)).to_record()
    return content


def _hosted(site: Site, context: Context) -> list[ClientInfo]:
    """Return the node's own client when it is one partition of many, else every client of its data."""
    clients = list(site.data.clients)
    if "data-path" in context.node_config or "partition-id" not in context.node_config:
        return clients
    return [clients[int(context.node_config["partition-id"])]]


def _checkpoint_of(message: Message, context: Context, state_path: Path | None) -> tuple[Path | None, Instruction, str]:
    configured: Any = context.node_config.get("state-path")
    directory = state_path if state_path is not None else Path(configured) if configured else None
    instruction = Instruction.of(message.content)
    return directory, instruction, f"{instruction.phase}-{instruction.round}"


def _answer(done: bool, kept: bool) -> RecordDict:
    return RecordDict({REPORT: ConfigRecord({"done": done, "kept": kept})})


def _reply(message: Message, content: RecordDict) -> Message:
    return Message(content, reply_to=message)
