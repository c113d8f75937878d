"""A node's side of a secure sum: its clients' secrets between the messages of one exchange."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

from flwr.app import ConfigRecord, Context, Message, RecordDict

from fedalign.federation.failures import failure_of
from fedalign.federation.messages import REPORT, NodeReport
from fedalign.federation.secure.fixed_point import Words
from fedalign.federation.secure.letters import (
    LETTERS,
    MASKED,
    read_letters,
    write_letters,
    write_vectors,
)
from fedalign.federation.secure.messages import PublicKeys, UnmaskRequest
from fedalign.federation.secure.party import Party
from fedalign.federation.secure.settings import SecAgg
from fedalign.federation.site import Site
from fedalign.privacy.protection import Protection

Answer = Callable[[str, dict[str, Any]], Mapping[str, Any]]


def advertise(message: Message, context: Context, site: Site) -> RecordDict:
    """Return public keys of the clients named; their secrets wait in the node's state."""
    settings = _settings(site)

    def answer(client: str, letter: dict[str, Any]) -> Mapping[str, Any]:
        party = Party.create(client, str(letter["round_id"]), settings)
        keys = party.advertise()
        _keep(context, client, party)
        return keys.to_dict()

    return _answer_each(message, answer)


def share(message: Message, context: Context) -> RecordDict:
    """Return, by client, its secrets' shares encrypted for each neighbour."""

    def answer(client: str, letter: dict[str, Any]) -> Mapping[str, Any]:
        party = _recall(context, client)
        shares = party.share({name: PublicKeys.from_dict(keys) for name, keys in letter.items()})
        _keep(context, client, party)
        return shares

    return _answer_each(message, answer)


def mask(message: Message, context: Context, work: Callable[[str], tuple[Words, float]]) -> RecordDict:
    """Let each client work, and return its words under masks.

    Parameters
    ----------
    message : Message
        Holds, by client, the shares that its neighbours sent it.
    context : Context
    work : callable
        From a client to its words and the seconds that they took.
    """
    masked: dict[str, Words] = {}
    failures: list[tuple[str, str]] = []
    seconds, sent = 0.0, 0
    for client, inbox in read_letters(message.content).items():
        try:
            words, took = work(client)
            party = _recall(context, client)
            vector = party.mask(inbox, words)
            _keep(context, client, party)
        except Exception as error:
            failures.append((client, failure_of(client, error, guarded=True)))
            continue
        masked[client] = vector
        seconds += took
        sent += vector.nbytes
    report = NodeReport(tuple(masked), seconds, sent, tuple(failures))
    return RecordDict({MASKED: write_vectors(masked), REPORT: report.to_record()})


def unmask(message: Message, context: Context) -> RecordDict:
    """Return, by client, the shares of others' secrets that take the masks off; then its own secrets are gone."""

    def answer(client: str, letter: dict[str, Any]) -> Mapping[str, Any]:
        party = _recall(context, client)
        disclosed = party.unmask(UnmaskRequest.from_dict(letter))
        context.state.pop(_key(client), None)
        return disclosed.to_dict()

    return _answer_each(message, answer)


def _answer_each(message: Message, answer: Answer) -> RecordDict:
    """Answer every client's letter; one that cannot be answered is left out and named."""
    answers: dict[str, Mapping[str, Any]] = {}
    failures: list[tuple[str, str]] = []
    for client, letter in read_letters(message.content).items():
        try:
            answers[client] = answer(client, letter)
        except Exception as error:
            failures.append((client, failure_of(client, error, guarded=False)))
    report = NodeReport(tuple(answers), 0.0, 0, tuple(failures))
    return RecordDict({LETTERS: write_letters(answers), REPORT: report.to_record()})


def _settings(site: Site) -> SecAgg:
    if not isinstance(site.privacy, Protection) or not isinstance(site.privacy.secure, SecAgg):
        raise ValueError("this run asks for no secure sum")
    return site.privacy.secure


def _key(client: str) -> str:
    return f"secure/{client}"


def _keep(context: Context, client: str, party: Party) -> None:
    context.state[_key(client)] = ConfigRecord({"party": party.to_bytes()})


def _recall(context: Context, client: str) -> Party:
    record = context.state.config_records.get(_key(client))
    if record is None:
        raise ValueError(f"{client} takes part in no secure sum")
    return Party.from_bytes(cast(bytes, record["party"]))
