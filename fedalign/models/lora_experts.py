"""Experts that are LoRA adapters of one frozen base: all of them in one batched pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedalign.contribution import State
from fedalign.models.causal import CausalModel
from fedalign.models.experts import Experts, Pairs
from fedalign.pretrained import Dtype

_A, _B = ".lora_A.", ".lora_B."
_BASE = "base_model.model."
"""What stands before the path of an adapted matrix in peft's names, whatever wraps the adapted model."""


class LoraExperts(Experts):
    """n adapters, stacked: a row of the batch is a text under one expert, and has that expert's low-rank term.

    The base's weights are read once a pass for all experts, which is what makes many experts cheap where reading
    weights is the cost. An expert computes what peft's own adapter does, to rounding.

    Parameters
    ----------
    folder : Path
        Of the base.
    names : sequence of str, length n
    dtype : "float32", "bfloat16" or "float16"
        Precision of the base; adapters are float32.
    device : str

    Raises
    ------
    UserError
        If the base cannot be loaded.
    """

    def __init__(self, folder: Path, names: Sequence[str], dtype: Dtype, device: str) -> None:
        self.names = tuple(names)
        self._base = CausalModel(folder, dtype, device)
        self._modules = dict(self._base.network.named_modules())
        self._stacks: dict[str, _Stack] = {}

    def load(self, adapters: Sequence[Mapping[str, Tensor]], scales: Sequence[float]) -> None:
        """Take over adapters; those before are forgotten.

        Parameters
        ----------
        adapters : sequence of mappings from name to Tensor, length n
            An expert's factors by peft's names, with anything before ``base_model.model.``; ranks may differ, and an
            expert may lack a matrix that others adapt.
        scales : sequence of float, length n
            ``alpha / rank`` of each.

        Raises
        ------
        ValueError
            If an adapter names a matrix that the base lacks, or is more than low-rank factors of matrices.
        """
        for stack in self._stacks.values():
            stack.remove()
        places = [_factors(adapter) for adapter in adapters]
        paths = sorted({path for own in places for path in own})
        missing = [path for path in paths if path not in self._modules]
        if missing:
            raise ValueError(f"an expert adapts {missing[0]}, which the base model does not have")
        self._stacks = {
            path: _Stack(self._modules[path], [own.get(path) for own in places], scales, self.device) for path in paths
        }

    @property
    def device(self) -> torch.device:
        """Where inputs must be."""
        return self._base.device

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""
        return self._base.vocabulary

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """Tokens that end a text."""
        return self._base.end_tokens

    @property
    def pad_token(self) -> int:
        """The token that stands where there is none."""
        return self._base.pad_token

    @property
    def max_tokens(self) -> int | None:
        """Longest text in tokens."""
        return self._base.max_tokens

    @torch.no_grad()
    def advance(
        self,
        pairs: Pairs,
        input_ids: Tensor,
        attention_mask: Tensor,
        cache: Any,
        keep_cache: bool = True,
        last_only: bool = False,
    ) -> tuple[Tensor, Any]:
        """Return log-probabilities of all pairs from one pass."""
        for stack in self._stacks.values():
            stack.choose(pairs.expert)
        rows = input_ids[pairs.text], attention_mask[pairs.text]
        logits, cache = self._base.advance(*rows, cache, keep_cache, last_only)
        return logits.log_softmax(2), cache

    @torch.no_grad()
    def base(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the base model's log-probabilities."""
        for stack in self._stacks.values():
            stack.choose(None)
        return self._base.advance(input_ids, attention_mask, None, False, False)[0].log_softmax(2)


class _Stack:
    """One adapted matrix: the factors of all experts, and a hook that adds each row's own term.

    Parameters
    ----------
    module : nn.Module
        The frozen matrix.
    factors : sequence of (A, B) or None, length n
        A of shape (rank, inputs) and B of shape (outputs, rank); None changes nothing.
    scales : sequence of float, length n
    device : torch.device
    """

    def __init__(
        self,
        module: nn.Module,
        factors: Sequence[tuple[Tensor, Tensor] | None],
        scales: Sequence[float],
        device: torch.device,
    ) -> None:
        there = [pair for pair in factors if pair is not None]
        rank = max(len(a) for a, _ in there)
        inputs, outputs = there[0][0].shape[1], there[0][1].shape[0]
        down = torch.zeros(inputs, len(factors), rank, device=device)
        up = torch.zeros(len(factors), rank, outputs, device=device)
        for number, (pair, scale) in enumerate(zip(factors, scales, strict=True)):
            if pair is not None:
                a, b = (factor.detach().to(device, torch.float32) for factor in pair)
                down[:, number, : len(a)] = a.T
                up[number, : len(a)] = scale * b.T
        # Side by side, so that all rows pass through two matrices: faster than a small product for every row.
        self._down, self._up = down.flatten(1), up.flatten(0, 1)
        self._own = torch.eye(len(factors), device=device).repeat_interleave(rank, 1)
        self._rows: Tensor | None = None
        self._chosen: Tensor | None = None
        self._handle = module.register_forward_hook(self._add)

    def remove(self) -> None:
        """Take the hook off the matrix."""
        self._handle.remove()

    def choose(self, rows: Tensor | None) -> None:
        """Say whose factors each row of the batch has, int64 of shape (P,), or None for nobody's."""
        if self._rows is not rows:
            self._rows = rows
            self._chosen = None if rows is None else self._own[rows][:, None]

    def _add(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if self._chosen is None:
            return output
        hidden = (inputs[0].float() @ self._down) * self._chosen
        return output + (hidden @ self._up).to(output.dtype)


def _factors(adapter: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the factors of an adapter by the path of their matrix in the base."""
    found = {}
    for name, tensor in adapter.items():
        if ".lora_" in name and (_BASE not in name or not (_A in name or _B in name)):
            # Embeddings and magnitudes that peft can adapt too: an expert without them would be another one.
            raise ValueError(f"{name} is no low-rank factor of a matrix by peft's names")
        if _A in name:
            path = name.partition(_BASE)[2].partition(_A)[0]
            found[path] = tensor, adapter[name.replace(_A, _B)]
    return found


def merged_adapter(adapters: Sequence[State]) -> State:
    """Return the mean of adapters of the same names, factor by factor (Personalized Soups; Jang et al. 2023)."""
    return {name: torch.stack([adapter[name].float() for adapter in adapters]).mean(0) for name in adapters[0]}
