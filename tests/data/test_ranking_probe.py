"""A probe in a rankings file: the same menus for everybody, in one order, apart from the judgments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from fedalign.data.rankings import Menu, RankingSet
from fedalign.errors import UserError
from fedalign.rng import Streams

Make = Callable[..., Any]
Write = Callable[[str, Sequence[dict[str, Any]]], Path]


def judgment(annotator: str | None, prompt: str = "private") -> dict[str, Any]:
    return {"prompt": prompt, "responses": ["x", "y", "z"], "ranks": [1, 2, 3], "annotator": annotator, "probe": False}


def answer(annotator: str, prompt: str, responses: list[str], ranks: list[float | None]) -> dict[str, Any]:
    return {"prompt": prompt, "responses": responses, "ranks": ranks, "annotator": annotator, "probe": True}


JUDGMENTS = [judgment("ann"), judgment("ben")]
ANSWERS = [
    answer("ann", "one", ["a", "b", "c"], [3, 1, 2]),
    answer("ben", "two", ["d", "e"], [2, 1]),
    answer("ben", "one", ["c", "a", "b"], [1, None, 2]),
    answer("ann", "two", ["d", "e"], [1, 1]),
]


def load(make: Make, path: Path) -> RankingSet:
    result: RankingSet = make("data/rankings_file", path=str(path)).load(Streams(0))
    return result


@pytest.mark.parametrize("name", ["r.jsonl", "r.csv", "r.parquet"])
def test_answers_are_put_into_one_order(make: Make, write: Write, name: str) -> None:
    result = load(make, write(name, [*JUDGMENTS, *ANSWERS]))
    assert result.probe == [Menu("one", ("a", "b", "c")), Menu("two", ("d", "e"))]
    assert result.answers == {"ann": [(2, 0, 1), (0, 0)], "ben": [(2, 1, 0), (1, 0)]}
    assert [ranking.prompt for ranking in result.rankings] == ["private"] * 2 and result.dropped == {}


def test_judgments_of_the_probes_menus_are_dropped(make: Make, write: Write) -> None:
    public = {**judgment("ann", "one"), "responses": ["c", "b", "a"]}
    other = {**judgment("ann", "one"), "responses": ["a", "b", "x"]}
    result = load(make, write("r.jsonl", [*JUDGMENTS, public, other, *ANSWERS]))
    assert [ranking.responses[2] for ranking in result.rankings] == ["z", "z", "x"]
    assert result.dropped == {"in_probe": 1}


def test_nobody_known_needs_to_answer(make: Make, write: Write) -> None:
    result = load(make, write("r.jsonl", [judgment(None), *ANSWERS]))
    assert set(result.answers) == {"ann", "ben"} and len(result.rankings) == 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([*JUDGMENTS, *ANSWERS[:3]], "annotator 'ann' answered 1 of 2 menus of the probe, and not 'two'; everybody"),
        ([*JUDGMENTS, judgment("cat"), *ANSWERS], "annotator 'cat' answered 0 of 2 menus of the probe, and not 'one'"),
        ([JUDGMENTS[0], *ANSWERS[:1], *ANSWERS[2:]], "annotator 'ben' answered 1 of 2 menus"),
        ([*JUDGMENTS, *ANSWERS, ANSWERS[1]], "line 7: annotator 'ben' answers this menu of the probe twice; remove"),
        ([*JUDGMENTS, answer("ann", " ", ["a", "b"], [1, 2])], "line 3: a menu of the probe has an empty text"),
        ([*JUDGMENTS, answer("ann", "one", ["a", ""], [1, 2])], "line 3: a menu of the probe has an empty text"),
        ([*JUDGMENTS, answer("ann", "one", ["a", "a"], [1, 2])], "line 3: .* has the same response twice; remove one"),
        ([{**ANSWERS[0], "probe": False}, ANSWERS[0]], "all judgments are of menus of the probe"),
        (ANSWERS, "no usable ranking is left"),
    ],
)
def test_a_probe_must_be_the_same_for_everybody(
    make: Make, write: Write, rows: list[dict[str, Any]], message: str
) -> None:
    path = write("r.jsonl", rows)
    with pytest.raises(UserError, match=message) as error:
        load(make, path)
    assert "\n" not in str(error.value)
