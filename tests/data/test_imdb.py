"""IMDb reviews: the first words are the prompt, line breaks go, and no review is on both sides."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedalign.data import imdb
from fedalign.data.corpus import Corpus
from fedalign.data.imdb import plain_text
from fedalign.errors import UserError
from fedalign.rng import Streams

Make = Callable[..., Any]


def words(start: str, n: int = 30) -> str:
    return " ".join(f"{start}{i}" for i in range(n))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Forty reviews to train on, one of which is also in the test split, and one too short; ten to test."""
    train = [*(words(f"t{i}x") for i in range(40)), words("e3x"), "Too short."]
    test = [words(f"e{i}x") for i in range(10)]
    for split, reviews in (("train", train), ("test", test)):
        lines = [json.dumps({"label": i % 2, "text": text}) for i, text in enumerate(reviews)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    return tmp_path


def load(make: Make, path: Path | None, seed: int = 0, **changes: Any) -> Corpus:
    source = make("data/imdb", path=None if path is None else str(path), **changes)
    result: Corpus = source.load(Streams(seed))
    return result


def test_plain_text() -> None:
    assert plain_text(" A<br /><br />film.\nYes<br>it  is<br/>") == "A film. Yes it is"


def test_a_review_is_cut_into_prompt_and_response(make: Make, folder: Path) -> None:
    corpus = load(make, folder, reviews_per_user=4, response_words=10)
    assert corpus.dropped == {"review_short": 1, "in_test": 1}
    assert Counter(example.split for example in corpus.examples) == {"train": 40, "test": 10}
    users = Counter(example.user for example in corpus.examples if example.split == "train")
    assert users == {f"user-{i:05d}": 4 for i in range(1, 11)}
    lengths = set()
    for example, start in zip(corpus.examples, [f"t{i}x" for i in range(40)], strict=False):
        n = len(example.prompt.split())
        lengths.add(n)
        assert example.prompt + example.response == words(start, n + 10)
        assert example.rejected is None and example.group == "all"
    assert min(lengths) >= 2 and max(lengths) <= 8 and len(lengths) > 3


def test_the_whole_rest_of_a_short_review_is_the_response(make: Make, folder: Path) -> None:
    example = load(make, folder, response_words=500).examples[0]
    assert example.prompt + example.response == words("t0x")


def test_test_examples_are_drawn(make: Make, folder: Path) -> None:
    drawn = [load(make, folder, seed, test_examples=3) for seed in (0, 0, 1)]
    tests = [[e for e in corpus.examples if e.split == "test"] for corpus in drawn]
    assert [len(own) for own in tests] == [3, 3, 3]
    assert tests[0] == tests[1] != tests[2]
    # A review that is in the test split is not trained on, drawn or not.
    assert all(corpus.dropped["in_test"] == 1 for corpus in drawn)


def test_repeated_reviews_are_counted(make: Make, folder: Path) -> None:
    path = folder / "train.jsonl"
    path.write_text(path.read_text() + "\n" + json.dumps({"text": words("t0x")}))
    assert load(make, folder).dropped["review_repeated"] == 1


def test_the_hub_gives_the_published_files(make: Make, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow
    import pyarrow.parquet

    asked: list[tuple[str, str]] = []
    for split in ("train", "test"):
        rows = [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]
        target = folder / "hub" / "plain_text" / f"{split}-00000-of-00001.parquet"
        target.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), target)

    def dataset_file(repo: str, file: str) -> Path:
        asked.append((repo, file))
        return folder / "hub" / file

    monkeypatch.setattr(imdb, "dataset_file", dataset_file)
    assert load(make, None) == load(make, folder) == load(make, folder / "hub")
    assert asked == [("stanfordnlp/imdb", f"plain_text/{s}-00000-of-00001.parquet") for s in ("train", "test")]


def test_what_is_wrong_is_refused(make: Make, folder: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        load(make, folder / "none")
    with pytest.raises(UserError, match=r"data\.max_prompt_words=1 is less than data\.min_prompt_words=2"):
        load(make, folder, max_prompt_words=1)
    with pytest.raises(UserError, match=r"data\.min_words=8 leaves nothing after data\.max_prompt_words=8"):
        load(make, folder, min_words=8)
    (folder / "test.jsonl").write_text(json.dumps({"text": 3}))
    with pytest.raises(UserError, match="line 1: 'text' holds '3'"):
        load(make, folder)
    (folder / "test.jsonl").unlink()
    with pytest.raises(UserError, match="no table 'test' in it"):
        load(make, folder)


@pytest.mark.data
def test_the_real_reviews(make: Make, real_data: Callable[[str], Path]) -> None:
    corpus = load(make, real_data("imdb/train.jsonl.gz").parent)
    assert corpus.dropped == {"review_short": 8, "review_repeated": 16}
    assert Counter(example.split for example in corpus.examples) == {"train": 7982, "test": 512}
    assert not any("<br" in example.prompt + example.response for example in corpus.examples)
    assert max(len(example.response.split()) for example in corpus.examples) == 48
