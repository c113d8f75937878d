"""What a LoRA network is made of: a pretrained transformer, loaded once a process, and peft's adapter around it."""

from __future__ import annotations

import copy
import functools
import itertools
import warnings
from pathlib import Path
from typing import Any, Literal

from fedalign.errors import UserError
from fedalign.pretrained import Dtype, first_line, load_network

Kind = Literal["causal", "hidden"]
"""What a transformer gives: logits of the next token, or the hidden states of its last layer."""


@functools.lru_cache(maxsize=4)
def _shared_base(folder: Path, kind: Kind, dtype: Dtype, device: str) -> Any:
    import transformers

    loader = {"causal": transformers.AutoModelForCausalLM, "hidden": transformers.AutoModel}[kind]
    return load_network(folder, loader, dtype, device, "model").requires_grad_(False)


def forget_bases() -> None:
    """Let go of the networks that are kept for whoever asks for them again."""
    _shared_base.cache_clear()


def own_modules(folder: Path, kind: Kind, dtype: Dtype, device: str) -> Any:
    """Return a folder's frozen network with modules of its own, and tensors that all such networks share.

    Raises
    ------
    UserError
        If it cannot be loaded; the message begins with ``model``.
    """
    base = _shared_base(folder, kind, dtype, device)
    shared = {id(tensor): tensor for tensor in itertools.chain(base.parameters(), base.buffers())}
    return copy.deepcopy(base, shared)


def adapted(
    base: Any, rank: int, alpha: float, dropout: float, target_modules: tuple[str, ...] | None, key: str
) -> Any:
    """Return a network with a fresh adapter, as peft wraps it; draws from PyTorch's default generator.

    Parameters are those of :class:`fedalign.models.lora.LoraTransformer`.

    Raises
    ------
    UserError
        If there is nothing to adapt.
    """
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    config = LoraConfig(
        r=rank,
        # peft's annotation says int; a float is divided by the rank all the same.
        lora_alpha=alpha,  # type: ignore[arg-type]
        lora_dropout=dropout,
        target_modules=None if target_modules is None else list(target_modules),
        # GPT-2 and its kin store matrices transposed.
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in base.modules()),
    )
    try:
        with warnings.catch_warnings():
            # What peft and transformers say about each other's names.
            warnings.simplefilter("ignore", FutureWarning)
            return get_peft_model(base, config)
    except ValueError as error:
        raise UserError(f"{key}.target_modules={target_modules}: {first_line(error)}") from None
