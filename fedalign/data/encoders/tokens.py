"""A text as the token ids of a language model: for networks that read the tokens themselves."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field

from fedalign.data.encoders.template import check_template, fill
from fedalign.data.encoders.transformers_encoder import content_hash
from fedalign.data.schema import Encoder, Question
from fedalign.errors import UserError
from fedalign.hub import model_folder
from fedalign.pretrained import load_tokenizer

_CHUNK = 1024  # texts between two calls of progress


@dataclass(frozen=True)
class TokensEncoder(Encoder):
    """Token ids in rows of one length, padded with -1 on the right.

    Rows are float32 like every encoder's, which holds whole numbers up to 2^24 exactly. A text that is too long
    keeps its end, where the response stands.

    Parameters
    ----------
    model : str
        Hub name or local folder.
    template : str
        Text of one option; see ``fedalign.data.encoders.template``.
    max_length : int
        Tokens in a row.
    """

    model: str
    template: str
    max_length: Annotated[int, Field(ge=1)]

    def __post_init__(self) -> None:
        check_template(self.template)

    @functools.cached_property
    def _folder(self) -> Path:
        return model_folder(self.model, "encoder.model")

    @property
    def dim(self) -> int:
        """Length of a row."""
        return self.max_length

    @functools.cached_property
    def fingerprint(self) -> str:
        """Content of the model's files and the length of a row."""
        return f"tokens-{content_hash(self._folder)}-{self.max_length}"

    def texts(self, question: Question) -> list[str]:
        """Return one text per option."""
        return fill(self.template, question)

    def encode(self, texts: Sequence[str], progress: Callable[[int], None]) -> npt.NDArray[np.float32]:
        """Return rows of token ids, shape (len(texts), max_length).

        Raises
        ------
        UserError
            If the tokenizer cannot be loaded, or finds no token in a text and has none that ends texts.
        """
        tokenizer = load_tokenizer(self._folder, "encoder.model")
        tokenizer.truncation_side = "left"
        rows = np.full((len(texts), self.max_length), -1.0, dtype=np.float32)
        for start in range(0, len(texts), _CHUNK):
            chunk = list(texts[start : start + _CHUNK])
            for row, ids in enumerate(self._token_ids(tokenizer, chunk), start):
                rows[row, : len(ids)] = ids
            progress(len(chunk))
        return rows

    def _token_ids(self, tokenizer: Any, texts: list[str]) -> list[list[int]]:
        found: list[list[int]] = tokenizer(texts, truncation=True, max_length=self.max_length)["input_ids"]
        if not all(found) and tokenizer.eos_token_id is None:
            raise UserError(f"encoder.model={self.model}: finds no token in an empty text; remove empty texts")
        # An empty text is the end of a text and nothing before it.
        return [ids or [tokenizer.eos_token_id] for ids in found]
