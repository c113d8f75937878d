"""The logit of a label under a text classifier of transformers, as a reward."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fedalign.data.names import suggest
from fedalign.errors import UserError
from fedalign.hub import model_folder
from fedalign.methods.text_reward import KEY, Scored, TextReward, scored_texts
from fedalign.pretrained import Dtype, load_network, load_tokenizer


@dataclass(frozen=True)
class SentimentModel(TextReward):
    """A sequence classification model; the reward is one label's logit.

    Wu et al. (arXiv 2310.16960) reward positive reviews this way, with a RoBERTa trained on tweets.

    Parameters
    ----------
    model : str
        Hub name or local folder.
    label : str or int
        Whose logit: a name among the model's labels, or an index.
    scored : {"response", "text"}
    max_tokens : int
        Longer texts lose their end; where the prompt is read too, they lose their beginning.
    batch_size : int
        Texts scored at once. With 1 a score is the same to the last bit whatever else is scored; larger batches agree
        with that to rounding.
    dtype : "float32", "bfloat16" or "float16"
    device : str
        PyTorch device, e.g. ``cpu`` or ``cuda``.
    """

    name: ClassVar[str] = "sentiment_model"

    model: str
    label: str | int
    scored: Scored
    max_tokens: Annotated[int, Field(ge=8)]
    batch_size: Annotated[int, Field(ge=1)]
    dtype: Dtype
    device: str

    @functools.cached_property
    def _loaded(self) -> tuple[Any, Any, int]:
        """Return the tokenizer, the network and the index of the label."""
        from transformers import AutoModelForSequenceClassification

        key = f"{KEY}.model"
        folder = model_folder(self.model, key)
        tokenizer = load_tokenizer(folder, key)
        tokenizer.padding_side = "right"
        tokenizer.truncation_side = "left" if self.scored == "text" else "right"
        network = load_network(folder, AutoModelForSequenceClassification, self.dtype, self.device, key)
        readable = readable_tokens(network.config)
        if readable is not None and self.max_tokens > readable:
            raise UserError(f"{KEY}.max_tokens={self.max_tokens}: {self.model} reads at most {readable} tokens")
        # Causal models read the class off the last token that is no padding, and must know which that is.
        network.config.pad_token_id = tokenizer.pad_token_id
        return tokenizer, network, label_index(self.label, network.config.id2label)

    @property
    def exact(self) -> bool:
        """Whether texts are scored one by one: padding to a longer neighbour moves the last digits."""
        return self.batch_size == 1

    @torch.inference_mode()
    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        """Return the logits of the label.

        Raises
        ------
        UserError
            If the model cannot be had, lacks the label, or reads fewer tokens than ``max_tokens``.
        """
        tokenizer, network, label = self._loaded
        texts = scored_texts(self.scored, prompts, responses)
        rows = tokenizer(texts, truncation=True, max_length=self.max_tokens)["input_ids"] if texts else []
        rewards = torch.empty(len(rows))
        # Texts of like length together, so that little is spent on padding.
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            # A model without a token that begins texts would get nothing at all for an empty one.
            ids = [rows[i] or [tokenizer.pad_token_id] for i in chosen]
            batch = tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(network.device)
            logits = network(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
            rewards[chosen] = logits[:, label].float().cpu()
        return rewards


def label_index(label: str | int, names: Mapping[int, str]) -> int:
    """Return the index of a label.

    Parameters
    ----------
    label : str or int
        A name, in any case, or an index.
    names : mapping from int to str
        The model's labels.

    Raises
    ------
    UserError
        If the model has no such label.
    """
    if isinstance(label, int):
        if label not in names:
            raise UserError(f"{KEY}.label={label}: the model has labels 0 to {max(names)}")
        return label
    found = [index for index, name in names.items() if name.casefold() == label.casefold()]
    if not found:
        raise UserError(f"{KEY}.label={label}: the model has no such label{suggest(label, names.values())}")
    return found[0]


def readable_tokens(config: Any) -> int | None:
    """Return how many tokens a model's positions allow; None where its configuration does not say."""
    positions: int | None = getattr(config, "max_position_embeddings", None)
    if positions is not None and "roberta" in config.model_type:
        # RoBERTa and its kin count positions from behind the index of padding.
        return positions - int(config.pad_token_id) - 1
    return positions
