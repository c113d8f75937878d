"""A sentiment classifier fitted to a public labelled file, as a reward or as a judge held out of training."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedalign.data.table import SUFFIXES, read_table
from fedalign.errors import UserError
from fedalign.methods.text_reward import KEY, Scored, TextReward, scored_texts


@dataclass(frozen=True)
class FittedSentiment(TextReward):
    """TF-IDF of words and word pairs with logistic regression.

    No guarantee covers the labelled file: it must be public, and other than the data that are trained on. A policy that
    was rewarded by something else can be judged by this one without having learnt its quirks.

    Parameters
    ----------
    path : str or None
        ``.jsonl``, ``.jsonl.gz``, ``.csv`` or ``.parquet`` with columns ``text`` and ``label``; None is an error that
        asks for one.
    positive : str or int
        The label whose odds are the reward; all other labels are its opposite.
    output : {"log_odds", "probability"}
    scored : {"response", "text"}
    words : int or None
        How many words of each labelled text are read, from its beginning; None reads all.
    max_texts : int or None
        How many labelled texts are read, evenly spaced over the file; None reads all.
    """

    name: ClassVar[str] = "fitted_sentiment"

    path: str | None
    positive: str | int
    output: Literal["log_odds", "probability"]
    scored: Scored
    words: Annotated[int, Field(ge=1)] | None
    max_texts: Annotated[int, Field(ge=2)] | None

    def score(self, prompts: Sequence[str], responses: Sequence[str]) -> Tensor:
        """Return log-odds or probabilities of the positive label.

        Raises
        ------
        UserError
            If the labelled file is missing or malformed, or has texts on one side only.
        """
        if self.path is None:
            raise UserError(f"{KEY}.path is not set; give a public labelled file, e.g. {KEY}.path=reviews.jsonl.gz")
        texts = scored_texts(self.scored, prompts, responses)
        if not texts:
            return torch.empty(0)
        classifier = _fitted(self.path, str(self.positive), self.words, self.max_texts)
        odds = torch.from_numpy(classifier.decision_function(texts))
        return (odds if self.output == "log_odds" else odds.sigmoid()).float()


@functools.lru_cache(maxsize=4)
def _fitted(path: str, positive: str, words: int | None, max_texts: int | None) -> Any:
    """Return the classifier; fitted once a process, and the same in all of them."""
    texts, labels = read_labelled(Path(path).expanduser())
    rows = range(len(texts))
    if max_texts is not None and max_texts < len(texts):
        # Evenly spaced, because files are often sorted by label.
        rows = np.linspace(0, len(texts) - 1, max_texts).round().astype(int).tolist()
    chosen = [texts[i] if words is None else " ".join(texts[i].split()[:words]) for i in rows]
    sides = [labels[i] == positive for i in rows]
    if len(set(sides)) < 2:
        found = ", ".join(sorted({labels[i] for i in rows})[:8])
        raise UserError(f"{KEY}.positive={positive}: {path} must have texts with and without it; its labels: {found}")
    return _classifier(chosen, sides, path)


def _classifier(texts: Sequence[str], sides: Sequence[bool], path: str) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    if not any(any(map(str.isalnum, text)) for text in texts):
        raise UserError(f"{KEY}.path={path}: its texts hold no words")
    # Counts enter by their logarithm: repeating a word pays little.
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    return make_pipeline(vectorizer, LogisticRegression(C=10.0, max_iter=1000)).fit(texts, sides)


def read_labelled(path: Path) -> tuple[list[str], list[str]]:
    """Return the texts and labels of a file; a label true or false becomes 1 or 0.

    Raises
    ------
    UserError
        If the file is missing, lacks a column, holds a text that is none, or holds nothing.
    """
    if not path.name.lower().endswith(SUFFIXES):
        raise UserError(f"{KEY}.path={path}: unknown suffix {path.suffix!r}; known: {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise UserError(f"{KEY}.path={path}: no such file; give a public labelled file with columns text and label")
    texts, labels = [], []
    for where, record in read_table(path, ("text", "label")):
        text, label = record["text"], record["label"]
        if not isinstance(text, str):
            raise UserError(f"{where}: 'text' holds {str(text)[:40]!r}; it must be a text")
        texts.append(text)
        labels.append(str(int(label) if isinstance(label, bool) else label))
    if not texts:
        raise UserError(f"{KEY}.path={path}: holds no text; give a public labelled file with columns text and label")
    return texts, labels
