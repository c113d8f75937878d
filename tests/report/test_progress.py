"""The progress bar: what it says on a terminal, and its silence elsewhere."""

import io

from rich.console import Console

from fedalign.federation.observer import PhasePlan, RoundReport
from fedalign.metrics.record import Metric
from fedalign.report.progress import Progress

HEADLINE = "unseen/alignment_score"
PLAN = [PhasePlan("[red]prior", 1), PhasePlan("gpo", 4)]


def terminal() -> tuple[Console, io.StringIO]:
    screen = io.StringIO()
    return Console(file=screen, force_terminal=True, width=140, color_system=None, _environ={}), screen


def report(phase: str, round: int, *, failed: int = 0, seconds: float = 0.0, **values: float) -> RoundReport:
    metrics = [Metric(phase, round, "eval", None, HEADLINE, values["score"], 1.0)] if "score" in values else []
    if "epsilon" in values:
        metrics.append(Metric(phase, round, "server", None, "epsilon", values["epsilon"], 1.0))
    metrics.append(Metric(phase, round, "eval", "Kenya", HEADLINE, 0.1111, 1.0))
    return RoundReport(phase, round, 8, failed, seconds, tuple(metrics))


def last_lines(screen: io.StringIO) -> list[str]:
    """Return the bars as they stand at the end, without the terminal's control sequences."""
    return [line for line in screen.getvalue().replace("\r", "\n").splitlines() if "/4" in line or "/1" in line][-2:]


def watch(reports: list[RoundReport], resumed: tuple[str, int] | None = None) -> list[str]:
    console, screen = terminal()
    progress = Progress(HEADLINE, console)
    progress.run_started(PLAN, resumed)
    for each in reports:
        progress.round_ended(each)
    progress.run_ended()
    return last_lines(screen)


def test_shows_phase_round_cohort_headline_and_epsilon() -> None:
    prior, gpo = watch([report("[red]prior", 1), report("gpo", 3, score=0.78125, epsilon=1.256)])
    assert "[red]prior" in prior and "1/1" in prior
    assert "gpo" in gpo and "3/4" in gpo and "8 clients" in gpo
    assert f"{HEADLINE} 0.7812" in gpo and "ε 1.26" in gpo
    assert "0.1111" not in gpo  # a group's value is not the headline


def test_keeps_the_last_headline_between_evaluations_and_has_no_epsilon_without_privacy() -> None:
    line = watch([report("gpo", 1, score=0.5), report("gpo", 2)])[1]
    assert f"{HEADLINE} 0.5000" in line and "ε" not in line


def test_says_how_many_clients_failed() -> None:
    assert "8 clients (3 failed)" in watch([report("gpo", 1, failed=3)])[1]


def test_time_left_is_the_mean_round_times_the_rounds_left() -> None:
    line = watch([report("[red]prior", 1, seconds=1000.0), report("gpo", 1, seconds=2000.0)])[1]
    # Mean 1500 s, 3 of 5 rounds left: 1 h 15 min, less the moment that this test takes.
    assert "ETA 1:15:00" in line or "ETA 1:14:5" in line


def test_a_resumed_run_starts_where_the_checkpoint_was() -> None:
    prior, gpo = watch([], resumed=("gpo", 2))
    assert "1/1" in prior and "2/4" in gpo
    line = watch([report("gpo", 3, seconds=3600.0)], resumed=("gpo", 2))[1]
    assert "ETA 1:00:00" in line or "ETA 0:59:5" in line


def test_is_silent_when_it_is_no_terminal() -> None:
    screen = io.StringIO()
    progress = Progress(HEADLINE, Console(file=screen, _environ={}))
    progress.run_started(PLAN, None)
    progress.round_ended(report("gpo", 1, score=0.5))
    progress.run_ended()
    assert screen.getvalue() == ""


def test_standard_error_is_where_it_draws() -> None:
    assert Progress(HEADLINE)._console.stderr


def test_can_be_ended_without_having_started() -> None:
    Progress(HEADLINE, terminal()[0]).run_ended()
