"""Checkpoints: everything the server needs to go on, as safetensors and JSON, each made visible by one rename."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from fedalign.contribution import State
from fedalign.errors import UserError
from fedalign.federation.checkpoint_place import BEST as BEST
from fedalign.federation.checkpoint_place import NEWEST as NEWEST
from fedalign.federation.checkpoint_place import whole

FORMAT = 2


@dataclass(frozen=True)
class Checkpoint:
    """The server's side of a run after a round.

    Parameters
    ----------
    method : str
        Name of the method; a checkpoint of another one is refused.
    phase : int
        Index of the phase.
    round : int
        Rounds of the phase that are done.
    state, moments : State
        The phase's state and its server optimiser's moments.
    artefacts : mapping from phase name to State
        Final states of the phases before.
    counters : mapping from str to float
        Running totals of time and traffic.
    best : float or None
        Selection metric of the best checkpoint so far.
    memories : bool
        Whether nodes saved client memories that belong to this checkpoint.
    privacy : mapping
        What has been spent, and bounds that adapt.
    noise : State
        Noise that later rounds refer to; as secret as the noise itself.
    """

    method: str
    phase: int
    round: int
    state: State
    moments: State
    artefacts: Mapping[str, State] = field(default_factory=dict)
    counters: Mapping[str, float] = field(default_factory=dict)
    best: float | None = None
    memories: bool = False
    privacy: Mapping[str, Any] = field(default_factory=dict)
    noise: State = field(default_factory=dict)

    @property
    def tag(self) -> str:
        """Names the point of the run, for the nodes' own saved memories."""
        return f"{self.phase}-{self.round}"

    def save(self, directory: Path, name: str) -> None:
        """Write the checkpoint to ``directory/name``, replacing an older one only when complete."""
        directory.mkdir(parents=True, exist_ok=True)
        fresh, target, old = (directory / part for part in (f".{name}.new", name, f".{name}.old"))
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        tensors = {f"state/{k}": v for k, v in self.state.items()}
        tensors |= {f"moments/{k}": v for k, v in self.moments.items()}
        tensors |= {f"noise/{k}": v for k, v in self.noise.items()}
        for phase, state in self.artefacts.items():
            tensors |= {f"artefact/{phase}/{k}": v for k, v in state.items()}
        # A phase may share tensors with an earlier one, which safetensors refuses: write copies.
        save_file({k: v.detach().clone().contiguous() for k, v in tensors.items()}, fresh / "tensors.safetensors")
        facts = {"format": FORMAT, **_facts(self), "artefacts": list(self.artefacts)}
        (fresh / "checkpoint.json").write_text(json.dumps(facts, indent=1))
        for path in fresh.iterdir():
            _sync(path)
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
            target.rename(old)
        fresh.rename(target)
        shutil.rmtree(old, ignore_errors=True)

    @staticmethod
    def load(directory: Path, name: str, method: str) -> Checkpoint:
        """Read a checkpoint.

        Raises
        ------
        UserError
            If there is none, it is unreadable, or it belongs to another method.
        """
        place = whole(directory, name)
        if not (place / "checkpoint.json").is_file():
            raise UserError(f"{directory / name}: no checkpoint there; nothing to go on from")
        try:
            facts = json.loads((place / "checkpoint.json").read_text())
            tensors = load_file(place / "tensors.safetensors")
            known = (facts["format"], facts["method"])
            if known != (FORMAT, method):
                raise UserError(
                    f"{place}: a checkpoint of method '{known[1]}' (format {known[0]}), not of '{method}' "
                    f"(format {FORMAT}); give the run directory of a '{method}' run"
                )
            return Checkpoint(
                method,
                facts["phase"],
                facts["round"],
                _under("state/", tensors),
                _under("moments/", tensors),
                {phase: _under(f"artefact/{phase}/", tensors) for phase in facts["artefacts"]},
                facts["counters"],
                facts["best"],
                facts["memories"],
                facts["privacy"],
                _under("noise/", tensors),
            )
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise UserError(f"{place}: the checkpoint cannot be read ({error}); start the run afresh") from error


def _facts(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the JSON facts of a checkpoint, without its tensors."""
    return {
        "method": checkpoint.method,
        "phase": checkpoint.phase,
        "round": checkpoint.round,
        "counters": dict(checkpoint.counters),
        "best": checkpoint.best,
        "memories": checkpoint.memories,
        "privacy": dict(checkpoint.privacy),
    }


def _under(prefix: str, tensors: Mapping[str, Any]) -> State:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _sync(path: Path) -> None:
    with path.open("rb") as opened:
        os.fsync(opened.fileno())
