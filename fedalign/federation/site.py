"""What a node works with: the method's phases, its clients' data, and their memory between rounds."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from flwr.app import Context
from safetensors.torch import load_file, save_file
from torch import Tensor

from fedalign.compression.base import Compression, NoCompression
from fedalign.data.federated import ClientInfo, FederatedData, Role
from fedalign.errors import DataError, UserError
from fedalign.federation.records import decode_tensors, encode_tensors
from fedalign.methods.base import Phase
from fedalign.privacy.base import NoPrivacy, Privacy
from fedalign.privacy.local import Unit
from fedalign.privacy.protection import Protection

_KEPT = 2

TAG = re.compile(r"\d+-\d+")
"""How a checkpoint is called: phase and round."""


@dataclass(frozen=True)
class Site:
    """A node's view of a run.

    Parameters
    ----------
    seed : int
    threads : int
        PyTorch threads for local work; part of the config because results depend on it in the last digits.
    phases : sequence of Phase
    data : FederatedData
        Every client that this node can host.
    privacy : Privacy
        What a client does to its contribution before it leaves.
    metrics : sequence of str
        What is told of an evaluation where metrics are summed.
    disjoint : bool
        Whether the partition says that no unit's data are read by two stages.
    compression : Compression
        How a contribution to training becomes smaller before it leaves.
    discreet : bool
        Whether the data are the node's own, so that nothing of them may leave, not even in the text of an error.
    """

    seed: int
    threads: int
    phases: Sequence[Phase[Any]]
    data: FederatedData
    privacy: Privacy = field(default_factory=NoPrivacy)
    metrics: Sequence[str] = ()
    disjoint: bool = False
    compression: Compression = field(default_factory=NoCompression)
    discreet: bool = False

    @property
    def guarded(self) -> bool:
        """Whether errors are told by their kind alone."""
        return self.discreet or isinstance(self.privacy, Protection)

    def check(self, clients: Iterable[str]) -> None:
        """Refuse clients whose data a phase cannot work on, or do not go with the noise that is added on them.

        That is, clients whose stages share what noise protects once, or that hold more units together than delta is
        for.

        Raises
        ------
        UserError
            Naming the client's trouble and the fix.
        """
        local = self.privacy.local if isinstance(self.privacy, Protection) else None
        training = {client.name for client in self.data.clients if client.role is Role.TRAIN}
        units: Counter[str] = Counter()
        for client in clients:
            shard = self.data.shard(client)
            for phase in self.phases:
                phase.check(shard)
                if local is not None and client in training and phase.rounds:
                    units[phase.name] += len(units_of(phase, local.unit, shard))
            if local is not None and self.disjoint:
                check_apart(self.phases, local.unit, client, shard)
        if local is not None and isinstance(self.privacy, Protection) and self.privacy.delta is not None:
            check_enough(self.privacy.delta, local.unit, units)


def hosted(clients: Sequence[ClientInfo], node_config: Mapping[str, Any]) -> list[ClientInfo]:
    """Return which clients a node hosts: all of its own data, or its share of data that every node sees.

    Parameters
    ----------
    clients : sequence of ClientInfo
    node_config : mapping
        With ``data-path`` the data are the node's own. Otherwise ``partition-id`` of ``num-partitions`` says which
        share it hosts: every so-manieth client from there on.
    """
    if "data-path" in node_config or "partition-id" not in node_config:
        return list(clients)
    first = int(node_config["partition-id"])
    return list(clients[first :: int(node_config.get("num-partitions", len(clients)))])


def units_of(phase: Phase[Any], unit: Unit, shard: Any) -> Sequence[str]:
    """Return what a phase reads of a shard that noise protects one by one, as far as the phase tells."""
    return phase.users(shard) if unit == "user" else phase.examples(shard)


def check_enough(delta: float, unit: Unit, units: Mapping[str, int]) -> None:
    """Refuse a delta at which giving a random unit of a phase away would pass for private.

    Parameters
    ----------
    delta : float
    unit : {"example", "user"}
    units : mapping from phase name to int
        How many there are; 0 where that is not known.

    Raises
    ------
    UserError
        Naming the phase.
    """
    for phase, number in units.items():
        if delta * number >= 1:
            raise UserError(
                f"privacy.delta={delta:g}: phase {phase!r} reads {number} {unit}s, and at one over their number or "
                f"more giving one of them away would pass for private; set it well below {1 / number:.2g}"
            )


def check_apart(phases: Sequence[Phase[Any]], unit: Unit, client: str, shard: Any) -> None:
    """Refuse a shard in which two stages read the same unit, though the partition says that none do.

    Raises
    ------
    DataError
        Naming the unit and two of the stages.
    """
    seen: dict[str, str] = {}
    for phase in phases:
        # What is only evaluated is not trained on.
        if phase.stage is None or not phase.rounds:
            continue
        for name in units_of(phase, unit, shard):
            stage = seen.setdefault(name, phase.stage)
            if stage != phase.stage:
                raise DataError(
                    f"partition: the {unit} {name!r} of client {client!r} is in the stages {stage!r} and "
                    f"{phase.stage!r}, and the noise is chosen as if no {unit} were in two; keep stages apart, or "
                    "choose a partition that does not promise it"
                )


class OpenSite(Protocol):
    """Builds the site of a run from its configuration; must be cheap when asked for the same run again."""

    def __call__(self, config: str, node_config: Mapping[str, Any]) -> Site:
        """Return the site for a resolved run configuration (JSON) on the node with ``node_config``."""


def load_memory(context: Context, phase: str, client: str) -> dict[str, Tensor]:
    """Return what a client kept since its last round of a phase; empty before the first."""
    record = context.state.array_records.get(_key(phase, client))
    return {} if record is None else decode_tensors(record)


def store_memory(context: Context, phase: str, client: str, memory: Mapping[str, Tensor]) -> None:
    """Keep a client's memory in the node's own Flower state; it never travels."""
    if memory:
        context.state[_key(phase, client)] = encode_tensors(memory)


def forget_memory(context: Context, phase: str, client: str) -> None:
    """Drop a client's memory, after a round that it did not finish."""
    context.state.pop(_key(phase, client), None)


def save_memories(context: Context, directory: Path, tag: str) -> None:
    """Write all memories of a node to ``directory/tag`` and remove all but the newest two tags."""
    target = directory / tag / _node_folder(context)
    target.mkdir(parents=True, exist_ok=True)
    for key, record in context.state.array_records.items():
        tensors = {name: tensor.contiguous() for name, tensor in decode_tensors(record).items()}
        save_file(tensors, target / _file_name(key), metadata={"key": key})
    # What else lies in the directory is somebody else's.
    saved = [path for path in directory.iterdir() if TAG.fullmatch(path.name) and path.is_dir()]
    for old in sorted(saved, key=lambda path: path.stat().st_mtime)[:-_KEPT]:
        shutil.rmtree(old, ignore_errors=True)


def restore_memories(context: Context, directory: Path, tag: str) -> None:
    """Replace a node's memories by those of ``directory/tag``."""
    from safetensors import safe_open

    for key in list(context.state.array_records):
        del context.state[key]
    for path in sorted((directory / tag / _node_folder(context)).glob("*.safetensors")):
        with safe_open(path, "pt") as opened:
            key = opened.metadata()["key"]
        context.state[key] = encode_tensors(load_file(path))


def _key(phase: str, client: str) -> str:
    return f"memory/{phase}/{client}"


def _node_folder(context: Context) -> str:
    """Name a node by its place in the federation, not by its id, which Flower draws anew for every run."""
    return f"node-{context.node_config.get('partition-id', 'all')}"


def _file_name(key: str) -> str:
    return hashlib.blake2b(key.encode(), digest_size=8).hexdigest() + ".safetensors"
