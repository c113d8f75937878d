"""What the server tells a node, as one Flower config record."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from flwr.app import ConfigRecord, RecordDict

from fedalign.federation.untrusted import one_line, read_amount, read_count, read_names, read_object

INSTRUCTION = "instruction"
STATE = "state"
REPORT = "report"

TRAIN, EVALUATE = "train", "evaluate"
DESCRIBE, SAVE, RESTORE = "query.describe", "query.save", "query.restore"


@dataclass(frozen=True)
class Terms:
    """Public numbers that every client of an exchange protects its contribution by.

    Parameters
    ----------
    bound : float
        L2 bound of a client's vector; 0 where nothing is clipped.
    noise_multiplier : float
        Of noise that clients add themselves.
    cohort : int
        Clients that were asked.
    size : int
        Numbers in the vector that is added up where the sum is secure; 0 where contributions travel by name.
    """

    bound: float = 0.0
    noise_multiplier: float = 0.0
    cohort: int = 0
    size: int = 0

    @staticmethod
    def of(fields: Mapping[str, Any]) -> Terms:
        """Read terms that came over the wire.

        Raises
        ------
        ValueError
            If one is missing, negative, or no number.
        """
        bound, noise = read_amount(fields, "bound"), read_amount(fields, "noise_multiplier")
        return Terms(bound, noise, read_count(fields, "cohort"), read_count(fields, "size"))


@dataclass(frozen=True)
class Instruction:
    """One order from the server.

    Parameters
    ----------
    config : str
        The resolved run configuration as JSON; the node builds the same method and data from it.
    phase : int
        Index of the phase in the method.
    round : int
    clients : tuple of str
        Which of the node's clients the order is for.
    terms : Terms
    """

    config: str
    phase: int = 0
    round: int = 0
    clients: tuple[str, ...] = ()
    terms: Terms = field(default_factory=Terms)

    def to_record(self) -> ConfigRecord:
        """Return the record that travels."""
        return ConfigRecord({"json": json.dumps(asdict(self))})

    @staticmethod
    def of(content: RecordDict) -> Instruction:
        """Read the instruction of a message's content.

        Raises
        ------
        ValueError
            If there is none, or it is malformed.
        """
        try:
            told = content.config_records[INSTRUCTION]["json"]
        except KeyError as error:
            raise ValueError(f"the message holds no instruction: {error!r}") from None
        fields = read_object(told, "the instruction")
        terms, config = fields.get("terms"), fields.get("config")
        if not isinstance(config, str) or not isinstance(terms, dict):
            raise ValueError("the instruction holds no configuration, or no terms")
        phase, number = read_count(fields, "phase"), read_count(fields, "round")
        return Instruction(config, phase, number, read_names(fields, "clients"), Terms.of(terms))


@dataclass(frozen=True)
class NodeReport:
    """What a node says about its own work, beside the sums.

    Parameters
    ----------
    clients : tuple of str
        Those that contributed, in the order they were asked.
    seconds : float
        Time spent in the phase's own code.
    sent_bytes : int
        Size of the contributions one by one, as if every client had sent its own.
    failures : tuple of (client, reason)
    retries : int
        How often the work was given to a worker anew, after one had died.
    data_s, message_s : float
        Of ``seconds``, those that clients waited for their data; and, besides, those that the messages themselves took.
    """

    clients: tuple[str, ...]
    seconds: float
    sent_bytes: int
    failures: tuple[tuple[str, str], ...] = ()
    retries: int = 0
    data_s: float = 0.0
    message_s: float = 0.0

    def to_record(self) -> ConfigRecord:
        """Return the record that travels."""
        return ConfigRecord({"json": json.dumps(asdict(self))})

    @staticmethod
    def of(content: RecordDict) -> NodeReport:
        """Read the report of a reply's content.

        Raises
        ------
        ValueError
            If there is none, or it is malformed.
        """
        try:
            told = content.config_records[REPORT]["json"]
        except KeyError as error:
            raise ValueError(f"the reply holds no report: {error!r}") from None
        fields = read_object(told, "the report")
        clients, seconds = read_names(fields, "clients"), read_amount(fields, "seconds")
        sent_bytes, retries = read_count(fields, "sent_bytes"), read_count(fields, "retries")
        data_s, message_s = read_amount(fields, "data_s"), read_amount(fields, "message_s")
        failures = _failures(fields.get("failures"))
        return NodeReport(clients, seconds, sent_bytes, failures, retries, data_s, message_s)


def _failures(told: object) -> tuple[tuple[str, str], ...]:
    """Read who failed and why; the reasons become single short lines."""
    if not isinstance(told, list):
        raise ValueError("failures is not a list")
    for pair in told:
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(part, str) for part in pair)):
            raise ValueError("failures does not hold pairs of texts")
    return tuple((client, one_line(reason)) for client, reason in told)
