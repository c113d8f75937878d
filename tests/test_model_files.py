"""The final artefact: complete or not there, and only for the method that made it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fedalign.contribution import State
from fedalign.errors import UserError
from fedalign.model_files import load_model, save_model

WEIGHTS = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
ARTEFACTS: dict[str, State] = {
    "prior": {"ids": torch.tensor([3, 5]), "nothing": torch.zeros(0)},
    # Two names for one tensor, and a tensor that is not contiguous.
    "gpo": {"w": WEIGHTS, "tied": WEIGHTS, "turned": WEIGHTS.T, "half": WEIGHTS.bfloat16(), "scalar": torch.tensor(2)},
    "empty": {},
}


def test_everything_comes_back(tmp_path: Path) -> None:
    save_model(tmp_path / "model", "toy", ARTEFACTS)
    loaded = load_model(tmp_path / "model", "toy")
    assert list(loaded) == list(ARTEFACTS)
    for phase, state in ARTEFACTS.items():
        assert loaded[phase].keys() == state.keys()
        for name, tensor in state.items():
            assert loaded[phase][name].dtype == tensor.dtype
            assert torch.equal(loaded[phase][name], tensor)


def test_each_phase_is_a_file_that_others_can_read(tmp_path: Path) -> None:
    save_model(tmp_path, "toy", ARTEFACTS)
    assert torch.equal(load_file(tmp_path / "gpo.safetensors")["w"], WEIGHTS)


def test_another_method_s_model_is_refused(tmp_path: Path) -> None:
    save_model(tmp_path, "toy", ARTEFACTS)
    with pytest.raises(UserError, match="a model of method 'toy', not of 'dpo'"):
        load_model(tmp_path, "dpo")


def test_half_a_model_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What says that there is a model is written last."""
    from fedalign import model_files

    save = model_files.save_file

    def dying(state: State, path: Path) -> None:
        if path.stem == "gpo":
            raise KeyboardInterrupt
        save(state, path)

    monkeypatch.setattr(model_files, "save_file", dying)
    with pytest.raises(KeyboardInterrupt):
        save_model(tmp_path, "toy", ARTEFACTS)
    assert (tmp_path / "prior.safetensors").is_file()
    with pytest.raises(UserError, match="no finished model there"):
        load_model(tmp_path, "toy")


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "no directory": lambda model: [path.unlink() for path in model.iterdir()],
    "a phase missing": lambda model: (model / "gpo.safetensors").unlink(),
    "a phase cut short": lambda model: (model / "gpo.safetensors").write_bytes(b"\0" * 20),
    "no JSON": lambda model: (model / "model.json").write_text("{"),
    "no object": lambda model: (model / "model.json").write_text("[]"),
    "no phases": lambda model: (model / "model.json").write_text('{"method": "toy"}'),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_model_is_refused_in_one_line(tmp_path: Path, damage: Callable[[Path], Any]) -> None:
    save_model(tmp_path, "toy", ARTEFACTS)
    damage(tmp_path)
    with pytest.raises(UserError, match="no finished model there") as caught:
        load_model(tmp_path, "toy")
    assert "\n" not in str(caught.value)
