"""The final artefact of a run: the last states of its phases, in ``model/``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from fedalign.contribution import State
from fedalign.errors import UserError


def save_model(directory: Path, method: str, artefacts: Mapping[str, State]) -> None:
    """Write one safetensors file a phase, and last ``model.json``, without which there is no model."""
    directory.mkdir(parents=True, exist_ok=True)
    for phase, state in artefacts.items():
        copies = {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}
        save_file(copies, directory / f"{phase}.safetensors")
    (directory / "model.json").write_text(json.dumps({"method": method, "phases": list(artefacts)}))


def load_model(directory: Path, method: str) -> dict[str, State]:
    """Read the final states by phase name.

    Raises
    ------
    UserError
        If there is no finished model, or it belongs to another method.
    """
    try:
        facts = json.loads((directory / "model.json").read_text())
        if facts["method"] != method:
            raise UserError(f"{directory}: a model of method '{facts['method']}', not of '{method}'")
        return {phase: load_file(directory / f"{phase}.safetensors") for phase in facts["phases"]}
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(f"{directory}: no finished model there ({error}); finish the run with resume=") from error
