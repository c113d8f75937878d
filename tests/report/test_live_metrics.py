"""Metrics as they come in agree with the curves that the final report draws from the whole file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fedalign.metrics.record import Metric
from fedalign.report.curves import Curves
from fedalign.report.live_metrics import FailedRound, LiveMetrics
from fedalign.report.run_directory import RunDirectory


def test_agrees_with_the_final_report(make_run: Callable[..., Path]) -> None:
    measured = RunDirectory.open(make_run("run", rounds=4)).read_metrics()
    second = [Metric("policy", m.round, m.scope, m.group, m.name, m.value / 2, m.n) for m in measured]
    live = LiveMetrics()
    for metric in [*measured, *second]:
        live.add([metric])
    whole = Curves([*measured, *second])
    assert live.starts == [0, 4] == list(whole.phases.values())
    assert set(live.curves) == set(whole.names())
    for name, points in live.curves.items():
        curve = whole.get(name)
        assert curve is not None
        assert sorted(points.items()) == list(zip(curve.steps.tolist(), curve.values.tolist(), strict=True))
    assert live.groups["Kenya"]["unseen/alignment_score"] == (0.75 - 0.01) / 2
    assert "epsilon" not in live.last and live.last["train/loss"] == 0.125


def test_rounds_with_failures_are_kept() -> None:
    live = LiveMetrics()
    live.add(Metric("gpo", n, "server", None, "clients_failed", float(n % 2 * 3), 1.0) for n in range(1, 5))
    assert live.failed == [FailedRound("gpo", 1, 3), FailedRound("gpo", 3, 3)]
    live.clear()
    assert (live.failed, live.curves, live.starts) == ([], {}, [])
