"""Types of EM-DPO as experts: what a type writes by, its frozen factors included, and the run's mixture."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from fedalign.contribution import State
from fedalign.errors import UserError
from fedalign.methods.mmra import MIXTURE
from fedalign.methods.text_lengths import Lengths
from fedalign.methods.type_adapters import AdapterTypes
from fedalign.methods.type_experts import TypeExperts
from fedalign.methods.type_model import PRIOR, named, type_of
from fedalign.model_files import save_model
from fedalign.models.experts import Pairs
from fedalign.rng import Streams
from tests.language_models import random_model

from .stated import setting

NAMES = ("type-0", "type-1", "type-2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model("gpt2", tmp_path_factory.mktemp("model"))


def types_of(folder: Path, **model: Any) -> tuple[AdapterTypes, State]:
    """Return a model of types, and a state of three that differ."""
    own = AdapterTypes(setting(folder, **model).model, 0.1, Lengths(4, 5))  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(4)
    state: State = {PRIOR: torch.tensor([0.5, 0.2, 0.3])}
    for number in range(3):
        fresh = own.fresh(Streams(1))
        moved = {name: t + 0.3 * torch.randn(t.shape, generator=generator) for name, t in fresh.items()}
        state |= named(moved, number)
    return own, state


def run(path: Path, folder: Path, states: Mapping[str, State], **model: Any) -> TypeExperts:
    """Write what a finished run leaves and return its types."""
    spec = dataclasses.asdict(setting(folder, **model).model)  # type: ignore[call-overload]
    path.mkdir()
    content = {"method": {"name": "emdpo"}, "model": {**spec, "_target_": "x"}}
    (path / "config.yaml").write_text(yaml.safe_dump(content))
    save_model(path / "model", "emdpo", states)
    return TypeExperts(str(path))


@pytest.mark.parametrize("freeze_a", [False, True])
def test_an_expert_computes_what_its_type_does(folder: Path, tmp_path: Path, freeze_a: bool) -> None:
    model, state = types_of(folder, freeze_a=freeze_a)
    source = run(tmp_path / "run", folder, {"em": state}, freeze_a=freeze_a)
    ids = torch.tensor([[2, 3, 4, 5], [18, 4, 19, 5]])
    mask = torch.ones_like(ids)
    pairs = Pairs.of(torch.ones(2, 3, dtype=torch.bool))
    for names in (NAMES, NAMES[::-1]):
        found, _ = source.open(names, setting(folder, freeze_a=freeze_a)).advance(pairs, ids, mask, None)
        for place, name in enumerate(names):
            model.load(type_of(state, int(name[-1])))
            with torch.no_grad():
                expected = model.policy(ids, mask, None).log_softmax(2)
            assert torch.allclose(found[pairs.expert == place], expected, atol=1e-5)
    assert source.state(NAMES, Streams(0), {}, setting(folder, freeze_a=freeze_a)) == {}


def test_who_states_nothing_is_served_by_the_run_s_mixture_or_its_shares(folder: Path, tmp_path: Path) -> None:
    state = types_of(folder)[1]
    plain = run(tmp_path / "plain", folder, {"em": state})
    assert plain.fallback(NAMES).tolist() == pytest.approx([0.5, 0.2, 0.3])
    assert plain.fallback(NAMES[::-1]).tolist() == pytest.approx([0.3, 0.2, 0.5])
    fair = run(tmp_path / "fair", folder, {"em": state, "mmra": {**state, MIXTURE: torch.tensor([0.1, 0.1, 0.8])}})
    assert fair.fallback(NAMES).tolist() == pytest.approx([0.1, 0.1, 0.8])
    assert fair.fallback(NAMES).dtype == torch.float32


def test_what_cannot_be_experts_is_refused(folder: Path, tmp_path: Path) -> None:
    state, told = types_of(folder)[1], setting(folder)
    source = run(tmp_path / "run", folder, {"em": state})
    with pytest.raises(UserError, match=r"method\.experts\.run is null; set it"):
        TypeExperts(None).open(NAMES, told)
    with pytest.raises(UserError, match=r"method\.experts\.run=.*nowhere.*cannot be read.*finished run"):
        TypeExperts(str(tmp_path / "nowhere")).open(NAMES, told)
    with pytest.raises(UserError, match=r"types are type-0, type-1, type-2, and the sides .* are type-0, type-1;"):
        source.open(NAMES[:2], told)
    with pytest.raises(UserError, match=r"types are .*; give the sides the types' names"):
        source.open((*NAMES, "type-3"), told)
    with pytest.raises(UserError, match=r"its types have model\.rank=2, this run has 3; make them the same"):
        source.open(NAMES, setting(folder, rank=3))
    with pytest.raises(UserError, match=r"model\.target_modules=None, this run has \('c_attn',\)"):
        source.open(NAMES, setting(folder, target_modules=("c_attn",)))
    other = random_model("gpt2", tmp_path / "other")
    with pytest.raises(UserError, match=r"its types have model\.model="):
        source.open(NAMES, setting(other))
    heads = run(tmp_path / "heads", folder, {"em": {PRIOR: torch.ones(1), "types.0.score.weight": torch.ones(1, 4)}})
    with pytest.raises(UserError, match=r"its types are no adapters of a language model"):
        heads.open(NAMES, told)
    (tmp_path / "run" / "config.yaml").write_text("- 1\n")
    with pytest.raises(UserError, match=r"it names no method"):
        source.open(NAMES, told)


def test_a_folder_may_be_named_in_another_way(folder: Path, tmp_path: Path) -> None:
    source = run(tmp_path / "run", folder, {"em": types_of(folder)[1]})
    (tmp_path / "link").symlink_to(folder)
    source.open(NAMES, setting(tmp_path / "link"))
