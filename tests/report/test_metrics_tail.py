"""metrics.jsonl read while it grows: every line once, none before its end, and again when it is made anew."""

from __future__ import annotations

import time
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from fedalign.metrics.record import Metric
from fedalign.report.metrics_log import to_line, truncate_metrics
from fedalign.report.metrics_tail import MetricsTail, last_values


def metric(number: int, name: str = "test/score", group: str | None = None) -> Metric:
    return Metric("gpo", number, "eval", group, name, 0.5 * number, 1.0)


def text(*metrics: Metric) -> str:
    return "".join(to_line(each) + "\n" for each in metrics)


def append(path: Path, content: str) -> None:
    with path.open("a") as file:
        file.write(content)


def test_a_file_that_is_not_there_yet_is_empty(tmp_path: Path) -> None:
    tail = MetricsTail(tmp_path / "metrics.jsonl")
    assert tail.read().metrics == []
    append(tmp_path / "metrics.jsonl", text(metric(1)))
    assert tail.read().metrics == [metric(1)]


@given(cuts=st.lists(st.integers(0, 400), max_size=6), size=st.integers(1, 300))
def test_every_line_comes_once_however_it_is_written_and_read(tmp_path_factory, cuts: list[int], size: int) -> None:
    path = tmp_path_factory.mktemp("tail") / "metrics.jsonl"
    metrics = [metric(number, group=f"Côte {number}") for number in range(4)]
    content = text(*metrics).encode()
    tail, found = MetricsTail(path), []
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(content)], strict=True):
        with path.open("ab") as file:
            file.write(content[start:end])
        while True:
            piece = tail.read(size)
            assert not piece.again
            found += piece.metrics
            if not piece.more:
                break
    assert found == metrics
    assert tail.broken == 0


def test_a_line_that_is_no_metric_is_passed_over_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append(path, text(metric(1)) + "not json\n" + text(metric(2)))
    tail = MetricsTail(path)
    assert tail.read().metrics == [metric(1), metric(2)]
    assert tail.broken == 1


def test_a_resumed_run_is_read_again_from_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append(path, text(metric(1), metric(2), metric(3)))
    tail = MetricsTail(path)
    assert len(tail.read().metrics) == 3
    truncate_metrics(path, "gpo", 1, ["gpo"])
    append(path, text(metric(2), metric(3), metric(4)))
    piece = tail.read()
    assert piece.again and piece.metrics == [metric(1), metric(2), metric(3), metric(4)]


def test_a_long_file_is_read_in_small_pieces_and_then_only_what_is_new(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    append(path, text(*(metric(number, group=f"group-{number % 100}") for number in range(20_000))))
    tail, count, more = MetricsTail(path), 0, True
    while more:
        piece = tail.read(2**18)
        count, more = count + len(piece.metrics), piece.more
        assert len(piece.metrics) < 3_000
    assert count == 20_000
    append(path, text(metric(20_000)))
    began = time.process_time()
    assert len(tail.read().metrics) == 1
    assert time.process_time() - began < 0.05


def test_the_last_values_are_found_at_the_end_alone(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert last_values(path) == {}
    server = Metric("gpo", 3, "server", None, "cohort", 9.0, 1.0)
    lines = [metric(1, "test/old"), *(metric(2, group=f"g{i}") for i in range(50)), metric(2), metric(3), server]
    append(path, text(*lines) + to_line(metric(4))[:20])
    assert last_values(path) == {"test/old": 0.5, "test/score": 1.5}
    assert last_values(path, 1000) == {"test/score": 1.5}
