"""A tiny run of PCM: six adapters that differ from the first token on, and users who state what they want."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from fedalign.run_end import Result
from tests.language_models import random_model

SIDES = ("long", "short", "plain", "ornate", "praise", "criticism")
"""In the order of their dimensions' names: length, style, tone."""
SMALL = (
    "data.users=10",
    "data.demonstrations=2",
    "data.comparisons=3",
    "data.test_demonstrations=2",
    "data.test_comparisons=6",
    "data.world_seed=5",
    "model.rank=2",
    "model.alpha=4",
    "method.lengths.prompt=5",
    "method.lengths.response=5",
    "method.evaluation.prompts=4",
    "method.evaluation.batch=2",
    "federation.rounds=3",
    "federation.sampler.size=3",
    "federation.evaluate_every=3",
    "federation.checkpoint_every=1",
    "method.merging.batch=2",
    "method.merging.local.steps=2",
    "method.merging.local.lr=0.05",
    "method.merging.control.hidden=8",
    "method.merging.control.layers=1",
    "method.merging.control.heads=2",
    "method.merging.control.intermediate=8",
)
"""Overrides of a run with a control model that reads; an option that is chosen besides may have no use for some."""
LOADED = ("partition.shares.sft=0", "partition.shares.rl=1")

Merge = Callable[..., Result]


def world(base: Path) -> Path:
    """Write a random model, and adapters of it for all sides; return the folder of both."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    random_model("gpt2", base / "model")
    settings = LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True, r=2, lora_alpha=4)
    for number, side in enumerate(SIDES):
        generator = torch.Generator().manual_seed(number)
        network = get_peft_model(AutoModelForCausalLM.from_pretrained(base / "model"), settings)
        with torch.no_grad():
            for name, tensor in network.named_parameters():
                if ".lora_" in name:
                    tensor.copy_(0.6 * torch.randn(tensor.shape, generator=generator))
        network.save_pretrained(str(base / side))
    return base


def overrides_of(folder: Path, *overrides: str) -> list[str]:
    """Return the overrides of a tiny run on a folder's model, without those that chosen parts have no place for."""
    chosen = [o for o in overrides if "/" in o.partition("=")[0]]
    gone = ["federation.sampler."] * any(o.startswith("federation/sampler=") for o in chosen)
    if any(o == "method/merging/control=constant" for o in chosen):
        gone += [f"method.merging.control.{key}" for key in ("hidden", "layers", "heads", "intermediate")]
    source = [] if any(o.startswith("method/experts=") for o in chosen) else ["method/experts=adapters", *LOADED]
    paths = [f"+method.experts.paths.{side}={folder / side}" for side in SIDES] if source else []
    known = [o for o in SMALL if not o.startswith(tuple(gone))]
    return [
        "method=pcm",
        *chosen,
        *source,
        *known,
        f"model.model={folder / 'model'}",
        *paths,
        *(o for o in overrides if o not in chosen),
    ]
