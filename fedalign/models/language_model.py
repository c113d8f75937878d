"""A language model that is aligned by reinforcement learning: a LoRA policy and a value head on one body."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from fedalign.contribution import State
from fedalign.models.base import ModelSpec
from fedalign.models.policy import PolicySpec
from fedalign.pretrained import Dtype


@dataclass(frozen=True)
class LanguageModelSpec(ModelSpec):
    """Settings of a :class:`ValuedPolicy`.

    Parameters
    ----------
    model : str
        Hub name or local folder of a causal language model.
    rank : int
    alpha : float
    dropout : float
    target_modules : tuple of str or None
        See :class:`fedalign.models.lora.LoraTransformer`. Query and value are ``q_proj`` and ``v_proj`` in Llama, Qwen
        and their kin. GPT-2 keeps query, key and value in one matrix, ``c_attn``, so that all three are adapted.
    freeze_a : bool
        Whether only the factor B of the adapter is trained, see :meth:`fedalign.models.lora.LoraTransformer.freeze_a`.
    dtype : "float32", "bfloat16" or "float16"
        Precision of the frozen model.
    device : str
        PyTorch device, e.g. ``cpu`` or ``cuda``.
    compile : bool
        Whether passes over whole texts are compiled, see :class:`fedalign.models.compiled.CompiledPass`.
    """

    model: str
    rank: Annotated[int, Field(ge=1)]
    alpha: Annotated[float, Field(gt=0)]
    dropout: Annotated[float, Field(ge=0, lt=1)]
    target_modules: tuple[str, ...] | None
    freeze_a: bool
    dtype: Dtype
    device: str
    compile: bool = False

    def build(self, key: str = "model") -> ValuedPolicy:
        """Return a fresh network; draws from PyTorch's default generator.

        Parameters
        ----------
        key : str
            Where these settings stand in the configuration, for error messages.

        Raises
        ------
        UserError
            If the model cannot be had, or has no matrices of these names.
        """
        return ValuedPolicy(self, key)


class ValuedPolicy(nn.Module):
    """A causal language model with LoRA, and a linear head that reads a number from each of its hidden states.

    The policy imitates and writes; the head is a reward model's score of a whole text, or the value of each of its
    prefixes. Trained parameters are the adapter's and the head's; a phase whose loss knows no number trains without
    the head: ``head.requires_grad_(False)``.

    Parameters
    ----------
    spec : LanguageModelSpec
    key : str

    Attributes
    ----------
    policy : ConditionalPolicy
        Takes no z.
    head : nn.Linear
        From a hidden state to one number, in float32; it starts at 0.
    """

    def __init__(self, spec: LanguageModelSpec, key: str) -> None:
        super().__init__()
        settings = PolicySpec(
            model=spec.model,
            rank=spec.rank,
            alpha=spec.alpha,
            dropout=spec.dropout,
            target_modules=spec.target_modules,
            # Without a latent there is nothing to tell, by whichever way.
            condition="embedding",
            prefix_tokens=1,
            init_std=0.0,
            dtype=spec.dtype,
            device=spec.device,
            compile=spec.compile,
        )
        self.policy = settings.build(0, key)
        if spec.freeze_a:
            self.policy.transformer.freeze_a()
        self.head = nn.Linear(self.policy.transformer.width, 1).to(spec.device)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    @property
    def device(self) -> torch.device:
        """Where inputs must be."""
        return self.policy.device

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits of the next token and values at every position, in one pass through the body.

        Parameters
        ----------
        input_ids : int64 tensor, shape (B, T)
        attention_mask : int64 tensor, shape (B, T)
            1 for tokens, 0 for padding on either side.

        Returns
        -------
        logits : float tensor, shape (B, T, V)
        values : float32 tensor, shape (B, T)
            Of the text up to and with each token.
        """
        logits, hidden = self.policy.transformer.with_hidden(attention_mask, input_ids)
        return logits, self._read(hidden)

    def scores(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the head's number at each text's last token; no logits are computed.

        Parameters
        ----------
        input_ids, attention_mask : int64 tensor, shape (B, T)
            See :meth:`forward`; every text has a token.

        Returns
        -------
        float32 tensor, shape (B,)
        """
        hidden = self.policy.transformer.hidden(attention_mask, input_ids)
        last = attention_mask.shape[1] - 1 - attention_mask.flip(1).argmax(1)
        return self._read(hidden[torch.arange(len(hidden), device=hidden.device), last])

    def adapter(self) -> State:
        """Return all tensors of the adapter by parameter name, a frozen A included; they share memory with the network.

        What a node needs beside the pretrained model to write as this policy does.
        """
        prefix = "policy.transformer."
        return {prefix + name: tensor for name, tensor in self.policy.transformer.adapter().items()}

    def load_adapter(self, state: State) -> None:
        """Copy a state into the adapter, a frozen A included; names that it does not have are left alone.

        Raises
        ------
        KeyError
            If the state lacks one of its tensors.
        """
        for name, tensor in self.adapter().items():
            tensor.copy_(state[name])

    def _read(self, hidden: Tensor) -> Tensor:
        numbers: Tensor = self.head(hidden.float())[..., 0]
        return numbers
