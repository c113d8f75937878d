"""IMDb reviews and their counterfactuals: the prompt is what both begin with, the positive one is preferred."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedalign.data.corpus import Corpus, Example
from fedalign.data.imdb_pairs import common_beginning
from fedalign.errors import UserError
from fedalign.rng import Streams

Make = Callable[..., Any]

PAIRS = {
    "train": [("I saw it.<br />What a great film.", "I saw it.<br />What a bad film.")],
    "dev": [("Good, that.", "Bad, that."), ("Just fine", "Just fine")],
    "test": [("A film to see.", "A film to miss.")],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for table, pairs in PAIRS.items():
        lines = [json.dumps({"positive": positive, "negative": negative}) for positive, negative in pairs]
        (tmp_path / f"{table}.jsonl").write_text("\n".join(lines))
    return tmp_path


def load(make: Make, path: Path | None, **changes: Any) -> Corpus:
    source = make("data/imdb_pairs", path=None if path is None else str(path), **changes)
    result: Corpus = source.load(Streams(0))
    return result


@pytest.mark.parametrize(
    ("first", "second", "most", "expected"),
    [("a b c", "a b d", 8, 2), ("a b c", "a b d", 1, 1), ("a", "b", 8, 0), ("a b", "a b c", 8, 2), ("a", "a", 0, 0)],
)
def test_common_beginning(first: str, second: str, most: int, expected: int) -> None:
    assert common_beginning(first.split(), second.split(), most) == expected


def test_pairs_are_cut_at_the_first_difference(make: Make, folder: Path) -> None:
    corpus = load(make, folder, pairs_per_user=5)
    assert corpus.examples == [
        Example("user-00001", "all", "I saw it. What a", " great film.", " bad film.", "train"),
        Example("user-00001", "all", "", "Good, that.", "Bad, that.", "train"),
        Example("test-user-00001", "all", "A film to", " see.", " miss.", "test"),
    ]
    assert corpus.dropped == {"response_empty": 1}


def test_lengths_are_kept(make: Make, folder: Path) -> None:
    example = load(make, folder, max_prompt_words=3, response_words=3).examples[0]
    assert (example.prompt, example.response, example.rejected) == ("I saw it.", " What a great", " What a bad")
    assert load(make, folder, max_prompt_words=3, response_words=2).dropped["responses_equal"] == 1


def test_what_is_wrong_is_refused(make: Make, folder: Path) -> None:
    with pytest.raises(UserError, match=r"data\.path is not set; give the folder"):
        load(make, None)
    (folder / "dev.jsonl").unlink()
    with pytest.raises(UserError, match="no table 'dev' in it"):
        load(make, folder)


@pytest.mark.data
def test_the_real_pairs(make: Make, real_data: Callable[[str], Path]) -> None:
    corpus = load(make, real_data("imdb_cad_pairs/train.jsonl.gz").parent)
    assert corpus.dropped == {"responses_equal": 225}
    assert Counter(example.split for example in corpus.examples) == {"train": 1764, "test": 451}
    # Half of the rewritings change one of the first eight words, a fourteenth the first.
    lengths = Counter(len(example.prompt.split()) for example in corpus.examples)
    assert (lengths[0], lengths[8], max(lengths)) == (154, 1095, 8)
