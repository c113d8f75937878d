"""A frozen causal language model, one pass at a time with a key-value cache."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedalign.models.lora_base import own_modules
from fedalign.pretrained import Dtype


class CausalModel(nn.Module):
    """A folder's causal model with modules of its own, whose tensors all such models of one folder share.

    Parameters
    ----------
    folder : Path
        See :func:`fedalign.hub.model_folder`.
    dtype : "float32", "bfloat16" or "float16"
    device : str

    Raises
    ------
    UserError
        If it cannot be loaded; the message begins with ``model``.
    """

    def __init__(self, folder: Path, dtype: Dtype, device: str) -> None:
        super().__init__()
        self.network = own_modules(folder.resolve(), "causal", dtype, device)
        accepted = inspect.signature(self.network.forward).parameters
        self._takes_positions = "position_ids" in accepted
        self._can_skip_logits = "logits_to_keep" in accepted
        self._config = self.network.config.get_text_config()

    @property
    def device(self) -> torch.device:
        """Where inputs must be."""
        found: torch.device = next(self.network.parameters()).device
        return found

    @property
    def vocabulary(self) -> int:
        """Number of tokens that logits are over."""
        return int(self._config.vocab_size)

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """Tokens that end a text; may be empty."""
        value = getattr(self.network.generation_config, "eos_token_id", None)
        return () if value is None else tuple(value) if isinstance(value, list) else (int(value),)

    @property
    def pad_token(self) -> int:
        """The token that stands where there is none."""
        value = getattr(self.network.generation_config, "pad_token_id", None)
        return int(value) if value is not None else next(iter(self.end_tokens), 0)

    @property
    def max_tokens(self) -> int | None:
        """Longest text in tokens; None if the model does not say."""
        value = getattr(self._config, "max_position_embeddings", None)
        return None if value is None else int(value)

    def advance(
        self, input_ids: Tensor, attention_mask: Tensor, cache: Any, keep_cache: bool, last_only: bool
    ) -> tuple[Tensor, Any]:
        """Return logits at the new tokens, and a cache that makes the next call cheap.

        Parameters
        ----------
        input_ids : int64 tensor, shape (B, new)
        attention_mask : int64 tensor, shape (B, past + new)
            1 for tokens, 0 for padding on either side.
        cache : Any
            What the call before returned; None at the start.
        keep_cache : bool
        last_only : bool
            Whether logits at the last token are all that is wanted.

        Returns
        -------
        logits : float32 tensor, shape (B, new, V) or (B, 1, V)
        cache : Any
        """
        more: dict[str, Any] = {}
        if self._takes_positions:
            more["position_ids"] = token_positions(attention_mask, input_ids.shape[1])
        if last_only and self._can_skip_logits:
            more["logits_to_keep"] = 1
        output = self.network(
            input_ids=input_ids, attention_mask=attention_mask, past_key_values=cache, use_cache=keep_cache, **more
        )
        wanted = 1 if last_only else input_ids.shape[1]
        logits = output.logits[:, -wanted:].float()
        if not keep_cache:
            return logits, None
        return logits, _with_room(output.past_key_values) if cache is None else output.past_key_values


def _with_room(cache: Any) -> Any:
    try:
        from fedalign.models.growing_cache import with_room
    except ImportError:  # caches of an older transformers have no layers
        return cache
    return with_room(cache)


def token_positions(attention_mask: Tensor, new: int) -> Tensor:
    """Return positions of the last ``new`` tokens, counted over real ones: padding on the left does not move a text."""
    return (attention_mask.cumsum(1) - 1).clamp(min=0)[:, -new:]
