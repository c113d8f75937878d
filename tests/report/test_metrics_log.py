"""metrics.jsonl: written by round, never half a round, and cut at a checkpoint."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedalign.errors import UserError
from fedalign.federation.observer import PhasePlan, RoundReport
from fedalign.metrics.record import Metric
from fedalign.report.metrics_log import MetricsLog, from_line, read_metrics, to_line, truncate_metrics
from fedalign.report.run_directory import RunDirectory

METRIC = Metric("gpo", 2, "eval", "Türkiye", "unseen/alignment_score", 0.75, 5.0)
PLAN = [PhasePlan("prior", 1), PhasePlan("gpo", 3)]


def report(*metrics: Metric, round: int = 1, phase: str = "gpo") -> RoundReport:
    return RoundReport(phase, round, 2, 0, 0.1, metrics)


def test_a_line_has_exactly_the_keys_of_the_contract() -> None:
    assert json.loads(to_line(METRIC)) == {
        "phase": "gpo",
        "round": 2,
        "scope": "eval",
        "group": "Türkiye",
        "name": "unseen/alignment_score",
        "value": 0.75,
        "n": 5.0,
    }


@given(
    st.builds(
        Metric,
        phase=st.text(),
        round=st.integers(0, 10**6),
        scope=st.sampled_from(["train", "eval", "test", "server"]),
        group=st.none() | st.text(),
        name=st.text(),
        value=st.floats(allow_nan=False, allow_infinity=False),
        n=st.floats(0, 1e12),
    )
)
def test_what_is_written_is_read_back(metric: Metric) -> None:
    line = to_line(metric)
    assert len(line.splitlines()) == 1
    assert from_line(line) == metric


def test_a_round_is_on_disk_when_it_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    log.run_started(PLAN, None)
    log.round_ended(report(METRIC, replace(METRIC, group=None)))
    assert len(path.read_text().splitlines()) == 2
    log.round_ended(report(replace(METRIC, round=3), round=3))
    assert len(path.read_text().splitlines()) == 3
    log.run_ended()


def test_a_resumed_log_appends(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for _ in range(2):
        log = MetricsLog(path)
        log.run_started(PLAN, None)
        log.round_ended(report(METRIC))
        log.run_ended()
    assert len(read_metrics(path)) == 2


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_names_its_metric_and_writes_nothing(tmp_path: Path, value: float) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    log.run_started(PLAN, None)
    with pytest.raises(UserError) as error:
        log.round_ended(report(METRIC, replace(METRIC, name="train/loss", value=value)))
    log.run_ended()
    message = str(error.value)
    assert "'train/loss'" in message and "'gpo'" in message and "round 2" in message and "Türkiye" in message
    assert path.read_text() == ""


def test_an_ended_log_can_be_ended_again_but_not_written(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.run_ended()
    with pytest.raises(RuntimeError):
        log.round_ended(report(METRIC))


def test_a_missing_file_has_no_metrics(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "metrics.jsonl") == []


@pytest.mark.parametrize("cut", [1, 10, 40])
def test_a_torn_last_line_is_left_out(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(to_line(METRIC) + "\n" + to_line(METRIC)[:-cut])
    assert read_metrics(path) == [METRIC]


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        "{}",
        to_line(METRIC).replace('"eval"', '"evil"'),
        to_line(METRIC).replace("0.75", "NaN"),
        to_line(METRIC).replace("0.75", "null"),
    ],
)
def test_a_broken_line_elsewhere_is_an_error_with_its_number(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n".join([to_line(METRIC), line, to_line(METRIC)]) + "\n")
    with pytest.raises(UserError, match="line 2 is not a metric"):
        read_metrics(path)


def write(path: Path, places: list[tuple[str, int]], tail: str = "") -> None:
    lines = [to_line(replace(METRIC, phase=phase, round=round)) + "\n" for phase, round in places]
    path.write_text("".join(lines) + tail)


def places(path: Path) -> list[tuple[str, int]]:
    return [(metric.phase, metric.round) for metric in read_metrics(path)]


ALL = [("prior", 0), ("prior", 1), ("gpo", 0), ("gpo", 1), ("gpo", 2), ("gpo", 3)]


@pytest.mark.parametrize("checkpoint", range(len(ALL)))
@pytest.mark.parametrize("tail", ["", '{"phase": "gp'])
def test_truncation_keeps_what_the_checkpoint_knows(tmp_path: Path, checkpoint: int, tail: str) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, ALL, tail)
    truncate_metrics(path, *ALL[checkpoint], ["prior", "gpo"])
    assert places(path) == ALL[: checkpoint + 1]
    assert path.read_text().endswith("\n")


def test_truncation_keeps_a_whole_last_line_without_its_line_break(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(to_line(METRIC))
    truncate_metrics(path, "gpo", 2, ["gpo"])
    assert path.read_text() == to_line(METRIC) + "\n"


def test_truncation_follows_the_order_of_phases_not_of_names(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, [("z", 1), ("a", 1)])
    truncate_metrics(path, "z", 1, ["z", "a"])
    assert places(path) == [("z", 1)]


def test_truncation_refuses_a_phase_of_another_method(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, ALL)
    with pytest.raises(UserError, match="phase 'prior' is not one of this method's"):
        truncate_metrics(path, "gpo", 1, ["gpo"])
    with pytest.raises(UserError, match="'probe'"):
        truncate_metrics(path, "probe", 1, ["prior", "gpo"])
    assert places(path) == ALL


def test_the_run_directory_truncates_its_own_file(make_run: Callable[..., Path]) -> None:
    directory = RunDirectory.open(make_run("run"))
    directory.truncate_metrics("gpo", 1, ["gpo"])
    assert {metric.round for metric in directory.read_metrics()} == {0, 1}
