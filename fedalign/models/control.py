"""The control model: from a stated preference and a text so far to weights over experts at every token."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fedalign.errors import UserError
from fedalign.hub import model_folder
from fedalign.models.causal import token_positions
from fedalign.models.mixture import expert_log_weights
from fedalign.pretrained import load_network


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
        Weights that hold whatever the control model says, where the row sums to 1; zeros leave it to the model.
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


@dataclass(frozen=True)
class ConstantSpec(ControlSpec):
    """Weights that follow the preference alone, the same at every token; what a control model is compared with.

    Parameters
    ----------
    width : int
        Hidden units.
    """

    width: Annotated[int, Field(ge=1)]

    @property
    def reads_texts(self) -> bool:
        """Never."""
        return False

    def build(self, experts: int, preferences: int, vocabulary: int, device: torch.device) -> ConstantControl:
        """Return a fresh network."""
        return ConstantControl(experts, self.width).to(device)


class ConstantControl(Control):
    """One hidden layer on the preference's vector.

    Parameters
    ----------
    experts, width : int
    """

    def __init__(self, experts: int, width: int) -> None:
        super().__init__(experts)
        self.body = nn.Sequential(nn.Linear(experts, width), nn.Tanh())
        self.head = _zero_head(width, experts)
        self.value = _zero_head(width, 1)

    def advance(
        self, told: Told, input_ids: Tensor, attention_mask: Tensor, cache: Any, keep_cache: bool = True
    ) -> tuple[Tensor, Tensor, Any]:
        """Return the same scores and value at every token."""
        hidden = self.body(told.vector)[:, None].expand(-1, input_ids.shape[1], -1)
        return self.head(hidden), self.value(hidden)[..., 0], None


@dataclass(frozen=True)
class TransformerSpec(ControlSpec):
    """A small causal transformer of Llama's kind whose head is as wide as there are experts.

    Parameters
    ----------
    pretrained : str or None
        Hub name or local folder of a network to begin with, of any architecture, whose tokens are the experts'; sizes
        are then its own. None draws one.
    hidden, layers, heads, intermediate : int
    max_tokens : int
        Longest text that is read.
    preference : {"vector", "text", "id"}
        How the preference is told: its vector is projected and added to every token's embedding, its words stand
        before the text, or its number has an embedding of its own, which is added (preferences that training has not
        met are then nothing to it).
    """

    pretrained: str | None
    hidden: Annotated[int, Field(ge=1)]
    layers: Annotated[int, Field(ge=1)]
    heads: Annotated[int, Field(ge=1)]
    intermediate: Annotated[int, Field(ge=1)]
    max_tokens: Annotated[int, Field(ge=1)]
    preference: Literal["vector", "text", "id"]

    def build(self, experts: int, preferences: int, vocabulary: int, device: torch.device) -> TransformerControl:
        """Return a fresh network."""
        from transformers import AutoModel, LlamaConfig, LlamaModel

        if self.pretrained is not None:
            key = "method.control.pretrained"
            body = load_network(model_folder(self.pretrained, key), AutoModel, "float32", str(device), key)
            own = int(body.config.get_text_config().vocab_size)
            if own != vocabulary:
                differs = f"it reads {own} tokens, and the experts {vocabulary}"
                raise UserError(f"{key}={self.pretrained}: {differs}; choose one that shares their vocabulary")
        else:
            body = LlamaModel(
                LlamaConfig(
                    vocab_size=vocabulary,
                    hidden_size=self.hidden,
                    num_hidden_layers=self.layers,
                    num_attention_heads=self.heads,
                    num_key_value_heads=self.heads,
                    intermediate_size=self.intermediate,
                    max_position_embeddings=self.max_tokens,
                )
            )
        return TransformerControl(body, experts, preferences, self.preference).to(device)


class TransformerControl(Control):
    """A transformer body told the preference through its inputs, with a head for weights and one for values.

    Parameters
    ----------
    body : nn.Module
        A model of transformers' without a head.
    experts, preferences : int
    preference : {"vector", "text", "id"}
    """

    def __init__(self, body: Any, experts: int, preferences: int, preference: str) -> None:
        super().__init__(experts)
        self.body = body
        width = body.config.get_text_config().hidden_size
        self.told: nn.Module | None = None
        if preference == "vector":
            self.told = nn.Linear(experts, width, bias=False)
        elif preference == "id":
            # The last row is for what has no number; it starts at 0 and stays there.
            self.told = nn.Embedding(preferences + 1, width, padding_idx=preferences)
        self._by_number = preference == "id"
        self.in_words = preference == "text"
        self.head = _zero_head(width, experts)
        self.value = _zero_head(width, 1)

    @property
    def max_tokens(self) -> int | None:
        """Longest text in tokens; None if the body does not say."""
        value = getattr(self.body.config.get_text_config(), "max_position_embeddings", None)
        return None if value is None else int(value)

    def advance(
        self, told: Told, input_ids: Tensor, attention_mask: Tensor, cache: Any, keep_cache: bool = True
    ) -> tuple[Tensor, Tensor, Any]:
        """Return scores and values at new tokens."""
        new = input_ids.shape[1]
        if self.in_words:
            ids, mask = told.opening
            attention_mask = torch.cat([mask, attention_mask], 1)
            if cache is None:
                input_ids = torch.cat([ids, input_ids], 1)
        vectors = self.body.get_input_embeddings()(input_ids)
        if self.told is not None:
            vectors = vectors + self._preference(told)[:, None]
        output = self.body(
            inputs_embeds=vectors,
            attention_mask=attention_mask,
            position_ids=token_positions(attention_mask, vectors.shape[1]),
            past_key_values=cache,
            use_cache=keep_cache,
        )
        hidden = output.last_hidden_state[:, -new:]
        return self.head(hidden), self.value(hidden)[..., 0], output.past_key_values if keep_cache else None

    def _preference(self, told: Told) -> Tensor:
        assert self.told is not None
        if not self._by_number:
            found: Tensor = self.told(told.vector)
            return found
        table: Any = self.told
        known: Tensor = table(told.number.where(told.number >= 0, table.padding_idx))
        return known


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


def _zero_head(width: int, outputs: int) -> nn.Linear:
    head = nn.Linear(width, outputs)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head
