"""A control model that reads: a small causal transformer with a head as wide as there are experts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fedalign.errors import UserError
from fedalign.hub import model_folder
from fedalign.models.causal import token_positions
from fedalign.models.control import Control, ControlSpec, Told, zero_head
from fedalign.pretrained import load_network


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
        # As large as a token's embedding at first: a louder preference would drown the text.
        spread = float(getattr(body.config.get_text_config(), "initializer_range", 0.02))
        if preference == "vector":
            self.told = nn.Linear(experts, width, bias=False)
            nn.init.normal_(self.told.weight, std=spread)
        elif preference == "id":
            # The last row is for what has no number; it starts at 0 and stays there.
            self.told = nn.Embedding(preferences + 1, width, padding_idx=preferences)
            self.told.weight.data.mul_(spread)
        self._by_number = preference == "id"
        self.in_words = preference == "text"
        self.head = zero_head(width, experts)
        self.value = zero_head(width, 1)

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
