"""A language model that follows a latent preference: LoRA on a frozen causal model, told z through its inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fedalign.models.lora import LoraTransformer
from fedalign.pretrained import Dtype


@dataclass(frozen=True)
class PolicySpec:
    """Settings of a :class:`ConditionalPolicy`.

    Parameters
    ----------
    model : str
        Hub name or local folder of a causal language model.
    rank : int
    alpha : float
    dropout : float
    target_modules : tuple of str or None
        See :class:`fedalign.models.lora.LoraTransformer`.
    condition : {"embedding", "prefix"}
        ``embedding`` adds a projection of z to every input embedding, as FedVPA-GP does; ``prefix`` projects z to
        soft tokens before the text.
    prefix_tokens : int
        How many of these; read where ``condition`` is ``prefix``.
    init_std : float
        Standard deviation of the projection's first weights; small, so that a fresh z hardly disturbs the model.
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
    condition: Literal["embedding", "prefix"]
    prefix_tokens: Annotated[int, Field(ge=1)]
    init_std: Annotated[float, Field(ge=0)]
    dtype: Dtype
    device: str
    compile: bool = False

    def build(self, latent: int, key: str) -> ConditionalPolicy:
        """Return a fresh policy for latents of length ``latent``; draws from PyTorch's default generator.

        Parameters
        ----------
        latent : int
            0 builds a policy that takes no z.
        key : str
            Where these settings stand in the configuration, e.g. ``method.policy``, for error messages.

        Raises
        ------
        UserError
            If the model cannot be had.
        """
        return ConditionalPolicy(self, latent, key)


class ConditionalPolicy(nn.Module):
    """A causal language model steered by a latent vector z.

    Without z and adapter it is the pretrained model, bit for bit: see :meth:`reference`. Its trained parameters are
    the adapter's and the projection's.

    Parameters
    ----------
    spec : PolicySpec
    latent : int
    key : str
    """

    def __init__(self, spec: PolicySpec, latent: int, key: str) -> None:
        super().__init__()
        self.latent = latent
        self.transformer = LoraTransformer(
            spec.model,
            "causal",
            spec.rank,
            spec.alpha,
            spec.dropout,
            spec.target_modules,
            spec.dtype,
            spec.device,
            key,
            spec.compile,
        )
        table: Any = self.transformer.embeddings
        self._prefix = spec.prefix_tokens if spec.condition == "prefix" else 0
        width = table.weight.shape[1]
        self.projection = nn.Linear(latent, width * max(self._prefix, 1)).to(spec.device) if latent else None
        if self.projection is not None:
            nn.init.normal_(self.projection.weight, std=spec.init_std)
            nn.init.zeros_(self.projection.bias)
            if self._prefix:
                # A soft token starts as the average token: a vector near 0 is nothing that the model has ever seen.
                with torch.no_grad():
                    self.projection.bias.copy_(table.weight.float().mean(0).repeat(self._prefix))

    @property
    def device(self) -> torch.device:
        """Where inputs must be."""
        return self.transformer.device

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """Tokens that end a text; may be empty."""
        value = getattr(self.transformer.generation_config, "eos_token_id", None)
        return () if value is None else tuple(value) if isinstance(value, list) else (int(value),)

    @property
    def pad_token(self) -> int:
        """The token that stands where there is none."""
        value = getattr(self.transformer.generation_config, "pad_token_id", None)
        return int(value) if value is not None else next(iter(self.end_tokens), 0)

    @property
    def max_tokens(self) -> int | None:
        """Longest text in tokens; None if the model does not say."""
        limit = self.transformer.max_positions
        return None if limit is None else limit - self._prefix

    def forward(self, input_ids: Tensor, attention_mask: Tensor, z: Tensor | None) -> Tensor:
        """Return logits of the next token at every position.

        Parameters
        ----------
        input_ids : int64 tensor, shape (B, T)
        attention_mask : int64 tensor, shape (B, T)
            1 for tokens, 0 for padding on either side.
        z : float tensor, shape (B, latent), or None
            None leaves the inputs as they are.

        Returns
        -------
        float tensor, shape (B, T, V)
        """
        return self.advance(input_ids, attention_mask, z, None, False)[0]

    @torch.no_grad()
    def reference(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the pretrained model's logits, shape (B, T, V); they carry no gradient."""
        with self.transformer.without_adapter():
            return self(input_ids, attention_mask, None)  # type: ignore[no-any-return]

    def advance(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        z: Tensor | None,
        cache: Any,
        keep_cache: bool = True,
        last_only: bool = False,
    ) -> tuple[Tensor, Any]:
        """Return logits at the new tokens, and a cache that makes the next call cheap.

        Parameters
        ----------
        input_ids : int64 tensor, shape (B, new)
            Tokens that the cache does not hold yet.
        attention_mask : int64 tensor, shape (B, past + new)
            Over all tokens so far.
        z : float tensor, shape (B, latent), or None
            The same in all calls of one text.
        cache : Any
            What the call before returned; None at the start.
        keep_cache : bool
            Whether to make one.
        last_only : bool
            Whether logits at the last token are all that is wanted; most of a prompt's cost may be its logits.

        Returns
        -------
        logits : float tensor, shape (B, new, V) or (B, 1, V)
        cache : Any
        """
        wanted = 1 if last_only else input_ids.shape[1]
        inputs: dict[str, Any] = {"input_ids": input_ids}
        if z is not None:
            inputs = {"inputs_embeds": self._embedded(input_ids, z, start=cache is None)}
            if self._prefix:
                seen = attention_mask.new_ones(len(attention_mask), self._prefix)
                attention_mask = torch.cat([seen, attention_mask], 1)
        if last_only and self.transformer.can_skip_logits:
            inputs["logits_to_keep"] = 1
        output = self.transformer(attention_mask, past_key_values=cache, use_cache=keep_cache, **inputs)
        return output.logits[:, -wanted:], output.past_key_values if keep_cache else None

    def _embedded(self, input_ids: Tensor, z: Tensor, start: bool) -> Tensor:
        """Return input vectors that carry z, shape (B, T, width), with the prefix in front where there is one."""
        if self.projection is None:
            raise ValueError("this policy takes no z: it was built with latent=0")
        embedded: Tensor = self.transformer.embeddings(input_ids)
        if self._prefix and not start:
            return embedded
        told = self.projection(z).view(len(z), -1, embedded.shape[2]).to(embedded.dtype)
        return torch.cat([told, embedded], 1) if self._prefix else embedded + told
