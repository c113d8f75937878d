"""summary.json: exactly the contract's keys, and only finite numbers."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedalign.errors import UserError
from fedalign.metrics.record import Metric
from fedalign.report.summary import Summary, Timing, Traffic, final_values

SUMMARY = Summary(
    method="pluralllm",
    data="synthetic_survey",
    status="completed",
    rounds=3,
    metrics={"unseen/alignment_score": 0.75},
    groups={"Kenya": {"unseen/alignment_score": 0.75}},
    privacy=None,
    timing=Timing(12.5, 4.0, 6, 18.25, 0.5),
    traffic=Traffic(1000, 900),
    seed=1,
)


def test_keys_are_those_of_the_contract() -> None:
    content = SUMMARY.to_json()
    contract = {
        "method", "data", "status", "rounds", "metrics", "groups", "privacy", "timing", "traffic",
    }  # fmt: skip
    assert set(content) == contract | {"seed", "dropped"}
    assert set(content["timing"]) == {
        "total_s", "per_round_s", "client_updates", "per_client_update_ms", "engine_overhead_ms",
    }  # fmt: skip
    assert set(content["traffic"]) == {"down_bytes", "up_bytes"}
    assert content["privacy"] is None


def test_simulated_time_is_there_where_it_was_simulated() -> None:
    simulated = replace(SUMMARY, timing=replace(SUMMARY.timing, simulated_s=7.5))
    assert simulated.to_json()["timing"]["simulated_s"] == 7.5
    assert Summary.from_json(json.loads(json.dumps(simulated.to_json())), "summary.json") == simulated


def test_only_a_failed_run_has_a_reason() -> None:
    assert replace(SUMMARY, status="failed", reason="no nodes").to_json()["reason"] == "no nodes"
    with pytest.raises(UserError, match="reason"):
        replace(SUMMARY, status="failed")
    with pytest.raises(UserError, match="reason"):
        replace(SUMMARY, reason="none")


def test_survives_json(guarantee: dict[str, Any]) -> None:
    for summary in (
        SUMMARY,
        replace(SUMMARY, privacy=guarantee),
        replace(SUMMARY, status="failed", reason="x"),
    ):
        assert Summary.from_json(json.loads(json.dumps(summary.to_json())), "summary.json") == summary


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_that_is_not_finite_is_named(value: float, guarantee: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"summary\.metrics\.test/accuracy"):
        replace(SUMMARY, metrics={"test/accuracy": value})
    with pytest.raises(UserError, match=r"summary\.groups\.Kenya\.test/accuracy"):
        replace(SUMMARY, groups={"Kenya": {"test/accuracy": value}})
    with pytest.raises(UserError, match=r"summary\.timing\.total_s"):
        replace(SUMMARY, timing=replace(SUMMARY.timing, total_s=value))
    with pytest.raises(UserError, match=r"summary\.privacy\.epsilon"):
        replace(SUMMARY, privacy={**guarantee, "epsilon": value})


def test_a_guarantee_names_all_of_its_terms(guarantee: dict[str, Any]) -> None:
    del guarantee["relation"], guarantee["delta"]
    with pytest.raises(UserError, match="relation, delta"):
        replace(SUMMARY, privacy=guarantee)


def test_a_wrong_type_is_named() -> None:
    content = {**SUMMARY.to_json(), "rounds": "many"}
    with pytest.raises(UserError, match=r"summary\.json: rounds"):
        Summary.from_json(content, "summary.json")


def metric(name: str, value: float, round: int, scope: str, group: str | None = None, phase: str = "a") -> Metric:
    return Metric(phase, round, scope, group, name, value, 1.0)  # type: ignore[arg-type]


def test_final_values_are_the_last_ones_and_initial_those_before_the_first_round() -> None:
    records = [
        metric("unseen/x", 0.1, 0, "eval"),
        metric("test/x", 0.2, 0, "eval"),
        metric("test/x", 0.25, 0, "eval", group="g"),
        metric("train/loss", 3.0, 1, "train"),
        metric("down_bytes", 9.0, 1, "server"),
        metric("unseen/x", 0.3, 0, "eval", phase="b"),
        metric("unseen/x", 0.5, 1, "test", phase="b"),
        metric("test/x", 0.6, 1, "test", phase="b"),
        metric("test/x", 0.65, 1, "test", group="g", phase="b"),
    ]
    metrics, groups = final_values(records)
    assert metrics == {"initial/x": 0.1, "train/loss": 3.0, "unseen/x": 0.5, "test/x": 0.6}
    assert groups == {"g": {"test/x": 0.65}}


def test_initial_values_are_of_held_out_questions_when_no_group_is_unseen() -> None:
    records = [metric("test/x", 0.2, 0, "eval"), metric("test/x", 0.6, 1, "test")]
    assert final_values(records)[0] == {"initial/x": 0.2, "test/x": 0.6}


def test_a_run_that_died_before_its_first_evaluation_has_none() -> None:
    assert final_values([]) == ({}, {})


def test_a_fabricated_run_has_the_values_it_was_made_from(make_run: Callable[..., Path]) -> None:
    content = json.loads((make_run("run", score=0.75) / "summary.json").read_text())
    assert content["metrics"]["unseen/alignment_score"] == pytest.approx(0.75)
    assert content["metrics"]["initial/alignment_score"] == pytest.approx(0.69)
    assert content["groups"]["Kenya"]["unseen/alignment_score"] == pytest.approx(0.74)
