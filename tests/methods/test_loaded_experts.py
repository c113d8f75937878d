"""Experts from disk: what peft or transformers computes with them, and what cannot be one is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fedalign.errors import UserError
from fedalign.methods.expert_source import ExpertSource
from fedalign.methods.loaded_experts import AdapterExperts, ModelExperts
from fedalign.models.experts import Pairs
from fedalign.rng import Streams
from tests.language_models import random_model, shake

from .stated import setting

SIDES = ("praise", "blame")
IDS = torch.tensor([[2, 3, 4, 5], [18, 4, 19, 5], [0, 0, 0, 11]])
MASK = torch.ones_like(IDS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model("gpt2", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def saved(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Adapters of two ranks and scales, as peft saves them."""
    base = tmp_path_factory.mktemp("adapters")
    return {
        name: save(folder, base / name, seed, r=2 + seed, lora_alpha=4 + 3 * seed) for seed, name in enumerate(SIDES)
    }


def save(folder: Path, path: Path, seed: int = 0, **settings: Any) -> str:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        modules = {"target_modules": ["c_attn"], "fan_in_fan_out": True, "r": 2}
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), LoraConfig(**{**modules, **settings}))
        with torch.no_grad():
            for name, tensor in model.named_parameters():
                if ".lora_" in name:
                    tensor.normal_(std=0.3)
        model.save_pretrained(str(path))
    return str(path)


def by_peft(folder: Path, adapter: str) -> Tensor:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), adapter)
        return model(IDS).logits.log_softmax(2)  # type: ignore[no-any-return]


def computed(source: ExpertSource, names: tuple[str, ...], folder: Path) -> list[Tensor]:
    """Return what each expert finds, (B, T, V)."""
    experts = source.open(names, setting(folder))
    pairs = Pairs.of(torch.ones(len(IDS), len(names), dtype=torch.bool))
    found, _ = experts.advance(pairs, IDS, MASK, None)
    return [found[pairs.expert == place] for place in range(len(names))]


def test_saved_adapters_compute_what_peft_does(folder: Path, saved: dict[str, str]) -> None:
    source = AdapterExperts(saved)
    for names in (SIDES, SIDES[::-1]):
        for name, found in zip(names, computed(source, names, folder), strict=True):
            assert torch.allclose(found, by_peft(folder, saved[name]), atol=1e-5)
    told = setting(folder)
    assert source.state(SIDES, Streams(0), {}, told) == {}
    assert not source.load(source.open(SIDES, told), {})
    assert source.codec(told).decode(torch.tensor([[2, 3]])) == ["the film"]
    assert source.phases(None, told) == ()  # type: ignore[arg-type]


def test_separate_models_compute_what_transformers_does(folder: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    other = shutil.copytree(folder, tmp_path / "other")
    model = AutoModelForCausalLM.from_pretrained(folder)
    shake(model)
    model.save_pretrained(other)
    models = {"praise": str(folder), "blame": str(other)}
    source = ModelExperts(models)
    for name, found in zip(SIDES, computed(source, SIDES, folder), strict=True):
        with torch.no_grad():
            expected = AutoModelForCausalLM.from_pretrained(models[name])(IDS).logits.log_softmax(2)
        assert torch.allclose(found, expected, atol=1e-5)
    assert source.codec(setting(folder)).decode(torch.tensor([[2, 3]])) == ["the film"]
    assert source.state(SIDES, Streams(0), {}, setting(folder)) == {}


def test_models_of_other_tokens_are_refused(folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(folder, tmp_path / "other")
    content = (other / "tokenizer.json").read_text().replace('"film"', '"movie"')
    (other / "tokenizer.json").write_text(content)
    source = ModelExperts({"praise": str(folder), "blame": str(other)})
    with pytest.raises(UserError, match=r"method\.experts\.models\.blame=.*'movie'.*'film'.*one vocabulary"):
        source.open(SIDES, setting(folder))


@pytest.mark.parametrize(("kind", "key"), [(AdapterExperts, "paths"), (ModelExperts, "models")])
def test_experts_are_those_of_the_sides(folder: Path, saved: dict[str, str], kind: Any, key: str) -> None:
    told = setting(folder)
    with pytest.raises(
        UserError,
        match=rf"method\.experts\.{key}: there is no expert for praise, blame.*\+method\.experts\.{key}\.praise=DIR",
    ):
        kind({}).open(SIDES, told)
    with pytest.raises(UserError, match=rf"method\.experts\.{key}: there is no expert for blame;"):
        kind({"praise": saved["praise"]}).open(SIDES, told)
    with pytest.raises(
        UserError, match=rf"method\.experts\.{key}\.prase=here: there is no side 'prase'; did you mean 'praise'"
    ):
        kind({"prase": "here"}).open(SIDES, told)
    with pytest.raises(UserError, match=rf"method\.experts\.{key}\.blame=\./nowhere: no such folder"):
        kind({"praise": str(folder if key == "models" else saved["praise"]), "blame": "./nowhere"}).open(SIDES, told)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"use_rslora": True}, "use_rslora=true"),
        ({"use_dora": True}, "use_dora=true"),
        ({"bias": "lora_only"}, 'bias="lora_only"'),
        ({"modules_to_save": ["lm_head"]}, r'modules_to_save=\["lm_head"\]'),
        ({"rank_pattern": {"c_attn": 1}}, "rank_pattern="),
        ({"alpha_pattern": {"c_attn": 1}}, "alpha_pattern="),
        ({"init_lora_weights": "pissa"}, "init_lora_weights=pissa, which changes the base"),
    ],
    ids=str,
)
def test_what_is_more_than_factors_is_refused(
    folder: Path, saved: dict[str, str], tmp_path: Path, settings: dict[str, Any], named: str
) -> None:
    other = Path(shutil.copytree(saved["blame"], tmp_path / "other"))
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps({**config, **settings}))
    with pytest.raises(UserError, match=rf"method\.experts\.paths\.blame=.*{named}"):
        AdapterExperts({**saved, "blame": str(other)}).open(SIDES, setting(folder))


def test_what_is_no_adapter_of_the_model_is_refused(folder: Path, saved: dict[str, str], tmp_path: Path) -> None:
    told = setting(folder)

    def opened(path: Path | str) -> None:
        AdapterExperts({**saved, "blame": str(path)}).open(SIDES, told)

    with pytest.raises(UserError, match=r"paths\.blame=.*holds no adapter_config\.json"):
        opened(folder)
    bare = Path(shutil.copytree(saved["blame"], tmp_path / "bare"))
    (bare / "adapter_model.safetensors").rename(bare / "adapter_model.bin")
    with pytest.raises(UserError, match=r"paths\.blame=.*holds no adapter_model\.safetensors"):
        opened(bare)
    broken = Path(shutil.copytree(saved["blame"], tmp_path / "broken"))
    (broken / "adapter_model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UserError, match=r"paths\.blame=.*cannot be read as an adapter"):
        opened(broken)
    prompt = Path(shutil.copytree(saved["blame"], tmp_path / "prompt"))
    (prompt / "adapter_config.json").write_text('{"peft_type": "PROMPT_TUNING", "r": 1, "lora_alpha": 1}')
    with pytest.raises(UserError, match=r"paths\.blame=.*PROMPT_TUNING"):
        opened(prompt)
    others = random_model("qwen2", tmp_path / "qwen2")
    with pytest.raises(UserError, match=r"paths\.praise=.*not an adapter of model\.model=.*does not have"):
        AdapterExperts(saved).open(SIDES, setting(others))


def test_an_adapter_of_another_width_is_refused(folder: Path, saved: dict[str, str], tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    wide = Path(shutil.copytree(folder, tmp_path / "wide"))
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder, n_embd=48)).save_pretrained(wide)  # type: ignore[no-untyped-call]
    path = save(wide, tmp_path / "adapter")
    with pytest.raises(UserError, match=r"paths\.blame=.*not an adapter of model\.model="):
        AdapterExperts({**saved, "blame": path}).open(SIDES, setting(folder))
