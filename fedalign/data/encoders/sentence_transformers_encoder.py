"""Any sentence-transformers model as an encoder, with the pooling and scaling that the model itself brings."""

from __future__ import annotations

import functools
import importlib.util
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


@dataclass(frozen=True)
class SentenceTransformersEncoder(Encoder):
    """A sentence-transformers model.

    Parameters
    ----------
    model : str
        Hub name or local folder. A cached or local model needs no network.
    template : str
        Text of one option; see ``fedalign.data.encoders.template``.
    batch_size : int
        Texts encoded at once.
    device : str
        PyTorch device, e.g. ``cpu`` or ``cuda``.
    """

    model: str
    template: str
    batch_size: Annotated[int, Field(ge=1)]
    device: str

    def __post_init__(self) -> None:
        check_template(self.template)

    @functools.cached_property
    def _folder(self) -> Path:
        return model_folder(self.model, "encoder.model")

    @functools.cached_property
    def _model(self) -> Any:
        if importlib.util.find_spec("sentence_transformers") is None:
            raise UserError("encoder=sentence_transformers: not installed; run: pip install 'fedalign[encoders]'")
        from sentence_transformers import SentenceTransformer

        try:
            return SentenceTransformer(str(self._folder), device=self.device, local_files_only=True)
        except (OSError, ValueError, RuntimeError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(f"encoder.model={self.model}: cannot be loaded on {self.device} ({reason})") from None

    @property
    def dim(self) -> int:
        """Length of a vector; loads the model."""
        # The method that tells it has another name in every other version of the library.
        return int(self._model.encode(["a"], show_progress_bar=False).shape[-1])

    @functools.cached_property
    def fingerprint(self) -> str:
        """Content of the model's files."""
        return f"sentence-transformers-{content_hash(self._folder)}"

    def texts(self, question: Question) -> list[str]:
        """Return one text per option."""
        return fill(self.template, question)

    def encode(self, texts: Sequence[str], progress: Callable[[int], None]) -> npt.NDArray[np.float32]:
        """Return vectors, shape (len(texts), dim)."""
        order = sorted(range(len(texts)), key=lambda i: (len(texts[i]), texts[i]))
        vectors = np.empty((len(texts), self.dim), dtype=np.float32)
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            vectors[batch] = self._model.encode(
                [texts[i] for i in batch], batch_size=self.batch_size, show_progress_bar=False, convert_to_numpy=True
            )
            progress(len(batch))
        return vectors
