"""Checkpoints: complete or not there, whatever moment the process dies at."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fedalign.contribution import State
from fedalign.errors import UserError
from fedalign.federation.checkpoint import BEST, NEWEST, Checkpoint

STATE: State = {
    "w": torch.randn(3, 2, generator=torch.Generator().manual_seed(0)),
    "half": torch.ones(2, dtype=torch.bfloat16),
    "turned": torch.arange(6).view(2, 3).T,
    "empty": torch.zeros(0),
    "scalar": torch.tensor(3),
}
FULL = Checkpoint(
    method="toy",
    phase=1,
    round=7,
    state=STATE,
    moments={"first/w": torch.full((3, 2), 0.5, dtype=torch.float64)},
    # An artefact may share its tensors with the state that grew out of it.
    artefacts={"warmup": {"w": STATE["w"]}, "nothing": {}},
    counters={"rounds": 8.0, "update_s": 0.25},
    best=0.75,
    memories=True,
)


def assert_same(one: State, other: State) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert other[name].dtype == tensor.dtype
        assert torch.equal(other[name], tensor)


def test_everything_comes_back(tmp_path: Path) -> None:
    FULL.save(tmp_path / "checkpoints", NEWEST)
    loaded = Checkpoint.load(tmp_path / "checkpoints", NEWEST, "toy")
    assert_same(FULL.state, loaded.state)
    assert_same(FULL.moments, loaded.moments)
    assert loaded.artefacts.keys() == FULL.artefacts.keys()
    for phase, state in FULL.artefacts.items():
        assert_same(state, loaded.artefacts[phase])
    nothing: dict[str, Any] = {"state": {}, "moments": {}, "artefacts": {}}
    assert replace(loaded, **nothing) == replace(FULL, **nothing)
    assert loaded.tag == "1-7"


def test_newest_and_best_are_kept_apart_and_replaced(tmp_path: Path) -> None:
    for number in (1, 2):
        replace(FULL, round=number).save(tmp_path, NEWEST)
    replace(FULL, round=1).save(tmp_path, BEST)
    assert Checkpoint.load(tmp_path, NEWEST, "toy").round == 2
    assert Checkpoint.load(tmp_path, BEST, "toy").round == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [BEST, NEWEST]


class Died(BaseException):
    """Stands for the power going out."""


def die_before(operation: int, patch: pytest.MonkeyPatch) -> None:
    """Let the process die before the given change to the file system (writes, removals and renames count)."""
    count = iter(range(10**6))

    def mortal(act: Callable[..., Any]) -> Callable[..., Any]:
        def acting(*arguments: Any, **options: Any) -> Any:
            if next(count) == operation:
                raise Died
            return act(*arguments, **options)

        return acting

    for owner, name in ((Path, "rename"), (Path, "mkdir"), (Path, "write_text"), (shutil, "rmtree")):
        patch.setattr(owner, name, mortal(getattr(owner, name)))
    patch.setattr("fedalign.federation.checkpoint.save_file", mortal(_save_file()))


def _save_file() -> Callable[..., Any]:
    from safetensors.torch import save_file

    return save_file


def save_until(operation: int, checkpoint: Checkpoint, directory: Path) -> bool:
    """Save, dying before an operation; say whether the save was finished instead."""
    with pytest.MonkeyPatch.context() as patch:
        die_before(operation, patch)
        try:
            checkpoint.save(directory, NEWEST)
        except Died:
            return False
    return True


def test_a_crash_at_any_moment_leaves_the_old_checkpoint_or_the_new_one(tmp_path: Path) -> None:
    """Also when the process that goes on from what is left dies in its turn."""
    first, second = (replace(FULL, round=number) for number in (1, 2))
    moments = 0
    while True:
        directory = tmp_path / str(moments)
        first.save(directory, NEWEST)
        if save_until(moments, second, directory):
            break
        left = Checkpoint.load(directory, NEWEST, "toy").round
        assert left in (1, 2)
        for again in range(moments + 9):
            copy = tmp_path / f"{moments}-{again}"
            shutil.copytree(directory, copy)
            finished = save_until(again, replace(FULL, round=3), copy)
            assert Checkpoint.load(copy, NEWEST, "toy").round in ((3,) if finished else (left, 3))
            if finished:
                break
        moments += 1
    assert moments >= 6


def test_there_must_be_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint there; nothing to go on from"):
        Checkpoint.load(tmp_path, NEWEST, "toy")


def test_another_method_s_checkpoint_is_refused(tmp_path: Path) -> None:
    FULL.save(tmp_path, NEWEST)
    with pytest.raises(UserError, match=r"a checkpoint of method 'toy' \(format 2\), not of 'dpo'"):
        Checkpoint.load(tmp_path, NEWEST, "dpo")


def edit(path: Path, **changes: Any) -> None:
    facts = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in {**facts, **changes}.items() if v != "removed"}))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "no tensors": lambda place: (place / "tensors.safetensors").unlink(),
    "tensors cut short": lambda place: truncate(place / "tensors.safetensors"),
    "tensors empty": lambda place: (place / "tensors.safetensors").write_bytes(b""),
    "facts cut short": lambda place: truncate(place / "checkpoint.json"),
    "facts no object": lambda place: (place / "checkpoint.json").write_text("[]"),
    "facts no text": lambda place: (place / "checkpoint.json").write_bytes(b"\xff\xfe"),
    "no phase": lambda place: edit(place / "checkpoint.json", phase="removed"),
    "no method": lambda place: edit(place / "checkpoint.json", method="removed"),
    "artefacts no list": lambda place: edit(place / "checkpoint.json", artefacts=None),
    "a later format": lambda place: edit(place / "checkpoint.json", format=99),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_one_is_refused_in_one_line_that_names_it(tmp_path: Path, damage: Callable[[Path], Any]) -> None:
    FULL.save(tmp_path, NEWEST)
    damage(tmp_path / NEWEST)
    with pytest.raises(UserError) as caught:
        Checkpoint.load(tmp_path, NEWEST, "toy")
    assert str(tmp_path / NEWEST) in str(caught.value)
    assert "\n" not in str(caught.value)
