"""Tries an encoder on a file's texts: vectors that say nothing, and answers that it cannot tell apart."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from fedalign.build import build
from fedalign.config import options, resolve
from fedalign.data.embed import embed
from fedalign.data.names import suggest
from fedalign.data.schema import Encoder, Question
from fedalign.data_check.findings import Finding
from fedalign.errors import UserError

PROMPT_TAIL = 400
"""Characters of a prompt's end that are encoded, as the shipped data configs have it."""


def check_encoding(kind: str, loaded: Any, name: str) -> Iterator[Finding]:
    """Yield what an encoder makes of the loaded data.

    Parameters
    ----------
    kind : str
    loaded : Survey, PairSet, RankingSet or Corpus
    name : str
        An option of the group ``encoder``.

    Raises
    ------
    UserError
        If there is no such encoder, its model is not there, or the kind of file is not encoded.
    """
    known = options()["encoder"]
    if name not in known:
        raise UserError(f"--encoder={name}: no such encoder{suggest(name, ['none', *known])}")
    if kind == "texts":
        raise UserError("--encoder: files of texts are read by the tokenizer of a language model; leave the option out")
    expected: type = Encoder
    encoder: Encoder = build(resolve([f"encoder={name}"])["encoder"], expected, "encoder")
    vectors = embed(_questions(kind, loaded), encoder, None)
    empty = sum(int((own == 0).all(1).sum()) for own in vectors.values())
    if empty:
        yield Finding(
            "warning", "vector_empty", f"encoder={name} makes nothing of {empty} texts (a zero vector)", empty
        )
    same = sum(_some_alike(own) for own in vectors.values())
    if same:
        yield Finding(
            "warning", "vector_same", f"encoder={name} cannot tell the answers of {same} questions apart: their "
            f"vectors are "
            "the same", same,
        )  # fmt: skip
    texts = sum(len(own) for own in vectors.values())
    yield Finding(
        "note", "encoded", f"encoder={name} turned {texts} texts into vectors of {encoder.dim} numbers", texts
    )


def _questions(kind: str, loaded: Any) -> list[Question]:
    if kind == "survey":
        return list(loaded.questions.values())
    if kind == "pairs":
        return [Question(pair.prompt[-PROMPT_TAIL:], (pair.chosen, pair.rejected)) for pair in loaded.pairs]
    return [Question(ranking.prompt[-PROMPT_TAIL:], ranking.responses) for ranking in loaded.rankings]


def _some_alike(vectors: torch.Tensor) -> bool:
    return len(torch.unique(vectors, dim=0)) < len(vectors)
