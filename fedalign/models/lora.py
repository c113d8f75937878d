"""A frozen transformer with a LoRA adapter of its own; what is trained and travels is the adapter alone."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedalign.contribution import State
from fedalign.errors import UserError
from fedalign.hub import model_folder
from fedalign.models.compiled import CompiledPass
from fedalign.models.lora_base import Kind, adapted, own_modules
from fedalign.pretrained import Dtype


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
    compile : bool
        Whether passes over whole texts are compiled, see :class:`fedalign.models.compiled.CompiledPass`. Writing with a
        key-value cache is not: its tensors grow with every token.

    Attributes
    ----------
    can_skip_logits : bool
        Whether ``logits_to_keep`` is among what the transformer takes: of how many last tokens to give logits.

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
        compile: bool = False,
    ) -> None:
        super().__init__()
        folder = model_folder(model, f"{key}.model").resolve()
        try:
            base = own_modules(folder, kind, dtype, device)
        except UserError as error:
            raise UserError(f"{key}.{error}") from None
        accepted = inspect.signature(base.forward).parameters
        self._takes_positions = "position_ids" in accepted
        self.can_skip_logits = "logits_to_keep" in accepted
        self._config = base.config.get_text_config()
        self.generation_config = getattr(base, "generation_config", None)
        self.adapted = adapted(base, rank, alpha, dropout, target_modules, key)
        # Where an adapter that is saved finds its base: as it was asked for, not where it lies on this machine.
        self.adapted.peft_config["default"].base_model_name_or_path = model
        body = self.adapted.get_base_model().base_model
        self._compiled = tuple(CompiledPass(each, key) for each in (self.adapted, body)) if compile else None
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

    def freeze_a(self) -> None:
        """Train the factor B of the adapter alone; A stays as it was drawn (FFA-LoRA, Sun et al. 2024, section 4).

        What the adapter adds to a matrix is then linear in what is trained: the mean of clients' adapters is the
        adapter of their mean, and noise on B adds to the product and is not multiplied by noise on A. All who train
        together must hold the same A, which is part of :meth:`adapter`.
        """
        for name, tensor in self.named_parameters():
            if ".lora_A." in name:
                tensor.requires_grad_(False)

    @property
    def compiled(self) -> bool:
        """Whether passes over whole texts are compiled, so that hooks on layers do not see them."""
        return self._compiled is not None

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
        caching = inputs.get("use_cache") or inputs.get("past_key_values") is not None
        whole = self.adapted if self._compiled is None or caching else self._compiled[0]
        return whole(attention_mask=attention_mask, **self._placed(attention_mask, inputs))

    def with_hidden(self, attention_mask: Tensor, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return what :meth:`forward` computes and the hidden states it computes it from, in one pass.

        Parameters
        ----------
        attention_mask, input_ids : int64 tensor, shape (B, T)

        Returns
        -------
        logits : float tensor, shape (B, T, V)
        hidden : float tensor, shape (B, T, width)
            Of the last layer, after the final norm.
        """
        output = self(attention_mask, input_ids=input_ids, use_cache=False, output_hidden_states=True)
        return output.logits, output.hidden_states[-1]

    def hidden(self, attention_mask: Tensor, input_ids: Tensor) -> Tensor:
        """Return the hidden states of the last layer, after the final norm, without any logits.

        Parameters
        ----------
        attention_mask, input_ids : int64 tensor, shape (B, T)

        Returns
        -------
        float tensor, shape (B, T, width)
        """
        body = self.adapted.get_base_model().base_model if self._compiled is None else self._compiled[1]
        inputs = self._placed(attention_mask, {"input_ids": input_ids})
        output = body(attention_mask=attention_mask, use_cache=False, **inputs)
        hidden: Tensor = output.last_hidden_state
        return hidden

    def adapter(self) -> State:
        """Return all tensors of the adapter by parameter name, trained or not; they share memory with the network."""
        return {name: tensor.detach() for name, tensor in self.named_parameters() if ".lora_" in name}

    @contextlib.contextmanager
    def without_adapter(self) -> Iterator[None]:
        """Make the transformer the pretrained one inside the context; what is trained stays so after it."""
        trained = [(tensor, tensor.requires_grad) for tensor in self.parameters()]
        try:
            with self.adapted.disable_adapter():
                yield
        finally:
            # peft lets every factor of the adapter be trained at the end, a frozen A too.
            for tensor, was in trained:
                tensor.requires_grad_(was)

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
        # A model card that nobody has filled in.
        (directory / "README.md").unlink(missing_ok=True)

    def _placed(self, attention_mask: Tensor, inputs: dict[str, Any]) -> dict[str, Any]:
        """Return inputs with the positions of their tokens, where the architecture takes them."""
        if not self._takes_positions:
            return inputs
        new = (inputs["input_ids"] if "input_ids" in inputs else inputs["inputs_embeds"]).shape[1]
        # Counted over real tokens, so that padding on the left does not move a text.
        return {**inputs, "position_ids": (attention_mask.cumsum(1) - 1).clamp(min=0)[:, -new:]}

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
