"""Rounds of a simulated population: who is asked, what is counted, and that a run that goes on keeps its clock."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from fedalign.compression.base import Compression, NoCompression
from fedalign.compression.layers import Layers
from fedalign.compression.number_formats import Cast, Int8
from fedalign.compression.sparsify import TopK
from fedalign.errors import RunFailed
from fedalign.federation.devices import HOUR_S, Device, Devices
from fedalign.federation.payload import reply_bytes
from fedalign.federation.population import Simulated
from fedalign.methods.base import Needs
from fedalign.privacy.base import NoPrivacy, Privacy
from fedalign.privacy.metric_release import WithheldMetrics
from fedalign.rng import Streams

from .guarded import CLIENTS, SECAGG, Guarded, Pull, protection, secure_sum
from .toy import MEAN

WORK_S = {"a": 10.0, "b": 20.0, "c": 30.0, "d": 40.0, "e": 50.0, "f": 60.0}


@dataclass(frozen=True)
class Shifts(Devices):
    """From a, the fastest, to f; e and f come after the first hour only. Lines of a byte a second."""

    always: bool = True

    def fleet(self, clients: Sequence[str], streams: Streams) -> Mapping[str, Device]:
        later = ((HOUR_S, 24 * HOUR_S),)
        return {
            client: Device(WORK_S[client], 1.0, 1.0, later if client in "ef" or not self.always else None)
            for client in clients
        }


def population(**changes: Any) -> Simulated:
    usual: dict[str, Any] = {
        "devices": Shifts(), "update_seconds": 1.0, "jitter_sigma": 0.0, "dropout": 0.0, "deadline": None,
        "over_selection": 1.0, "pause_seconds": 5.0, "start_hour": 0.0, "cohorts": "registered",
    }  # fmt: skip
    return Simulated(**{**usual, **changes})


def world(folder: Path, privacy: Privacy | None = None, rounds: int = 3, **more: Any) -> Guarded:
    more.setdefault("population", population())
    return Guarded(folder, privacy or protection(noise_multiplier=0.0), [Pull(rounds=rounds)], **more)


def told(guarded: Guarded, name: str) -> list[float]:
    return [m.value for r in guarded.listener.rounds for m in r.metrics if (m.scope, m.name) == ("server", name)]


# Eight float64 numbers go down; eight float32 numbers, a weight and two numbers of a metric come up.
LINE_S = 8 * 8 + 8 * 4 + 8


def test_who_is_away_is_not_asked_and_counted(tmp_path: Path) -> None:
    guarded = world(tmp_path)
    outcome = guarded.run()
    assert sorted(guarded.phases[0].trained) == [(n, c) for n in (1, 2, 3) for c in "abcd"]
    assert told(guarded, "cohort") == [6.0] * 3
    assert told(guarded, "clients_failed") == told(guarded, "clients_offline") == [2.0] * 3
    assert told(guarded, "clients_dropped") == told(guarded, "clients_late") == [0.0] * 3
    assert told(guarded, "simulated_seconds") == [LINE_S + 40.0] * 3
    assert told(guarded, "simulated_clock") == [n * (LINE_S + 45.0) for n in (1, 2, 3)]
    assert told(guarded, "down_bytes") == [4 * 8 * 8.0] * 3
    assert told(guarded, "up_bytes") == [4 * (8 * 4 + 8 * 3.0)] * 3
    assert outcome.counters["simulated_s"] == 3 * (LINE_S + 45.0)
    # The mean is over the expected cohort, whoever came.
    everybody = Guarded(tmp_path / "all", guarded.privacy, [Pull(1)], clients="abcd").run().artefacts["pull"]["w"]
    first = world(tmp_path / "first", rounds=1).run().artefacts["pull"]["w"]
    torch.testing.assert_close(first, everybody * 4 / 6, atol=1e-6, rtol=0)


def test_a_deadline_and_an_evaluation_of_everybody(tmp_path: Path) -> None:
    guarded = world(tmp_path, population=population(deadline=LINE_S + 25.0, start_hour=2.0), rounds=1)
    guarded.run()
    assert guarded.phases[0].trained == [(1, "a"), (1, "b")]
    assert told(guarded, "clients_late") == [4.0]
    assert told(guarded, "simulated_seconds") == [LINE_S + 25.0]
    # Who is late was sent the state all the same.
    assert told(guarded, "down_bytes") == [6 * 8 * 8.0]
    evaluated = [m for m in guarded.listener.rounds[-1].metrics if m.name == "train/closeness"]
    assert {m.group for m in evaluated} == {None, *CLIENTS}


@pytest.mark.parametrize("separate", [False, True])
def test_a_population_that_is_always_there_changes_no_bit(tmp_path: Path, separate: bool) -> None:
    noisy = protection()
    plain = Guarded(tmp_path / "plain", noisy, [Pull()], separate=separate)
    there = world(tmp_path / "there", noisy, population=population(start_hour=2.0), separate=separate)
    one, other = plain.run(), there.run()
    assert torch.equal(one.artefacts["pull"]["w"], other.artefacts["pull"]["w"])
    assert {k: v for k, v in one.counters.items() if not k.endswith("_s")} == {
        k: v for k, v in other.counters.items() if not k.endswith("_s")
    }
    assert "simulated_s" in other.counters and "simulated_s" not in one.counters
    assert not told(plain, "simulated_seconds")


def test_rounds_to_which_nobody_comes_leave_the_state_and_the_clock_goes_on(tmp_path: Path) -> None:
    asleep = population(devices=Shifts(always=False), start_hour=0.997)
    plain = {"privacy": protection(noise_multiplier=0.0)}
    with pytest.raises(RunFailed, match=r"nobody was there \(6 offline, 0 dropped, 0 late\)"):
        world(tmp_path / "all", population=asleep, rounds=2, **plain).run()
    guarded = world(tmp_path / "some", population=asleep, rounds=4, **plain)
    guarded.run()
    assert told(guarded, "simulated_seconds") == [0.0, 0.0, 0.0, LINE_S + 60.0]
    assert told(guarded, "clients_offline") == [6.0, 6.0, 6.0, 0.0]
    assert {number for number, _ in guarded.phases[0].trained} == {4}


@pytest.mark.parametrize("needs", Needs)
def test_so_it_is_without_a_guarantee(tmp_path: Path, needs: Needs) -> None:
    class Plain(Pull):
        def update_each(self, state: Any, replies: Any, optimizer: Any) -> Any:
            return {"w": state["w"] + len(replies)}

    phase = Plain(rounds=4)
    phase.needs = needs
    from fedalign.federation.conductor import Conductor
    from fedalign.federation.job import Federation, Job
    from fedalign.federation.server_optimizer import FedAvg

    guarded = Guarded(tmp_path, NoPrivacy(), [phase])  # type: ignore[arg-type]
    federation = Federation(9, guarded.sampler, FedAvg(1.0), MEAN, 4, 4, 9.0, 1.0, 1, 3, 100.0)
    asleep = population(devices=Shifts(always=False), start_hour=0.997)
    job = Job("toy", "x", [phase], federation, 5, "{}", 1, tmp_path, [guarded.listener], False, population=asleep)
    outcome = Conductor(job, guarded.grid()).run()
    assert {number for number, _ in phase.trained} == {4}
    assert outcome.counters["client_updates"] == 6
    assert bool(outcome.artefacts["pull"]["w"].any())


@pytest.mark.parametrize("killed_after", [1, 2])
def test_a_run_that_goes_on_keeps_its_clock(tmp_path: Path, killed_after: int) -> None:
    drawn = population(dropout=0.3, jitter_sigma=0.5, start_hour=0.98)
    straight = world(tmp_path / "straight", population=drawn, rounds=5)
    whole = straight.run()
    world(tmp_path / "halted", population=drawn, rounds=killed_after).run()
    resumed = world(tmp_path / "halted", population=drawn, rounds=5)
    outcome = resumed.run(resume=True)
    assert torch.equal(whole.artefacts["pull"]["w"], outcome.artefacts["pull"]["w"])
    assert whole.counters["simulated_s"] == outcome.counters["simulated_s"]
    assert told(straight, "simulated_clock")[killed_after:] == told(resumed, "simulated_clock")
    # Something did change on the way.
    assert len(set(told(straight, "clients_offline"))) > 1
    assert sum(told(straight, "clients_dropped")) > 0


def test_secure_sums_are_over_those_who_came_or_given_up(tmp_path: Path) -> None:
    guarded = world(tmp_path / "four", secure_sum(), rounds=1)
    guarded.run()
    assert [client for _, client in guarded.phases[0].trained] == list("abcd")
    assert told(guarded, "clients_failed") == [2.0]
    two = world(tmp_path / "two", secure_sum(), population=population(deadline=8 * 8 + 8 * 9 + 25.0), rounds=2)
    with pytest.raises(RunFailed, match="only 2 clients sent keys, at least 3 needed"):
        two.run()
    assert SECAGG.minimum == 3
    assert two.phases[0].trained == []


def test_everybody_drawn_is_charged_whoever_comes(tmp_path: Path) -> None:
    private = protection(noise_multiplier=1.0)
    alone = world(tmp_path / "alone", private, population=population(devices=Shifts(always=False)), rounds=2)
    plain = Guarded(tmp_path / "plain", private, [Pull(rounds=2)])
    plain.run()
    with pytest.raises(RunFailed):
        alone.run()
    assert alone.keeper.epsilon == plain.keeper.epsilon


LAYERS: list[Compression] = [
    NoCompression(), Layers(None, Cast("float16"), True), Layers(TopK(0.3), None, True),
    Layers(TopK(0.3), Int8("nearest"), True),
]  # fmt: skip


@pytest.mark.parametrize("compression", LAYERS)
def test_what_a_client_sends_is_known_before_it_does(tmp_path: Path, compression: Compression) -> None:
    for name, private in (("central", protection(metrics=WithheldMetrics())), ("plain", protection())):
        guarded = world(tmp_path / name, private, rounds=1, compression=compression, population=population())
        guarded.run()
        state = {"w": torch.zeros(8, dtype=torch.float64)}
        metrics = 0 if name == "central" else 16
        foretold = reply_bytes(Pull(), state, compression, private)
        assert told(guarded, "up_bytes") == [4 * (foretold + metrics)]


def test_sizes_without_a_guarantee_and_of_secure_sums() -> None:
    state = {"w": torch.zeros(8, dtype=torch.float64), "steps": torch.zeros(3, dtype=torch.int64)}
    assert reply_bytes(Pull(), state, NoCompression(), NoPrivacy()) == 8 + 8 * 8
    assert reply_bytes(Pull(), state, NoCompression(), secure_sum()) == 9 * 8
    single = Pull()
    single.needs = Needs.INDIVIDUAL
    assert reply_bytes(single, state, LAYERS[1], NoPrivacy()) == 8 + 2 * 8


def test_smaller_updates_make_shorter_rounds(tmp_path: Path) -> None:
    seconds = {}
    for name, compression in (("plain", LAYERS[0]), ("half", LAYERS[1])):
        guarded = world(tmp_path / name, rounds=1, compression=compression)
        guarded.run()
        seconds[name] = told(guarded, "simulated_seconds")[0]
    assert seconds["plain"] - seconds["half"] == 8 * 2
    assert math.isfinite(seconds["plain"])
