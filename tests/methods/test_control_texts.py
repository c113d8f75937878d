"""What experts found of a client's judgments is kept, for as long as judgments and experts are the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedalign.contribution import State
from fedalign.methods.control_learning import Offline
from fedalign.methods.control_phase import ControlPhase
from fedalign.models.mixing import LogLinear
from fedalign.rng import Streams
from tests.language_models import random_model

from .scripted_experts import ScriptedExperts, control_phase, controlled, transformer
from .stated import client, contributions, trained, wishes

START = Streams(3, "control")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model("gpt2", tmp_path_factory.mktemp("model"))


def calls_after(own: ControlPhase, state: State, *names: str) -> list[int]:
    """Return how often experts have been asked after each of some clients' rounds."""
    experts = own.experts
    assert isinstance(experts, ScriptedExperts)
    found = []
    for number, name in enumerate(names, start=1):
        contributions(own, state, client(name=name, rl=wishes("praise, moving")), number=number)
        found.append(experts.calls)
    return found


def test_experts_are_asked_once_for_each_client(folder: Path) -> None:
    own = control_phase(folder, controlled(Offline(0.5), transformer()))
    assert calls_after(own, own.initial(START, {}), "ann", "bob", "ann", "bob", "ann") == [2, 4, 4, 4, 4]


def test_other_judgments_of_the_same_client_are_asked_about(folder: Path) -> None:
    own = control_phase(folder, controlled(Offline(0.5), transformer()))
    state = own.initial(START, {})
    calls_after(own, state, "ann")
    turned = tuple(replace(e, response=e.rejected or "", rejected=e.response) for e in wishes("praise, moving"))
    before = contributions(own, state, client(rl=wishes("praise, moving")))
    after = contributions(own, state, client(rl=turned))
    assert isinstance(own.experts, ScriptedExperts)
    assert own.experts.calls == 4
    assert any(not torch.equal(before.tensors[name], after.tensors[name]) for name in before.tensors)


def test_whole_distributions_are_not_kept(folder: Path) -> None:
    own = control_phase(folder, controlled(Offline(0.5), transformer(), mixing=LogLinear()))
    assert calls_after(own, own.initial(START, {}), "ann", "ann") == [2, 4]


def test_other_experts_are_asked_anew(folder: Path) -> None:
    own = control_phase(folder, controlled(Offline(0.5), transformer()), trained())
    state = own.initial(START, {})
    kept = client(rl=wishes("praise, moving"))
    before = contributions(own, state, kept)
    generator = torch.Generator().manual_seed(0)
    others = {
        name: tensor + torch.randn(tensor.shape, generator=generator) if ".lora_B." in name else tensor
        for name, tensor in state.items()
    }
    after = contributions(own, others, kept)
    assert any(not torch.equal(before.tensors[name], after.tensors[name]) for name in before.tensors)
    again = contributions(own, state, kept)
    assert all(torch.equal(before.tensors[name], again.tensors[name]) for name in before.tensors)
