"""A frozen transformer with a LoRA adapter of its own; what is trained and travels is the adapter alone."""

from __future__ import annotations

import copy
import functools
import inspect
import itertools
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fedalign.contribution import State
from fedalign.errors import UserError
from fedalign.hub import model_folder
from fedalign.pretrained import Dtype, first_line, load_network

Kind = Literal["causal", "hidden"]
"""What a transformer gives: logits of the next token, or the hidden states of its last layer."""


class LoraTransformer(nn.Module):
    """A pretrained transformer whose weights are frozen and shared, with a low-rank adapter (Hu et al. 2022).

    A fresh adapter changes nothing: one of its two factors is drawn from PyTorch's default generator, the other is 0.
    The base is loaded once a process for the same folder, precision and device. Its tensors are shared by all
    networks on it, its modules are not, so that neither adapters nor modes of one network reach another.

    Parameters
    ----------
    model : str
        Hub name or local folder.
    kind : "causal" or "hidden"
    rank, alpha : int, float
        An adapted matrix W acts as ``W + alpha / rank * B @ A``, with A of shape (rank, inputs).
    dropout : float
        Share of the adapter's inputs that a training step leaves out. The frozen base never drops anything.
    target_modules : sequence of str or None
        Names of the matrices to adapt; None takes peft's choice for the architecture.
    dtype : "float32", "bfloat16" or "float16"
        Precision of the base; the adapter is float32 in any case.
    device : str
    key : str
        The configuration key of the block that holds these settings, for error messages.

    Raises
    ------
    UserError
        If the model cannot be had, or peft finds nothing to adapt.
    """

    def __init__(
        self,
        model: str,
        kind: Kind,
        rank: int,
        alpha: float,
        dropout: float,
        target_modules: tuple[str, ...] | None,
        dtype: Dtype,
        device: str,
        key: str,
    ) -> None:
        super().__init__()
        folder = model_folder(model, f"{key}.model").resolve()
        try:
            base = _own_modules(_shared_base(folder, kind, dtype, device))
        except UserError as error:
            raise UserError(f"{key}.{error}") from None
        accepted = inspect.signature(base.forward).parameters
        self._takes_positions = "position_ids" in accepted
        self._config = base.config.get_text_config()
        self.generation_config = getattr(base, "generation_config", None)
        self.adapted = _adapted(base, rank, alpha, dropout, target_modules, key)
        self.train()

    @property
    def width(self) -> int:
        """Length of a hidden state."""
        return int(self._config.hidden_size)

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""
        return int(self._config.vocab_size)

    @property
    def max_positions(self) -> int | None:
        """Longest input in tokens; None if the architecture does not say."""
        value = getattr(self._config, "max_position_embeddings", None)
        return None if value is None else int(value)

    @property
    def device(self) -> torch.device:
        """Where the base is."""
        found: torch.device = self.adapted.device
        return found

    @property
    def embeddings(self) -> nn.Module:
        """The frozen table from token ids to input vectors."""
        table: nn.Module = self.adapted.get_input_embeddings()
        return table

    def forward(self, attention_mask: Tensor, **inputs: Any) -> Any:
        """Return the transformer's output object.

        Parameters
        ----------
        attention_mask : int64 tensor, shape (B, T)
            1 for tokens, 0 for padding, which may stand on either side; with a key-value cache it covers the past.
        inputs : Any
            ``input_ids`` or ``inputs_embeds`` and whatever else the transformer takes.
        """
        if self._takes_positions:
            new = (inputs["input_ids"] if "input_ids" in inputs else inputs["inputs_embeds"]).shape[1]
            # Counted over real tokens, so that padding on the left does not move a text.
            inputs["position_ids"] = (attention_mask.cumsum(1) - 1).clamp(min=0)[:, -new:]
        return self.adapted(attention_mask=attention_mask, **inputs)

    def without_adapter(self) -> AbstractContextManager[None]:
        """Return a context in which the transformer is the pretrained one."""
        context: AbstractContextManager[None] = self.adapted.disable_adapter()
        return context

    def train(self, mode: bool = True) -> LoraTransformer:
        """Switch the adapter's dropout on or off; the base stays in evaluation mode."""
        super().train(False)
        for name, module in self.named_modules():
            module.training = mode and ".lora_dropout." in name
        self.training = mode
        return self

    def save_adapter(self, directory: Path) -> None:
        """Write the adapter as peft does, so that ``peft.PeftModel.from_pretrained`` reads it."""
        self.adapted.save_pretrained(str(directory), save_embedding_layers=False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LoraTransformer:
        # PyTorch moves and casts parameters in place, which would reach all other networks on the same base.
        raise TypeError("the base is shared with other networks; set dtype and device where the network is built")


def trainable_state(network: nn.Module) -> State:
    """Return the tensors that are trained, by parameter name; they share memory with the network."""
    return {name: tensor.detach() for name, tensor in network.named_parameters() if tensor.requires_grad}


def load_trainable(network: nn.Module, state: State) -> None:
    """Copy a state into a network's trained parameters.

    Raises
    ------
    KeyError
        If the state lacks one of them; names that the network does not know are left alone.
    """
    with torch.no_grad():
        for name, tensor in network.named_parameters():
            if tensor.requires_grad:
                tensor.copy_(state[name])


@functools.lru_cache(maxsize=4)
def _shared_base(folder: Path, kind: Kind, dtype: Dtype, device: str) -> Any:
    import transformers

    loader = {"causal": transformers.AutoModelForCausalLM, "hidden": transformers.AutoModel}[kind]
    return load_network(folder, loader, dtype, device, "model").requires_grad_(False)


def _own_modules(base: Any) -> Any:
    """Return a copy of a network with modules of its own and the same tensors."""
    shared = {id(tensor): tensor for tensor in itertools.chain(base.parameters(), base.buffers())}
    return copy.deepcopy(base, shared)


def _adapted(
    base: Any, rank: int, alpha: float, dropout: float, target_modules: tuple[str, ...] | None, key: str
) -> Any:
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
