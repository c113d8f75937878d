"""What the check tells of a file: figures that can be counted by hand, and each thing that deserves a look."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from fedalign.cli import main
from fedalign.data_check.check import MOST_ERRORS, check_file
from fedalign.data_check.findings import CheckReport, Spread
from fedalign.errors import UserError

from .files import GOOD, Row


def check(directory: Path, rows: list[Row], kind: str | None = None, encoder: str = "none") -> CheckReport:
    path = directory / "file.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return check_file(path, kind, encoder)


def codes(report: CheckReport, level: str) -> set[str]:
    return {finding.code for finding in report.findings if finding.level == level}


def changed(kind: str, **cells: Any) -> list[Row]:
    """Return good rows of a kind, the first of them changed."""
    first, *others = GOOD[kind]
    return [{**first, **cells}, *others]


def test_sizes_and_distributions_are_counted(tmp_path: Path) -> None:
    report = check(tmp_path, GOOD["pairs"])
    assert (report.kind, report.rows, report.dropped) == ("pairs", 6, {})
    assert report.sizes["judgments of an annotator"] == Spread(3, 3, 3, 2)
    assert report.sizes["characters of chosen"] == Spread(8, 8, 8, 6)
    assert report.counts["by split"] == {"train": 4, "test": 2}
    assert report.counts["the preferred response is"] == {"not longer": 6}
    assert report.of_level("error") == report.of_level("warning") == []


def test_a_survey_s_answers_are_counted(tmp_path: Path) -> None:
    report = check(tmp_path, GOOD["survey"])
    assert report.sizes["questions of a group"] == Spread(2, 2, 2, 3)
    assert report.sizes["options of a question"] == Spread(3, 3, 3, 2)
    assert report.counts["largest share of an answer"] == {"0.5 to 0.6": 2, "0.7 to 0.8": 4}
    # "Don't know" stays unless the rules of cleaning are turned on.
    assert codes(report, "note") == {"refusal_option"}


def test_the_median_of_an_even_number_is_between() -> None:
    assert Spread.of([4, 1, 2, 8]) == Spread(1, 3, 8, 4)
    assert Spread.of([]) == Spread(0, 0, 0, 0)


@pytest.mark.parametrize(
    ("kind", "cells", "code"),
    [
        ("pairs", {"annotator": "ann@clinic.example"}, "personal_name"),
        ("pairs", {"annotator": "+49 170 1234567"}, "personal_name"),
        (
            "pairs",
            {"annotator": "I liked the first one much more because it was short and to the point"},
            "text_as_name",
        ),
        ("pairs", {"annotator": "A1"}, "names_alike"),
        ("pairs", {"prompt": "Write to ann@clinic.example"}, "personal_data"),
        ("pairs", {"chosen": "<p>Short.</p>"}, "html"),
        ("pairs", {"chosen": "caf\u00c3\u00a9"}, "mojibake"),
        ("pairs", {"chosen": "a\x07b"}, "control_characters"),
        ("pairs", {"chosen": "x" * 60_000}, "cell_gigantic"),
        ("pairs", {"chosen": " "}, "cell_empty"),
        ("pairs", {"annotator": None}, "nobody_named"),
        ("pairs", {"split": "test", "prompt": "Ask 2"}, "leak"),
        ("pairs", {"prompt": "Ask 2", "chosen": "Much longer 2.", "rejected": "Short 2."}, "contradiction"),
        ("rankings", {"prompt": "Menu 1", "ranks": [2, 1, None]}, "contradiction"),
        ("texts", {"prompt": "Say 2"}, "leak"),
        ("survey", {"distribution": [1.0, 0.0, 0.0]}, "answer_certain"),
        ("survey", {"question": "is it  NEAR?"}, "questions_alike"),
    ],
)
def test_what_deserves_a_look_is_a_warning(tmp_path: Path, kind: str, cells: Row, code: str) -> None:
    assert code not in codes(check(tmp_path, GOOD[kind]), "warning")
    report = check(tmp_path, changed(kind, **cells))
    assert code in codes(report, "warning")
    assert not report.refused


def test_a_misspelt_column_is_a_warning_and_another_one_a_note(tmp_path: Path) -> None:
    rows = [{**{k: v for k, v in row.items() if k != "annotator"}, "anotator": "a"} for row in GOOD["pairs"]]
    (finding,) = [found for found in check(tmp_path, rows).findings if found.code == "column_misspelt"]
    assert finding.message == "column 'anotator' is not read; did you mean 'annotator'?"
    assert "column_ignored" in codes(check(tmp_path, changed("pairs", weather="rain")), "note")


def test_numbers_in_a_column_of_texts_are_a_warning(tmp_path: Path) -> None:
    rows = [{**row, "chosen": str(place)} for place, row in enumerate(GOOD["pairs"])]
    assert "numbers_as_text" in codes(check(tmp_path, rows), "warning")


def test_a_long_text_takes_no_longer_than_its_length(tmp_path: Path) -> None:
    began = time.perf_counter()
    for text in ("a" * 500_000, "A" + "a" * 500_000, "<a " * 200_000, "0 1" * 200_000, "a@" * 200_000, "+1" * 200_000):
        check(tmp_path, changed("pairs", prompt=text, annotator=text))
    assert time.perf_counter() - began < 20


def test_names_of_people_are_told_from_codes(tmp_path: Path) -> None:
    named = [{**row, "annotator": {"a1": "Ada Lovelace", "a2": "B. 2"}[row["annotator"]]} for row in GOOD["pairs"]]
    assert "personal_name" in codes(check(tmp_path, named), "warning")


def test_a_length_that_decides_is_a_warning(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{n}", "chosen": "long " * 5, "rejected": "s", "annotator": "a"} for n in range(30)]
    assert "length_decides" in codes(check(tmp_path, rows), "warning")


def test_what_cleaning_drops_is_counted_as_a_run_counts_it(tmp_path: Path) -> None:
    rows = [*GOOD["pairs"], GOOD["pairs"][0], {**GOOD["pairs"][1], "rejected": "Short 1."}]
    report = check(tmp_path, rows)
    assert report.dropped == {"judgment_repeated": 1, "responses_equal": 1}
    assert not report.refused


def test_every_malformed_row_is_named_not_just_the_first(tmp_path: Path) -> None:
    rows = [{**row, "split": "tset"} for row in GOOD["pairs"]] * 5
    errors = check(tmp_path, rows).of_level("error")
    assert len(errors) == MOST_ERRORS
    assert "line 1: 'split' holds 'tset'; did you mean 'test'?" in errors[0].message
    assert "line 2:" in errors[1].message


def test_a_contradiction_between_rows_is_the_loader_s_to_find(tmp_path: Path) -> None:
    rows = [*GOOD["survey"], {**GOOD["survey"][0], "distribution": [0.5, 0.5, 0.0]}]
    (error,) = check(tmp_path, rows).of_level("error")
    assert "a second time with other shares" in error.message


def test_what_leaves_and_what_stays_is_told_by_privacy_mode(tmp_path: Path) -> None:
    for kind, rows in GOOD.items():
        report = check(tmp_path, rows, kind)
        modes = {"always", "none", "secure_sum", "central", "distributed", "local_example", "local_user"}
        assert set(report.leaves) == modes
        assert report.stays


def test_an_encoder_is_tried(tmp_path: Path) -> None:
    rows = changed("pairs", chosen="!!!", rejected="???", prompt="...")
    report = check(tmp_path, rows, encoder="hashing")
    assert {"vector_empty", "vector_same"} <= codes(report, "warning")
    assert "encoded" in codes(report, "note")
    with pytest.raises(UserError, match="no such encoder; did you mean 'hashing'"):
        check(tmp_path, rows, encoder="hashin")
    with pytest.raises(UserError, match="read by the tokenizer"):
        check(tmp_path, GOOD["texts"], encoder="hashing")


@pytest.mark.parametrize(
    ("rows", "kind", "message"),
    [
        ([], None, "holds no rows"),
        ([{"a": 1, "prompt": 2}], None, "are those of no kind of file; nearest is"),
        ([{"a": 1}], "pears", "no such kind; did you mean 'pairs'"),
    ],
)
def test_a_kind_that_cannot_be_told_is_asked_for(
    tmp_path: Path, rows: list[Row], kind: str | None, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        check(tmp_path, rows, kind)


def test_the_command_ends_with_0_on_warnings_and_2_on_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, out = tmp_path / "pairs.jsonl", tmp_path / "out.json"
    path.write_text("".join(json.dumps(row) + "\n" for row in changed("pairs", annotator="ann@clinic.example")))
    assert main(["data", "check", str(path), "--json", str(out)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "6 rows of pairs" in shown
    assert "looks like an e-mail address" in shown
    assert "what leaves this machine" in shown
    told = json.loads(out.read_text())
    assert (told["kind"], told["rows"], told["refused"]) == ("pairs", 6, False)
    path.write_text('{"prompt": "a", "chosen": "b", "rejected": 3}\n')
    assert main(["data", "check", str(path), "--json", str(out)]) == 2
    assert "1 errors; a run would refuse this file" in capsys.readouterr().err
    assert json.loads(out.read_text())["refused"]
    assert main(["data", "check", str(tmp_path / "none.jsonl")]) == 2
