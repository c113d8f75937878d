"""HH-RLHF in its forms: published dialogues in folders and on the hub, and one file of prepared pairs."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from fedalign.data import hh_rlhf
from fedalign.data.hh_rlhf import split_dialogue
from fedalign.data.pairs import Pair, PairSet
from fedalign.errors import UserError
from fedalign.rng import Streams

Make = Callable[..., Any]
Write = Callable[[str, Sequence[dict[str, Any]]], Path]

START = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: How?\n\nAssistant:"
PROMPT = "Human: Hi\n\nAssistant: Hello.\n\nHuman: How?\n\nAssistant:"
DIALOGUES = [
    {"chosen": START + " So.", "rejected": START + " No.\n\nNo!"},
    {"chosen": START + " So.", "rejected": START.replace("Hello", "Oh") + " No."},  # prompts differ
    {"chosen": START + " So.", "rejected": START + " So."},  # equal
    {"chosen": START, "rejected": START + " So."},  # empty
    {"chosen": START + " So.\n\nHuman: Thanks", "rejected": START + " No."},  # the human speaks last
    {"chosen": "\n\nHuman: Hi", "rejected": START + " No."},  # the assistant never speaks
]
COUNTS = {"prompts_differ": 1, "responses_equal": 1, "response_empty": 1, "last_turn_not_assistants": 2}
PREPARED = {"subset": "helpful-base", "split": "test", "prompt": PROMPT, "chosen": "So.", "rejected": "No."}


@pytest.fixture
def publish(tmp_path: Path) -> Callable[..., Path]:
    """Write the published layout: a folder for each subset with the rows of both splits."""

    def to_folder(suffix: str = ".jsonl.gz", **subsets: tuple[list[Any], list[Any]]) -> Path:
        for subset, splits in subsets.items():
            folder = tmp_path / "hh" / subset.replace("_", "-")
            folder.mkdir(parents=True)
            for split, rows in zip(("train", "test"), splits, strict=True):
                content = "".join(json.dumps(row) + "\n" for row in rows).encode()
                (folder / f"{split}{suffix}").write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
        return tmp_path / "hh"

    return to_folder


def load(make: Make, path: Path | None, **changes: Any) -> PairSet:
    source = make("data/hh_rlhf", path=None if path is None else str(path), **changes)
    result: PairSet = source.load(Streams(0))
    return result


def dialogue(answer: str) -> dict[str, str]:
    return {"chosen": f"{START} {answer}", "rejected": START + " No."}


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (START + " So.", (PROMPT, "So.")),
        ("\n\nHuman: a\n\nAssistant: b\n\nAssistant: c", ("Human: a\n\nAssistant: b\n\nAssistant:", "c")),
        (START, (PROMPT, "")),
        ("\n\nHuman: the word Assistant: is quoted", None),
        (START + " So.\n\nHuman: And?", None),
        ("", None),
    ],
)
def test_a_dialogue_is_split_at_the_last_turn(text: str, parts: tuple[str, str] | None) -> None:
    assert split_dialogue(text) == parts


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl"])
def test_the_published_form(make: Make, publish: Callable[..., Path], suffix: str) -> None:
    folder = publish(suffix, helpful_base=(DIALOGUES, [dialogue("Well.")]), harmless_base=([dialogue("Oh.")], []))
    result = load(make, folder)
    assert result.pairs == [
        Pair(PROMPT, "So.", "No.\n\nNo!", "train", "helpful-base"),
        Pair(PROMPT, "Well.", "No.", "test", "helpful-base"),
        Pair(PROMPT, "Oh.", "No.", "train", "harmless-base"),
    ]
    assert result.dropped == COUNTS


def test_subsets_are_chosen_in_order(make: Make, publish: Callable[..., Path]) -> None:
    folder = publish(helpful_base=([dialogue("So.")], []), harmless_base=([dialogue("Oh.")], []))
    assert [pair.group for pair in load(make, folder, subsets=["harmless-base", "helpful-base"]).pairs] == [
        "harmless-base",
        "helpful-base",
    ]
    assert [pair.group for pair in load(make, folder, subsets=["helpful-base"]).pairs] == ["helpful-base"]


def test_the_hub_gives_the_same_files(
    make: Make, publish: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = publish(helpful_base=(DIALOGUES, [dialogue("Well.")]), harmless_base=([dialogue("Oh.")], []))
    asked: list[tuple[str, str]] = []

    def dataset_file(repo: str, file: str) -> Path:
        asked.append((repo, file))
        return folder / file

    monkeypatch.setattr(hh_rlhf, "dataset_file", dataset_file)
    assert load(make, None) == load(make, folder)
    files = [
        f"{subset}/{split}.jsonl.gz" for subset in ("helpful-base", "harmless-base") for split in ("train", "test")
    ]
    assert asked == [("Anthropic/hh-rlhf", file) for file in files]


def test_one_file_of_prepared_pairs(make: Make, write: Write) -> None:
    rows = [PREPARED, {**PREPARED, "subset": "harmless-base", "split": "train"}, {**PREPARED, "subset": "other"}]
    result = load(make, write("pairs.jsonl.gz", rows))
    assert result.pairs == [
        Pair(PROMPT, "So.", "No.", "test", "helpful-base"),
        Pair(PROMPT, "So.", "No.", "train", "harmless-base"),
    ]
    assert result.dropped == {}


def test_one_file_of_dialogues_is_split_by_hash(make: Make, write: Write) -> None:
    rows = [
        {"subset": subset, "chosen": f"\n\nHuman: {i}\n\nAssistant: a", "rejected": f"\n\nHuman: {i}\n\nAssistant: b"}
        for i in range(300)
        for subset in ("helpful-base", "harmless-base")
    ]
    pairs = load(make, write("raw.jsonl", rows), test_fraction=0.3).pairs
    splits: dict[str, set[str]] = {}
    for pair in pairs:
        splits.setdefault(pair.prompt, set()).add(pair.split)
    assert len(pairs) == 600 and len(splits) == 300
    assert all(len(own) == 1 for own in splits.values())
    assert 60 < sum(own == {"test"} for own in splits.values()) < 120


def test_unknown_subsets_are_refused(make: Make, write: Write, publish: Callable[..., Path]) -> None:
    file = write("pairs.jsonl", [PREPARED])
    folder = publish(helpful_base=([dialogue("So.")], []))
    for path, known in ((None, "Anthropic/hh-rlhf"), (file, str(file)), (folder, str(folder))):
        with pytest.raises(UserError, match=r"'helpful-bass'.*; did you mean 'helpful-base'") as error:
            load(make, path, subsets=["helpful-bass"])
        assert known in str(error.value)


def test_malformed_input_is_refused(make: Make, write: Write, publish: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="line 1: 'chosen' holds '3'; it must be a text"):
        load(make, write("a.jsonl", [{**PREPARED, "chosen": 3}]))
    with pytest.raises(UserError, match="'split' holds 'validation'"):
        load(make, write("b.jsonl", [{**PREPARED, "split": "validation"}]))
    with pytest.raises(UserError, match="no column 'subset'"):
        load(make, write("c.jsonl", [{"chosen": "a", "rejected": "b"}]))
    with pytest.raises(UserError, match="no such file"):
        load(make, tmp_path / "none.jsonl")
    folder = publish(helpful_base=([dialogue("So.")], []))
    (folder / "helpful-base" / "test.jsonl.gz").unlink()
    with pytest.raises(UserError, match=r"no helpful-base/test\.jsonl\.gz"):
        load(make, folder, subsets=["helpful-base"])


def test_the_hub_out_of_reach_ends_in_one_line(make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"data.path: the dataset 'Anthropic/hh-rlhf' is not cached") as error:
        load(make, None)
    assert "\n" not in str(error.value)


@pytest.mark.data
def test_the_real_pairs(make: Make, real_data: Callable[[str], Path]) -> None:
    result = load(make, real_data("hh_rlhf/pairs.jsonl.gz"))
    assert result.dropped == {"response_empty": 8, "responses_equal": 2}
    assert Counter((pair.group, pair.split) for pair in result.pairs) == {
        ("helpful-base", "train"): 1888,
        ("helpful-base", "test"): 460,
        ("harmless-base", "train"): 1842,
        ("harmless-base", "test"): 466,
    }
    prompts = {split: {pair.prompt for pair in result.pairs if pair.split == split} for split in ("train", "test")}
    assert not prompts["train"] & prompts["test"]
    longer = [len(p.chosen) > len(p.rejected) for p in result.pairs if p.group == "helpful-base"]
    assert 0.55 < sum(longer) / len(longer) < 0.66
