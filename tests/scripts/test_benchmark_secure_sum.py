"""The benchmark of secure sums counts what travels, and its table shows it."""

from __future__ import annotations

import json

import pytest

from fedalign.federation.secure.settings import SecAgg
from scripts.benchmark_secure_sum import Work, main, measure, size, to_table

SETTINGS = SecAgg(bits=64, fraction_bits=32, neighbours=4, threshold=0.6, minimum=2)


def test_a_client_sends_its_words_and_little_more():
    cost = measure(Work(6, 1000, 0.2), SETTINGS, 0)
    stays, lost = cost.up["client-5"], cost.up["client-0"]
    assert 8000 < stays < 8000 + 1500
    assert lost < 1500
    assert set(cost.stages_s) == {"keys", "shares", "masked", "unmask"}


def test_the_size_of_a_message_is_that_of_its_parts():
    assert size({"ab": b"xyz", "c": ["d", b"ef"]}) == 2 + 3 + 1 + 1 + 2


def test_the_table_and_its_numbers_are_written(tmp_path, capsys):
    assert main(["--clients", "4", "--values", "100", "--repeats", "1", "--out", str(tmp_path / "cost.json")]) == 0
    assert (tmp_path / "cost.md").read_text() == capsys.readouterr().out
    (row,) = json.loads((tmp_path / "cost.json").read_text())["rows"]
    assert row["clients"] == 4
    assert row["up_to_plain"] == pytest.approx(row["up_bytes"] / 400)


@pytest.mark.parametrize("wrong", ["--clients=2", "--neighbours=3", "--threshold=0.5", "--repeats=0"])
def test_mistakes_are_refused(wrong):
    with pytest.raises(SystemExit):
        main([wrong])


def test_the_page_shows_the_recorded_run(root):
    rows = json.loads((root / "docs" / "benchmarks" / "secure_sum.json").read_text())["rows"]
    assert to_table(rows).strip() in (root / "docs" / "benchmarks.md").read_text()
