"""TL;DR: a post is the prompt, the worker who chose is the user, and both local forms and the hub give the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from fedalign.data import tldr
from fedalign.data.corpus import Corpus, Example
from fedalign.errors import UserError
from fedalign.rng import Streams

Make = Callable[..., Any]
Write = Callable[[str, Sequence[dict[str, Any]]], Path]

POST = {"id": "t3_1", "post": "We met. ", "title": "Help", "subreddit": "advice", "article": None}
RECORD = {
    "info": POST,
    "summaries": [{"text": " They met.", "policy": "ref"}, {"text": " Nothing.", "policy": "sup2"}],
    "choice": 0,
    "worker": "w1",
    "split": "train",
}
ARTICLE = {**RECORD, "info": {"id": "x", "post": None, "title": "News", "subreddit": None, "article": "Long."}}
RECORDS = [
    RECORD,
    {**RECORD, "choice": 1, "worker": "w2"},
    ARTICLE,
    {**RECORD, "info": {**POST, "title": "Other"}, "split": "valid1"},
]
PROMPT = "SUBREDDIT: r/advice\n\nTITLE: Help\n\nPOST: We met.\n\nTL;DR:"


def load(make: Make, path: Path | None) -> Corpus:
    source = make("data/tldr", path=None if path is None else str(path))
    result: Corpus = source.load(Streams(0))
    return result


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz", "t.parquet"])
def test_one_file(make: Make, write: Write, name: str) -> None:
    corpus = load(make, write(name, RECORDS))
    assert corpus.examples == [
        Example("w1", "all", PROMPT, " They met.", " Nothing.", "train"),
        Example("w2", "all", PROMPT, " Nothing.", " They met.", "train"),
        Example("w1", "all", PROMPT.replace("Help", "Other"), " They met.", " Nothing.", "test"),
    ]
    assert corpus.dropped == {"not_a_post": 1}


def test_folder_and_hub(make: Make, write: Write, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole = load(make, write("whole.jsonl", RECORDS))
    (tmp_path / "own").mkdir()
    for split, records in (("train", RECORDS[:3]), ("validation", RECORDS[3:])):
        write(f"own/{split}.jsonl", records)
        (tmp_path / "hub" / "comparisons" / split).mkdir(parents=True)
        write(f"hub/comparisons/{split}/0000.parquet", records)
    asked: list[tuple[str, str, str]] = []

    def dataset_file(repo: str, file: str, revision: str) -> Path:
        asked.append((repo, file, revision))
        return tmp_path / "hub" / file

    monkeypatch.setattr(tldr, "dataset_file", dataset_file)
    assert load(make, tmp_path / "own") == load(make, tmp_path / "hub") == load(make, None) == whole
    assert asked == [
        (tldr.HUB_NAME, f"comparisons/{split}/0000.parquet", "refs/convert/parquet")
        for split in ("train", "validation")
    ]


def test_data_without_workers_get_users(make: Make, write: Write) -> None:
    records = [{**record, "worker": None} for record in RECORDS]
    assert [e.user for e in load(make, write("t.jsonl", records)).examples] == [
        "user-00001",
        "user-00001",
        "test-user-00001",
    ]


def test_the_hub_out_of_reach_ends_in_one_line(make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"data\.path: the dataset 'openai/.*' is not cached") as error:
        load(make, None)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({**RECORD, "info": "x"}, "'info' holds 'x'; it must be an object"),
        ({**RECORD, "info": {**POST, "title": 3}}, "'info.title' holds '3'"),
        ({**RECORD, "choice": 2}, "'choice' holds '2'; it must be 0 or 1"),
        ({**RECORD, "choice": True}, "'choice' holds 'True'"),
        ({**RECORD, "summaries": [{"text": "a"}]}, "'summaries' holds .* a list of two objects"),
        ({**RECORD, "summaries": [{"text": "a"}, {}]}, "'summaries.text' holds 'None'"),
        ({**RECORD, "worker": 1.5}, "'worker' holds '1.5'"),
        ({**RECORD, "split": "dev"}, "'split' holds 'dev'; it must be train, or begin with valid or test"),
    ],
)
def test_what_is_wrong_is_said_with_file_and_row(
    make: Make, write: Write, record: dict[str, Any], message: str
) -> None:
    path = write("t.jsonl", [RECORD, record])
    with pytest.raises(UserError, match=message) as error:
        load(make, path)
    assert str(error.value).startswith(f"{path} line 2: ") and "\n" not in str(error.value)
