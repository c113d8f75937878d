"""A language model with LoRA as the body of a reward model: it reads rows of token ids, not frozen vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedalign.errors import UserError
from fedalign.models.body import Body, BodySpec
from fedalign.models.lora import LoraTransformer
from fedalign.pretrained import Dtype

Pooling = Literal["last", "mean"]


@dataclass(frozen=True)
class LoraBody(BodySpec):
    """A transformer on the token ids that ``encoder=tokens`` gives; the two must name the same model.

    Parameters
    ----------
    model : str
        Hub name or local folder.
    rank : int
    alpha : float
    dropout : float
    target_modules : tuple of str or None
        See :class:`fedalign.models.lora.LoraTransformer`.
    pooling : "last" or "mean"
        The hidden state of the last token, or the mean over all of them.
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
    pooling: Pooling
    dtype: Dtype
    device: str
    compile: bool = False

    def build(self, features: int) -> Body:
        """Return a fresh body for rows of ``features`` token ids; draws from PyTorch's default generator.

        Raises
        ------
        UserError
            If the model cannot be had, or reads fewer tokens than that.
        """
        return _LoraNetwork(features, self)


class _LoraNetwork(Body):
    """From rows of token ids to the hidden states that stand for them; only the adapter is trained."""

    def __init__(self, tokens: int, spec: LoraBody) -> None:
        super().__init__()
        self._pooling = spec.pooling
        self.transformer = LoraTransformer(
            spec.model,
            "hidden",
            spec.rank,
            spec.alpha,
            spec.dropout,
            spec.target_modules,
            spec.dtype,
            spec.device,
            "model.body",
            spec.compile,
        )
        limit = self.transformer.max_positions
        if limit is not None and tokens > limit:
            raise UserError(
                f"encoder.max_length={tokens}: model.body.model={spec.model} reads {limit} tokens; lower it"
            )
        self.dim = self.transformer.width

    def forward(self, vectors: Tensor) -> Tensor:
        """Return hidden states.

        Parameters
        ----------
        vectors : float tensor, shape (..., tokens)
            Token ids, then -1 for padding; every row holds at least one id.

        Returns
        -------
        float32 tensor, shape (..., dim)
            On the device of ``vectors``.

        Raises
        ------
        UserError
            If the rows are not token ids of this model.
        """
        rows = vectors.reshape(-1, vectors.shape[-1]).to(self.transformer.device)
        mask = (rows >= 0).long()
        self._check(rows, mask)
        longest = int(mask.sum(1).max())
        ids, mask = rows[:, :longest].long().clamp(min=0), mask[:, :longest]
        hidden = self.transformer(mask, input_ids=ids).last_hidden_state.float()
        return _pooled(hidden, mask, self._pooling).view(*vectors.shape[:-1], self.dim).to(vectors.device)

    def _check(self, rows: Tensor, mask: Tensor) -> None:
        """Refuse what an encoder of vectors gives, and ids beyond this model's vocabulary."""
        if not bool((rows == rows.round()).all() and mask[:, 0].all() and rows.max() < self.transformer.vocabulary):
            raise UserError(
                "model.body: the encoder gives no token ids of this model; set encoder=tokens and the same model"
            )


def _pooled(hidden: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """Return one vector a row, shape (N, dim), from hidden states of shape (N, T, dim)."""
    if pooling == "last":
        return hidden[torch.arange(len(hidden), device=hidden.device), mask.sum(1) - 1]
    weights = mask[..., None].to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1)
