"""What a run tells the log, round by round."""

from __future__ import annotations

import logging

import pytest

from fedalign.federation.observer import PhasePlan, RoundReport
from fedalign.metrics.record import Metric
from fedalign.report.round_log import RoundLog


def test_a_line_a_round(caplog: pytest.LogCaptureFixture) -> None:
    log = RoundLog("unseen/score")
    with caplog.at_level(logging.INFO):
        log.run_started([PhasePlan("gpo", 4)], ("gpo", 1))
        told = (
            Metric("gpo", 2, "test", None, "unseen/score", 0.5, 3.0),
            Metric("gpo", 2, "server", None, "epsilon", 1.25, 1.0),
            Metric("gpo", 2, "test", "a", "unseen/score", 0.75, 1.0),
            Metric("gpo", 2, "server", None, "cohort", 5.0, 1.0),
        )
        log.round_ended(RoundReport("gpo", 2, 5, 1, 2.5, told))
        log.run_ended()
    assert [record.getMessage() for record in caplog.records] == [
        "phases: gpo (4 rounds); goes on after round 1 of gpo",
        "gpo: round 2 of 4, 2.5 s: 4 of 5 clients, test unseen/score 0.5000, server epsilon 1.2500",
    ]
