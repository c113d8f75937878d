"""How far a run has come, and the time that is left."""

from __future__ import annotations

from fedalign.federation.observer import PhasePlan, RoundReport
from fedalign.report.pace import Pace

PLAN = [PhasePlan("prior", 1), PhasePlan("gpo", 40)]


def report(phase: str, number: int, seconds: float) -> RoundReport:
    return RoundReport(phase, number, 2, 0, seconds, ())


def test_counts_the_rounds_of_each_phase() -> None:
    pace = Pace(PLAN, None)
    assert pace.done == {"prior": 0, "gpo": 0}
    for each in (report("prior", 0, 9.0), report("prior", 1, 2.0), report("gpo", 0, 9.0), report("gpo", 1, 4.0)):
        pace.round_ended(each)
    assert pace.done == {"prior": 1, "gpo": 1}
    # Evaluations before the first round are no rounds: a mean of 3 s, and 39 of 41 rounds are left.
    assert pace.seconds_left == 39 * 3.0


def test_a_resumed_run_has_the_rounds_of_its_checkpoint() -> None:
    pace = Pace(PLAN, ("gpo", 30))
    assert pace.done == {"prior": 1, "gpo": 30}
    assert pace.seconds_left is None
    pace.round_ended(report("gpo", 31, 2.0))
    assert pace.seconds_left == 9 * 2.0


def test_old_rounds_are_forgotten() -> None:
    pace = Pace(PLAN, None)
    pace.round_ended(report("prior", 1, 1000.0))
    for number in range(1, 21):
        pace.round_ended(report("gpo", number, 1.0))
    assert pace.seconds_left == 20 * 1.0
