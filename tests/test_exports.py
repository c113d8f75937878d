"""What a run leaves for other libraries: adapters that peft loads on the model that transformers loads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from fedalign.config import parse, resolve
from fedalign.methods.conditional_policy import PolicyPhase
from fedalign.methods.corpus import CorpusPhase
from fedalign.opened_run import OpenedRun
from fedalign.report.run_directory import RunDirectory
from fedalign.rng import Streams
from fedalign.site import setting
from tests.tiny import use_cache
from tests.tiny_alignment import aligned_run, given_reward_run
from tests.tiny_policy import language_model_of, policy_run

IDS = torch.tensor([[2, 3, 4, 9, 5], [15, 16, 2, 3, 10]])
MASK = torch.ones_like(IDS)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.getbasetemp()


@pytest.fixture(autouse=True)
def _own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_cache(tmp_path, monkeypatch)


def opened(run: Path) -> OpenedRun:
    directory = RunDirectory.open(run)
    return OpenedRun.of(directory, parse(directory.read_config()))


def loaded(place: Path) -> Any:
    """Return the model that the adapter names, with the adapter, as the documentation says."""
    name = json.loads((place / "adapter_config.json").read_text())["base_model_name_or_path"]
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(name), str(place)).eval()


@torch.no_grad()
def logits_of(place: Path) -> torch.Tensor:
    found: torch.Tensor = loaded(place)(input_ids=IDS).logits
    return found


@torch.no_grad()
def stage_logits(run: OpenedRun, stage: str) -> torch.Tensor:
    phase = next(phase for phase in run.phases if phase.name == stage)
    assert isinstance(phase, CorpusPhase)
    phase.load(run.states[stage])
    return phase.network(IDS, MASK)[0]


def test_the_adapter_is_the_last_policy(base: Path) -> None:
    run = opened(aligned_run(base))
    found = logits_of(run.path / "model" / "adapter")
    torch.testing.assert_close(found, stage_logits(run, "rl"), rtol=0, atol=1e-5)
    assert (found - stage_logits(run, "sft")).abs().max() > 1e-3
    torch.testing.assert_close(
        logits_of(run.path / "model" / "reward_adapter"), stage_logits(run, "reward"), rtol=0, atol=1e-5
    )


def test_without_reinforcement_learning_the_adapter_is_the_fine_tuned_policy(base: Path) -> None:
    run = opened(given_reward_run(base, "method.rl=null"))
    torch.testing.assert_close(logits_of(run.path / "model" / "adapter"), stage_logits(run, "sft"), rtol=0, atol=1e-5)
    assert not (run.path / "model" / "reward_adapter").exists()


def test_a_frozen_factor_is_part_of_it_and_the_base_is_named_as_it_was_asked_for(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = language_model_of(base)
    monkeypatch.chdir(folder.parent)
    config = parse(resolve(["method=dprlhf", f"model.model={folder.name}", "model.freeze_a=true"]))
    phase = config.method.phases(setting(config))[0]
    assert isinstance(phase, CorpusPhase)
    generator = torch.Generator().manual_seed(0)
    state = {
        name: 0.3 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in phase.initial(Streams(0, "sft"), {}).items()
    }
    phase.export(state, tmp_path)
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"] == (
        folder.name
    )
    phase.load(state)
    with torch.no_grad():
        expected = phase.network(IDS, MASK)[0]
    torch.testing.assert_close(logits_of(tmp_path / "adapter"), expected, rtol=0, atol=1e-5)
    assert sorted(path.name for path in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_a_policy_that_follows_preferences_brings_how_it_is_told_of_them(base: Path) -> None:
    run = opened(policy_run(base))
    phase = next(phase for phase in run.phases if isinstance(phase, PolicyPhase))
    place = run.path / "model" / "adapter"
    parts, network = load_file(place / "projection.safetensors"), loaded(place)
    phase.load(run.states[phase.name])
    for group in ("praise", "criticism"):
        z = parts[f"group/{group}"]
        with torch.no_grad():
            told = network.get_input_embeddings()(IDS) + (parts["weight"] @ z + parts["bias"])
            found = network(inputs_embeds=told).logits
            expected = phase.network(IDS, MASK, z.expand(2, -1))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_policy_for_everybody_is_an_adapter_alone(base: Path) -> None:
    place = policy_run(base, "method.policy.condition=false") / "model" / "adapter"
    assert (place / "adapter_model.safetensors").is_file()
    assert not (place / "projection.safetensors").exists()
