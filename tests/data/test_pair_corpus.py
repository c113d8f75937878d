"""Pairs as texts: annotators are users, ties are dropped, and data.path reaches the source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from fedalign.build import build
from fedalign.config import resolve
from fedalign.data.corpus import Corpus, CorpusSource, Example
from fedalign.errors import UserError
from fedalign.rng import Streams

Write = Callable[[str, Sequence[dict[str, Any]]], Path]

PAIR = {"prompt": "How?", "chosen": "So.", "rejected": "No.", "annotator": "ann", "group": "north", "split": "train"}


def load(name: str, path: Path, *overrides: str) -> Corpus:
    node = resolve([f"data={name}", f"data.path={path}", *overrides])["data"]
    return build(node, CorpusSource, "data").load(Streams(0))


def test_annotators_are_users(write: Write) -> None:
    rows = [PAIR, {**PAIR, "annotator": "ben", "tie": True}, {**PAIR, "prompt": "Why?", "split": "test"}, PAIR]
    corpus = load("pairs_file_corpus", write("p.jsonl", rows))
    assert corpus.examples == [
        Example("ann", "north", "How?", " So.", " No.", "train"),
        Example("ann", "north", "Why?", " So.", " No.", "test"),
    ]
    assert corpus.dropped == {"tie": 1, "judgment_repeated": 1}


def test_pairs_of_nobody_are_dealt(write: Write) -> None:
    rows = [{**PAIR, "prompt": f"{i}?", "annotator": None} for i in range(6)]
    corpus = load("pairs_file_corpus", write("p.jsonl", rows), "data.pairs_per_user=4")
    assert Counter(example.user for example in corpus.examples) == {"user-00001": 4, "user-00002": 2}


def test_keys_of_the_source_can_be_set(write: Write) -> None:
    rows = [{**PAIR, "prompt": f"{i}?", "split": None} for i in range(40)]
    path = write("p.jsonl", rows)
    for fraction, expected in ((0.0, {"train"}), (0.5, {"train", "test"})):
        corpus = load("pairs_file_corpus", path, f"data.source.test_fraction={fraction}")
        assert {example.split for example in corpus.examples} == expected


def test_dialogues_keep_the_end_of_their_prompts(write: Write) -> None:
    row = {
        "subset": "helpful-base",
        "split": "train",
        "prompt": "Human: Hi\n\nAssistant:",
        "chosen": "A.",
        "rejected": "B.",
    }
    corpus = load("hh_rlhf_corpus", write("h.jsonl", [row]), "data.source.subsets=[helpful-base]")
    assert corpus.examples == [Example("user-00001", "helpful-base", "Human: Hi\n\nAssistant:", " A.", " B.", "train")]


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.path=.*no such file"):
        load("pairs_file_corpus", tmp_path / "none.jsonl")
    node = resolve(["data=pairs_file_corpus"])["data"]
    with pytest.raises(UserError, match=r"data\.path is not set"):
        build(node, CorpusSource, "data").load(Streams(0))


@pytest.mark.data
def test_the_real_dialogues(real_data: Callable[[str], Path]) -> None:
    corpus = load("hh_rlhf_corpus", real_data("hh_rlhf/pairs.jsonl.gz"))
    assert corpus.dropped == {"response_empty": 8, "responses_equal": 2}
    assert Counter(example.split for example in corpus.examples) == {"train": 3730, "test": 926}
    assert all(example.prompt.endswith("\n\nAssistant:") for example in corpus.examples)
    assert max(Counter(example.user for example in corpus.examples).values()) == 8
