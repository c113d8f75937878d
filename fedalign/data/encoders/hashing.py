"""Signed feature hashing of words and word pairs: vectors without a model, the same in every process."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field

from fedalign.data.encoders.template import check_template, fill
from fedalign.data.schema import Encoder, Question


@dataclass(frozen=True)
class HashingEncoder(Encoder):
    """Bag of words (and word pairs) hashed into a fixed number of buckets with random signs.

    Follows Weinberger et al. 2009 (feature hashing, eq. 1): the sign makes inner products unbiased
    under collisions. Vectors have length 1; a text without a word is the zero vector.

    Parameters
    ----------
    template : str
        Text of one option; see ``fedalign.data.encoders.template``.
    size : int
        Number of buckets: the length of a vector.
    word_pairs : bool
        Hash pairs of neighbouring words as well.
    """

    template: str
    size: Annotated[int, Field(ge=1)]
    word_pairs: bool

    def __post_init__(self) -> None:
        check_template(self.template)

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self.size

    @property
    def fingerprint(self) -> str:
        """Settings that decide the vectors of a text."""
        return f"hashing-{self.size}-{'pairs' if self.word_pairs else 'words'}"

    def texts(self, question: Question) -> list[str]:
        """Return one text per option."""
        return fill(self.template, question)

    def encode(self, texts: Sequence[str], progress: Callable[[int], None]) -> npt.NDArray[np.float32]:
        """Return unit vectors, shape (len(texts), size)."""
        buckets: dict[str, tuple[int, float]] = {}
        vectors = np.zeros((len(texts), self.size), dtype=np.float32)
        for row, text in enumerate(texts):
            for feature in self._features(text):
                if feature not in buckets:
                    buckets[feature] = _bucket(feature, self.size)
                index, sign = buckets[feature]
                vectors[row, index] += sign
            progress(1)
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        return (vectors / np.where(norms > 0.0, norms, 1.0)).astype(np.float32)

    def _features(self, text: str) -> list[str]:
        words = re.findall(r"\w+", text.casefold())
        pairs = [f"{left} {right}" for left, right in itertools.pairwise(words)] if self.word_pairs else []
        return words + pairs


def _bucket(feature: str, size: int) -> tuple[int, float]:
    number = int.from_bytes(hashlib.blake2b(feature.encode(), digest_size=8).digest(), "big")
    return (number >> 1) % size, 1.0 if number & 1 else -1.0
