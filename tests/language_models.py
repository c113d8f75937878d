"""Causal language models for tests: random ones that the tests write themselves, and a small trained one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from fedalign.models.policy import ConditionalPolicy, PolicySpec

KINDS = ("gpt2", "qwen2", "trained")
WORDS = [
    *["<end>", "<unk>", "the", "film", "was", "good", "bad", "fine", "dull", "bright", "and", "a", "plot", "actor"],
    *["ending", "I", "liked", "disliked", "it", "very"],
]
LENGTH = 64
"""What the random models read, in tokens."""


def language_model(kind: str, folder: Path) -> Path:
    """Return a folder with a causal model: random of one of two architectures, or trained on film reviews."""
    return trained_model() if kind == "trained" else random_model(kind, folder)


def trained_model() -> Path:
    """Return the folder of a trained GPT-2 of 4 layers beside the real data sets; skips where it is absent."""
    root = Path(__file__).resolve().parents[1]
    data = Path(os.environ.get("FEDALIGN_TEST_DATA", root.parent / "shared" / "data"))
    folder = data.parent / "models" / "tiny-gpt2"
    if not folder.is_dir():
        pytest.skip(f"no causal model in {folder}; set FEDALIGN_TEST_DATA to a folder that has ../models/tiny-gpt2")
    return folder


def random_model(kind: str, folder: Path) -> Path:
    """Write a model of 2 layers with a tokenizer of whole words, whose token 0 ends a text."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", unk_token="<unk>").save_pretrained(folder)
    # A wide initial range: with the usual 0.02 all texts look alike. GPT-2 keeps its dropout, which must never act.
    shared: dict[str, Any] = {"vocab_size": len(WORDS), "initializer_range": 0.3, "eos_token_id": 0, "bos_token_id": 0}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "gpt2":
            size = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": LENGTH}
            GPT2LMHeadModel(GPT2Config(**size, **shared)).save_pretrained(folder)
        else:
            size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
            more = {"intermediate_size": 48, "max_position_embeddings": LENGTH}
            Qwen2ForCausalLM(Qwen2Config(**size, **more, **shared)).save_pretrained(folder)
    return folder


def policy_spec(folder: Path, **changes: Any) -> PolicySpec:
    """Return settings for a policy on a folder's model."""
    values: dict[str, Any] = {
        "rank": 4,
        "alpha": 8.0,
        "dropout": 0.0,
        "target_modules": None,
        "condition": "embedding",
        "prefix_tokens": 3,
        "init_std": 1e-3,
        "dtype": "float32",
        "device": "cpu",
    }
    return PolicySpec(model=str(folder), **{**values, **changes})


def policy(folder: Path, latent: int = 2, seed: int = 0, **changes: Any) -> ConditionalPolicy:
    """Return a fresh policy; its adapter depends on the seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return policy_spec(folder, **changes).build(latent, "method.policy")


def shake(network: torch.nn.Module, scale: float = 0.1, seed: int = 0) -> None:
    """Move every trained parameter, so that adapter and projection act."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=scale)
