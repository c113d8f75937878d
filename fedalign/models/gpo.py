"""Group Preference Optimization network: a transformer in which every point looks at the context points only."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from fedalign.errors import UserError
from fedalign.models.base import ModelSpec


class ContextAttention(nn.Module):
    """Multi-head attention whose keys and values are the first ``n_context`` points.

    Parameters
    ----------
    width : int
    heads : int
        Must divide ``width``.
    """

    stackable: ClassVar[bool] = True

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        # One Xavier draw over the stacked projections, as torch.nn.MultiheadAttention does it.
        stacked = nn.init.xavier_uniform_(torch.empty(3 * width, width))
        with torch.no_grad():
            self.query.weight.copy_(stacked[:width])
            self.key_value.weight.copy_(stacked[width:])
            for linear in (self.query, self.key_value, self.out):
                linear.bias.zero_()

    def forward(self, x: Tensor, n_context: int, known: Tensor | None = None) -> Tensor:
        """Return attended points, shape (..., points, width).

        Parameters
        ----------
        x : Tensor, shape (..., points, width)
            The first ``n_context`` points are the context.
        n_context : int
        known : bool Tensor, shape (..., n_context), or None
            Which of them are there, at least one; None stands for all.
        """
        points, width = x.shape[-2:]
        query = self.query(x).view(-1, points, self.heads, width // self.heads).transpose(1, 2)
        key_value = self.key_value(x[..., :n_context, :])
        key, value = key_value.view(-1, n_context, 2, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mask = None if known is None else known.view(-1, 1, 1, n_context)
        attended = F.scaled_dot_product_attention(query, key, value, mask)
        merged: Tensor = self.out(attended.transpose(1, 2).reshape(x.shape))
        return merged


class Block(nn.Module):
    """One post-norm transformer block with ReLU, as in torch.nn.TransformerEncoderLayer."""

    stackable: ClassVar[bool] = True

    def __init__(self, width: int, heads: int, feedforward: int) -> None:
        super().__init__()
        self.attention = ContextAttention(width, heads)
        self.norm1 = nn.LayerNorm(width)
        self.up = nn.Linear(width, feedforward)
        self.down = nn.Linear(feedforward, width)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, x: Tensor, n_context: int, known: Tensor | None = None) -> Tensor:
        """Return transformed points, shape (..., points, width); see :class:`ContextAttention`."""
        x = self.norm1(x + self.attention(x, n_context, known))
        transformed: Tensor = self.norm2(x + self.down(F.relu(self.up(x))))
        return transformed


class GPONetwork(nn.Module):
    """Predict a Gaussian over each target point from labelled context points (GPO, Zhao et al. 2024, section 3).

    A point is one (question, option) pair: its features, its share (0 for targets, whose share is hidden) and,
    where a question prior is used, the prior's view of it. There is no positional encoding, so the
    order of the context does not matter, and a target sees the context and itself but no other target.

    Parameters
    ----------
    inputs : int
        Length of a token: features + 1 + extra.
    features : int
        How many inputs of a token are encoder features; they come first.
    settings : GPOModel
    """

    stackable: ClassVar[bool] = True

    def __init__(self, inputs: int, features: int, settings: GPOModel) -> None:
        super().__init__()
        width, layers, heads, feedforward = settings.width, settings.layers, settings.heads, settings.feedforward
        self.features, self.input_scale = features, settings.input_scale
        sizes = [inputs] + [width] * settings.embed_depth
        linears = [nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
        self.embedder = nn.Sequential(*[m for linear in linears for m in (linear, nn.ReLU())][:-1])
        self.blocks = nn.ModuleList(Block(width, heads, feedforward) for _ in range(layers))
        self.head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2))

    def forward(self, tokens: Tensor, n_context: int, known: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return mean logit and log standard deviation of every target point.

        Parameters
        ----------
        tokens : Tensor, shape (..., points, inputs)
            Context points first, then target points with their share set to 0.
        n_context : int
            Number of context points, at least 1.
        known : bool Tensor, shape (..., n_context), or None
            Which context points are there, at least one, where some have fewer than others; None stands for all.

        Returns
        -------
        tuple of Tensor, each of shape (..., points - n_context)
        """
        x = self.embedder(self._scaled(tokens))
        for block in self.blocks:
            x = block(x, n_context, known)
        mean, log_std = self.head(x[..., n_context:, :]).unbind(-1)
        return mean, log_std

    def _scaled(self, tokens: Tensor) -> Tensor:
        if self.input_scale == "raw":
            return tokens
        features, others = tokens[..., : self.features], tokens[..., self.features :]
        factor = self.features**0.5 if self.input_scale == "all" else 1.0
        return torch.cat([F.rms_norm(features, (self.features,)), others * factor], -1)


@dataclass(frozen=True)
class GPOModel(ModelSpec):
    """Settings of a :class:`GPONetwork`.

    Parameters
    ----------
    width, layers, heads, feedforward : int
        Of the transformer.
    embed_depth : int
        Linear layers of the token embedder.
    input_scale : {"raw", "features", "all"}
        ``raw`` takes inputs as they come, as the released code does. ``features`` brings every feature vector to a
        root mean square of 1, about what a language model's hidden states have; sentence encoders return unit
        vectors, whose entries are far smaller. ``all`` also brings share and prior to the length of that vector.

    Raises
    ------
    UserError
        If ``heads`` does not divide ``width``.
    """

    width: Annotated[int, Field(ge=1)]
    layers: Annotated[int, Field(ge=1)]
    heads: Annotated[int, Field(ge=1)]
    feedforward: Annotated[int, Field(ge=1)]
    embed_depth: Annotated[int, Field(ge=1)]
    input_scale: Literal["raw", "features", "all"]

    def __post_init__(self) -> None:
        """Check that the heads share the width evenly."""
        if self.width % self.heads:
            raise UserError(f"model.heads={self.heads} does not divide model.width={self.width}; choose a divisor")

    def build(self, features: int, extra: int) -> GPONetwork:
        """Return a network for ``features`` encoder features, one share and ``extra`` prior inputs a token."""
        return GPONetwork(features + 1 + extra, features, self)
