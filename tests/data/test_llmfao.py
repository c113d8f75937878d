"""LLMFAO: two tables joined, winners turned into chosen responses, ties and empty answers counted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from fedalign.data.pairs import Pair, PairSet
from fedalign.errors import UserError
from fedalign.rng import Streams

Make = Callable[..., Any]
Write = Callable[[str, Sequence[dict[str, Any]]], Path]

RESPONSES = [
    {"prompt_id": 2, "prompt": "How?", "model": model, "response": response}
    for model, response in ((1, "So."), (2, "No."), (3, " "), (4, "So."))
]


def judge(winner: str, y: int = 2, **more: Any) -> dict[str, Any]:
    return {"prompt_id": 2, "model_x": 1, "model_y": y, "annotator": "w1", "winner": winner, "split": "train", **more}


def load(make: Make, folder: Path | None, **changes: Any) -> PairSet:
    source = make("data/llmfao", path=None if folder is None else str(folder), **changes)
    result: PairSet = source.load(Streams(0))
    return result


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl", ".csv", ".parquet"])
def test_the_winner_is_chosen(make: Make, write: Write, suffix: str) -> None:
    write(f"responses{suffix}", RESPONSES)
    path = write(f"comparisons{suffix}", [judge("x"), judge("y", split="test"), judge("tie", annotator="w2")])
    assert load(make, path.parent, ties="keep").pairs == [
        Pair("How?", "So.", "No.", "train", "crowd", "w1"),
        Pair("How?", "No.", "So.", "test", "crowd", "w1"),
        Pair("How?", "So.", "No.", "train", "crowd", "w2", tie=True),
    ]


def test_drops_are_counted(make: Make, write: Write) -> None:
    write("responses.jsonl", RESPONSES)
    path = write("comparisons.jsonl", [judge("x"), judge("tie"), judge("x", 3), judge("y", 4), judge("x")])
    result = load(make, path.parent)
    assert len(result.pairs) == 1
    assert result.dropped == {"tie": 1, "response_empty": 1, "responses_equal": 1, "judgment_repeated": 1}


def test_without_a_split_a_hash_decides(make: Make, write: Write) -> None:
    write("responses.jsonl", RESPONSES)
    comparison = judge("x")
    del comparison["split"]
    path = write("comparisons.jsonl", [comparison])
    assert load(make, path.parent, test_fraction=0.0).pairs[0].split == "train"
    assert load(make, path.parent, test_fraction=0.999999).pairs[0].split == "test"


@pytest.mark.parametrize(
    ("comparison", "message"),
    [
        (judge("z"), "line 1: 'winner' holds 'z'"),
        (judge("x", 9), "line 1: there is no response of model 9 to prompt 2"),
        (judge("x", annotator=None), "line 1: 'annotator' holds 'None'"),
        (judge("x", split="dev"), "line 1: 'split' holds 'dev'"),
    ],
)
def test_malformed_comparisons_are_refused(make: Make, write: Write, comparison: dict[str, Any], message: str) -> None:
    write("responses.jsonl", RESPONSES)
    path = write("comparisons.jsonl", [comparison])
    with pytest.raises(UserError, match=message):
        load(make, path.parent)


def test_malformed_responses_are_refused(make: Make, write: Write) -> None:
    path = write("comparisons.jsonl", [judge("x")])
    with pytest.raises(UserError, match="no table 'responses' in it"):
        load(make, path.parent)
    write("responses.jsonl", [RESPONSES[0], RESPONSES[0]])
    with pytest.raises(UserError, match="line 2: prompt 2 already has a response of model 1"):
        load(make, path.parent)
    write("responses.jsonl", [{**RESPONSES[0], "response": None}])
    with pytest.raises(UserError, match="line 1: 'prompt' and 'response' must be texts"):
        load(make, path.parent)


def test_the_folder_must_be_there(make: Make, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.path is not set"):
        load(make, None)
    with pytest.raises(UserError, match="no such folder"):
        load(make, tmp_path / "none")


@pytest.mark.data
def test_the_real_comparisons(make: Make, real_data: Callable[[str], Path]) -> None:
    folder = real_data("llmfao/comparisons.jsonl.gz").parent
    kept, decided = load(make, folder, ties="keep"), load(make, folder)
    assert len(kept.pairs) == 7603 and kept.dropped == {"response_empty": 1208, "judgment_repeated": 120}
    assert len(decided.pairs) == 4813 and decided.dropped["tie"] == 2794
    assert len({pair.annotator for pair in kept.pairs}) == 124
    assert len({pair.prompt for pair in kept.pairs}) == 13
