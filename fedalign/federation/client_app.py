"""The client side of every method: one Flower ClientApp that runs a phase's local work and replies with named sums."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedalign.federation import secure_client
from fedalign.federation.batching import Batching
from fedalign.federation.description import description_record
from fedalign.federation.desk import EvaluationDesk, TrainingDesk, answer
from fedalign.federation.failures import SiteFailed, failure_of
from fedalign.federation.messages import REPORT, Instruction
from fedalign.federation.site import OpenSite, Site, hosted, restore_memories, save_memories
from fedalign.federation.versions import check_versions

Handle = Callable[[Message, Context], Message]


def make_client_app(open_site: OpenSite, state_path: Path | None = None, batching: Batching | None = None) -> ClientApp:
    """Return the ClientApp that serves any method on any engine.

    Parameters
    ----------
    open_site : callable
        Builds the node's site from the configuration that every message carries.
    state_path : Path or None
        Where the node writes its clients' memories at a checkpoint; the node configuration's
        ``state-path`` is used where this is None.
    batching : Batching or None
        How many of the node's clients are trained side by side; None trains one by one.
    """
    app = ClientApp()

    def site_of(message: Message, context: Context) -> tuple[Site, Instruction]:
        instruction = Instruction.of(message.content)
        site = open_site(instruction.config, context.node_config)
        if torch.get_num_threads() != site.threads:
            torch.set_num_threads(site.threads)
        return site, instruction

    @app.train()
    @_discreetly
    def train(message: Message, context: Context) -> Message:
        site, instruction = site_of(message, context)
        return _reply(message, answer(message, context, TrainingDesk(site, instruction, message, context, batching)))

    @app.evaluate()
    @_discreetly
    def evaluate(message: Message, context: Context) -> Message:
        site, instruction = site_of(message, context)
        return _reply(message, answer(message, context, EvaluationDesk(site, instruction, message)))

    @app.query("secure_keys")
    @_discreetly
    def secure_keys(message: Message, context: Context) -> Message:
        site, _ = site_of(message, context)
        return _reply(message, secure_client.advertise(message, context, site))

    @app.query("secure_shares")
    @_discreetly
    def secure_shares(message: Message, context: Context) -> Message:
        return _reply(message, secure_client.share(message, context))

    @app.query("secure_unmask")
    @_discreetly
    def secure_unmask(message: Message, context: Context) -> Message:
        return _reply(message, secure_client.unmask(message, context))

    @app.query("describe")
    @_discreetly
    def describe(message: Message, context: Context) -> Message:
        # First, since a configuration of another version may not even be readable.
        check_versions(message.content, "this node", "the server")
        site, _ = site_of(message, context)
        mine = hosted(site.data.clients, context.node_config)
        site.check(info.name for info in mine)
        return _reply(message, description_record(mine))

    @app.query("save")
    @_discreetly
    def save(message: Message, context: Context) -> Message:
        directory, _, tag = _checkpoint_of(message, context, state_path)
        if directory is not None:
            save_memories(context, directory, tag)
        return _reply(message, _answer(directory is not None, bool(context.state.array_records)))

    @app.query("restore")
    @_discreetly
    def restore(message: Message, context: Context) -> Message:
        directory, _, tag = _checkpoint_of(message, context, state_path)
        found = directory is not None and (directory / tag).is_dir()
        if directory is not None and found:
            restore_memories(context, directory, tag)
        return _reply(message, _answer(found, found))

    return app


def _discreetly(handle: Handle) -> Handle:
    """Return a handler whose errors say on a node with data of its own no more than they may.

    Flower sends the text of an error to the server.
    """

    @functools.wraps(handle)
    def guarded(message: Message, context: Context) -> Message:
        try:
            return handle(message, context)
        except Exception as error:
            if not has_own_data(context):
                raise
            told = failure_of(f"node {context.node_id}", error, guarded=True)
        raise SiteFailed(f"{told}; the node's own log says more")

    return guarded


def has_own_data(context: Context) -> bool:
    """Tell whether a node reads data that are its own, and not what the run's configuration names."""
    return "data-path" in context.node_config


def _checkpoint_of(message: Message, context: Context, state_path: Path | None) -> tuple[Path | None, Instruction, str]:
    configured: Any = context.node_config.get("state-path")
    directory = state_path if state_path is not None else Path(configured) if configured else None
    instruction = Instruction.of(message.content)
    return directory, instruction, f"{instruction.phase}-{instruction.round}"


def _answer(done: bool, kept: bool) -> RecordDict:
    return RecordDict({REPORT: ConfigRecord({"done": done, "kept": kept})})


def _reply(message: Message, content: RecordDict) -> Message:
    return Message(content, reply_to=message)
