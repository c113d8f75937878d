"""Any Hugging Face transformers model as an encoder: hidden states of the last layer, pooled to one vector a text."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor

from fedalign.data.encoders.template import check_template, fill
from fedalign.data.schema import Encoder, Question
from fedalign.hub import model_folder
from fedalign.pretrained import Dtype, load_network, load_tokenizer

Pooling = Literal["mean", "last", "cls"]


@dataclass(frozen=True)
class TransformersEncoder(Encoder):
    """A transformers model.

    Parameters
    ----------
    model : str
        Hub name or local folder. A cached or local model needs no network.
    template : str
        Text of one option; see ``fedalign.data.encoders.template``.
    pooling : "mean", "last" or "cls"
        Mean over all tokens that are no padding, the last of them, or the first.
    normalize : bool
        Scale vectors to length 1.
    max_length : int
        Tokens; longer texts are cut.
    batch_size : int
        Texts encoded at once.
    device : str
        PyTorch device, e.g. ``cpu`` or ``cuda``.
    dtype : "float32", "bfloat16" or "float16"
        Precision of the weights; vectors are float32 in any case.
    """

    model: str
    template: str
    pooling: Pooling
    normalize: bool
    max_length: Annotated[int, Field(ge=1)]
    batch_size: Annotated[int, Field(ge=1)]
    device: str
    dtype: Dtype

    def __post_init__(self) -> None:
        check_template(self.template)

    @functools.cached_property
    def _folder(self) -> Path:
        return model_folder(self.model, "encoder.model")

    @property
    def dim(self) -> int:
        """The model's hidden size."""
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(self._folder, local_files_only=True)
        return int(config.get_text_config().hidden_size)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Content of the model's files and the settings that decide the vectors of a text."""
        settings = f"{self.pooling}-{'unit' if self.normalize else 'raw'}-{self.max_length}-{self.dtype}"
        return f"transformers-{content_hash(self._folder)}-{settings}"

    def texts(self, question: Question) -> list[str]:
        """Return one text per option."""
        return fill(self.template, question)

    def encode(self, texts: Sequence[str], progress: Callable[[int], None]) -> npt.NDArray[np.float32]:
        """Return vectors, shape (len(texts), dim).

        Raises
        ------
        UserError
            If the model cannot be loaded or the device does not exist.
        """
        tokenizer, model = load_model(self._folder, self.device, self.dtype)
        return encode_texts(
            tokenizer, model, texts, self.pooling, self.normalize, self.max_length, self.batch_size, progress
        )


def content_hash(folder: Path) -> str:
    """Return a hash of the names and contents of a model folder's files."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in relative.parts):
            with path.open("rb") as file:
                digest.update(
                    f"{relative.as_posix()}\x1f{hashlib.file_digest(file, 'sha256').hexdigest()}\x1f".encode()
                )
    return digest.hexdigest()[:32]


def load_model(folder: Path, device: str, dtype: Dtype) -> tuple[Any, Any]:
    """Return the tokenizer and the model in evaluation mode.

    Raises
    ------
    UserError
        If they cannot be loaded.
    """
    from transformers import AutoModel

    tokenizer = load_tokenizer(folder, "encoder.model")
    model = load_network(folder, AutoModel, dtype, device, "encoder.model")
    tokenizer.padding_side = "right"
    return tokenizer, model


@torch.inference_mode()
def encode_texts(
    tokenizer: Any,
    model: Any,
    texts: Sequence[str],
    pooling: Pooling,
    normalize: bool,
    max_length: int,
    batch_size: int,
    progress: Callable[[int], None],
) -> npt.NDArray[np.float32]:
    """Encode texts in batches of similar length.

    Returns
    -------
    float32 array, shape (len(texts), hidden size)
        In the order of ``texts``.
    """
    tokens = tokenizer(list(texts), truncation=True, max_length=max_length)["input_ids"]
    order = sorted(range(len(texts)), key=lambda i: (len(tokens[i]), texts[i]))
    vectors: list[Tensor] = [torch.empty(0)] * len(texts)
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        padded = tokenizer.pad({"input_ids": [tokens[i] for i in batch]}, return_tensors="pt").to(model.device)
        hidden = model(input_ids=padded["input_ids"], attention_mask=padded["attention_mask"]).last_hidden_state
        pooled = pool(hidden.float(), padded["attention_mask"], pooling)
        if normalize:
            pooled = torch.nn.functional.normalize(pooled, dim=-1)
        for i, vector in zip(batch, pooled.cpu(), strict=True):
            vectors[i] = vector
        progress(len(batch))
    stacked: npt.NDArray[np.float32] = torch.stack(vectors).numpy()
    return stacked


def pool(hidden: Tensor, mask: Tensor, pooling: Pooling) -> Tensor:
    """Pool hidden states over the tokens of each text.

    Parameters
    ----------
    hidden : float tensor, shape (texts, tokens, dim)
    mask : int tensor, shape (texts, tokens)
        1 for tokens, then 0 for padding.
    pooling : "mean", "last" or "cls"

    Returns
    -------
    float tensor, shape (texts, dim)
    """
    if pooling == "mean":
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1.0)
    if pooling == "last":
        return hidden[torch.arange(len(hidden)), mask.sum(dim=1) - 1]
    return hidden[:, 0]
