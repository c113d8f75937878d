"""Metrics as sums: what is paid for is told by some evaluation, and can be shown."""

from __future__ import annotations

from typing import Any

import pytest

from fedalign.data.federated import Role
from fedalign.errors import UserError
from fedalign.federation.directory import ClientDirectory
from fedalign.federation.metric_plan import (
    check_metrics,
    count_floor,
    evaluations,
    is_evaluated,
    metric_bound,
    told_of,
)
from fedalign.privacy.metric_release import OpenMetrics, SummedMetrics, WithheldMetrics
from fedalign.privacy.protection import Protection

from .guarded import Pull, Push, protection, secure_sum

TRAINING, UNSEEN = [f"c{i}" for i in range(40)], ["u1", "u2", "u3", "u4"]
PEOPLE = ClientDirectory(TRAINING, UNSEEN, {})


def summed(noise: float = 0.1, *names: str) -> Protection:
    return protection(metrics=SummedMetrics(names, noise))


def phase(*bounded: str, evaluated: frozenset[Role] = frozenset(Role), made: type[Pull] = Pull) -> Pull:
    found = made(3)
    found.bounded_metrics, found.evaluated = frozenset(bounded), evaluated
    return found


def test_evaluations_are_counted_as_the_run_makes_them() -> None:
    for rounds in range(12):
        for every in range(1, 14):
            done = [0] + [n for n in range(1, rounds + 1) if n == rounds or n % every == 0]
            assert evaluations(rounds, every) == len(done)


def test_one_client_changes_a_release_by_the_bound_at_most() -> None:
    """A value and a count of 1 for each metric."""
    assert metric_bound(1) == pytest.approx(2**0.5)
    assert metric_bound(3) == pytest.approx(6**0.5)


def test_a_metric_that_is_not_declared_is_told_nothing_of() -> None:
    phases = [phase("unseen/win_rate"), phase("unseen/accuracy", made=Push)]
    names = ("unseen/reward", "unseen/accuracy", "unseen/win_rate", "unseen/accuracy")
    assert told_of(summed(), phases, names) == ("unseen/accuracy", "unseen/win_rate")
    # Without bounds, any number may be added up; of phases that declare nothing, nothing is known.
    assert told_of(secure_sum(metrics=SummedMetrics((), 0.0)), phases, names) == tuple(dict.fromkeys(names))
    assert told_of(summed(), [Pull()], names) == tuple(dict.fromkeys(names))
    assert told_of(summed(), [phase("a", evaluated=frozenset())], ["a"]) == ()


@pytest.mark.parametrize("name", ["unseen/reward", "train/reward", "unseen/test_perplexity"])
def test_a_metric_that_no_evaluation_tells_is_refused_by_name(name: str) -> None:
    phases = [phase("unseen/win_rate"), phase("unseen/accuracy", made=Push)]
    with pytest.raises(UserError, match=name) as refusal:
        check_metrics(summed(0.1, "unseen/win_rate", name), phases, ["unseen/win_rate", name], PEOPLE)
    # Of those that nobody asked for by name, it is enough if one can be told.
    check_metrics(summed(), phases, ["unseen/win_rate", name], PEOPLE)
    assert "unseen/accuracy, unseen/win_rate" in str(refusal.value)
    assert "\n" not in str(refusal.value)
    check_metrics(protection(metrics=OpenMetrics()), phases, [name], PEOPLE)
    check_metrics(protection(metrics=WithheldMetrics()), phases, [], PEOPLE)


def test_phases_without_such_metrics_leave_no_choice() -> None:
    with pytest.raises(UserError, match=r"there are no others, or set privacy/metrics=withheld"):
        check_metrics(summed(), [phase()], ["unseen/reward"], PEOPLE)


# Of four unseen clients, or all 44, a count must be three deviations above nothing to be shown.


@pytest.mark.parametrize(
    ("noise", "names", "refused"),
    [
        (0.9, ["unseen/accuracy"], False),
        (0.95, ["unseen/accuracy"], True),
        (0.6, ["unseen/accuracy", "unseen/win_rate"], False),
        (0.7, ["unseen/accuracy", "unseen/win_rate"], True),
        (7.0, ["unseen/accuracy", "train/accuracy"], False),
        (7.5, ["unseen/accuracy", "train/accuracy"], True),
    ],
)
def test_sums_over_too_few_clients_for_their_noise_are_refused(noise: float, names: list[str], refused: bool) -> None:
    def check() -> None:
        check_metrics(summed(noise, *names), [phase(*names)], names, PEOPLE)

    if not refused:
        check()
        return
    with pytest.raises(UserError, match=rf"privacy\.metrics\.noise_multiplier={noise}: .* nothing could be shown"):
        check()
    floor = count_floor(noise, len(names))
    assert floor > (4 if all(name.startswith("unseen/") for name in names) else 44)


def test_a_phase_is_evaluated_where_somebody_can_be_told_something() -> None:
    unseen = frozenset({Role.UNSEEN})
    nobody = ClientDirectory(TRAINING, [], {})
    cases: list[tuple[Protection, Any, ClientDirectory, bool]] = [
        (summed(), phase("a"), PEOPLE, True),
        (summed(), phase("b"), PEOPLE, False),
        (summed(), Pull(), PEOPLE, True),
        (summed(), phase("a", evaluated=unseen), nobody, False),
        (protection(), phase("b"), PEOPLE, True),
        (protection(metrics=WithheldMetrics()), phase("a"), PEOPLE, False),
        (secure_sum(metrics=SummedMetrics((), 0.0)), phase("b"), PEOPLE, True),
    ]
    for privacy, asked, directory, expected in cases:
        assert is_evaluated(privacy, asked, ["a"], directory) == expected


def test_a_secure_sum_needs_its_minimum_of_evaluated_clients() -> None:
    """Else every evaluation would be given up, and nobody would hear of it."""
    privacy, unseen = secure_sum(metrics=SummedMetrics((), 0.0)), frozenset({Role.UNSEEN})
    asked = [phase(evaluated=unseen)]
    check_metrics(privacy, asked, ["a"], ClientDirectory(TRAINING, UNSEEN[:3], {}))
    check_metrics(privacy, asked, ["a"], ClientDirectory(TRAINING, [], {}))
    check_metrics(privacy, [phase()], ["a"], ClientDirectory(TRAINING, UNSEEN[:1], {}))
    check_metrics(secure_sum(), asked, ["a"], ClientDirectory(TRAINING, UNSEEN[:1], {}))
    for few in (1, 2):
        with pytest.raises(UserError, match=rf"privacy\.secure\.minimum=3: .* \({few}\), and .*partition\.unseen"):
            check_metrics(privacy, asked, ["a"], ClientDirectory(TRAINING, UNSEEN[:few], {}))
