"""The control model: from a stated preference and a text so far to weights over experts at every token."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fedalign.models.mixture import expert_log_weights


@dataclass(frozen=True)
class Told:
    """What a control model is told of each of B texts before the text itself.

    Parameters
    ----------
    vector : float32 tensor, shape (B, n)
        How much is wanted of what each expert stands for; 0 for experts that are to have no part.
    active : bool tensor, shape (B, n)
        Which experts may have a weight; at least one.
    number : int64 tensor, shape (B,)
        The preference's place among those that can be stated; -1 where it is none of them.
    opening : (int64 tensor, int64 tensor), each of shape (B, O)
        The statement in words, as token ids and mask, padded on the left.
    fixed : float32 tensor, shape (B, n)
        Weights that hold whatever the control model says, where the row sums to 1, all of it on experts that are
        active; zeros leave it to the model.
    """

    vector: Tensor
    active: Tensor
    number: Tensor
    opening: tuple[Tensor, Tensor]
    fixed: Tensor

    def map(self, change: Callable[[Tensor], Tensor]) -> Told:
        """Return the same with every tensor changed: other rows, or another device."""
        ids, mask = self.opening
        return Told(
            change(self.vector),
            change(self.active),
            change(self.number),
            (change(ids), change(mask)),
            change(self.fixed),
        )

    def even(self) -> Told:
        """Return the same with equal weights on the active experts, whatever the control model says."""
        return replace(self, fixed=(self.active / self.active.sum(1, keepdim=True)).to(self.fixed))


class Control(nn.Module, ABC):
    """A network with a score for each expert at every token, and a value of each prefix.

    Parameters
    ----------
    experts : int
        n.

    Attributes
    ----------
    in_words : bool
        Whether it reads the preference's statement before the text.
    """

    in_words: bool = False

    def __init__(self, experts: int) -> None:
        super().__init__()
        self.experts = experts

    @abstractmethod
    def advance(
        self, told: Told, input_ids: Tensor, attention_mask: Tensor, cache: Any, keep_cache: bool = True
    ) -> tuple[Tensor, Tensor, Any]:
        """Return scores and values at new tokens; those at a token are about the one that follows.

        Parameters
        ----------
        told : Told
            The same in all calls of one text.
        input_ids : int64 tensor, shape (B, new)
        attention_mask : int64 tensor, shape (B, past + new)
        cache : Any
            What the call before returned; None at the start.
        keep_cache : bool

        Returns
        -------
        scores : float32 tensor, shape (B, new, n)
        values : float32 tensor, shape (B, new)
        cache : Any
        """

    @property
    def max_tokens(self) -> int | None:
        """Longest text that it reads, what it is told included; None if any."""
        return None


class ControlSpec(ABC):
    """Settings of a control model (the ``control`` part of the method); subclasses are frozen dataclasses."""

    @property
    def reads_texts(self) -> bool:
        """Whether weights may change from token to token."""
        return True

    @abstractmethod
    def build(self, experts: int, preferences: int, vocabulary: int, device: torch.device) -> Control:
        """Return a fresh network; draws from PyTorch's default generator.

        A fresh one weighs all active experts the same, whatever the text: its head starts at 0.

        Parameters
        ----------
        experts : int
            n.
        preferences : int
            How many preferences can be stated by number.
        vocabulary : int
        device : torch.device

        Raises
        ------
        UserError
            If a pretrained network cannot be had, or reads other tokens.
        """


def log_weights(scores: Tensor, told: Told, bias: Tensor | None = None) -> Tensor:
    """Return the logarithm of weights over experts, ``-inf`` where an expert has no part.

    Parameters
    ----------
    scores : float tensor, shape (B, S, n)
    told : Told
    bias : float tensor, shape (n,), optional
        What a client adds to all scores by itself.

    Returns
    -------
    float tensor, shape (B, S, n)
    """
    found = expert_log_weights(scores if bias is None else scores + bias, told.active[:, None])
    held = (told.fixed.sum(1) > 0)[:, None, None]
    return torch.where(held, told.fixed.log()[:, None], found)


def zero_head(width: int, outputs: int) -> nn.Linear:
    """Return a linear head that says 0 whatever it reads."""
    head = nn.Linear(width, outputs)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head
