"""Law 8 for populations and compression: every option changes who comes, how long it takes, or what is sent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedalign.contribution import Contribution
from fedalign.errors import UserError
from fedalign.federation.attendance import Attendance
from fedalign.federation.devices import Load
from fedalign.federation.population import Simulated
from fedalign.federation.sampling import FixedSampler
from fedalign.rng import Streams
from tests.configs import configured

CLIENTS = [f"client-{number}" for number in range(40)]
LOAD = Load(40_000_000, 40_000_000)


def story(*overrides: str) -> list[Any]:
    """Return who is drawn and comes, and when, over some rounds."""
    population = configured(*overrides).population
    assert isinstance(population, Simulated)
    clerk = Attendance.of(population, CLIENTS, 3, lambda phase, travels: LOAD.up_bytes)
    told: list[Any] = []
    for number in range(1, 9):
        cohort = clerk.draw(FixedSampler(20), CLIENTS, np.random.default_rng(number), number)
        turnout = population.turnout(cohort, clerk.fleet, LOAD, clerk.clock_s, Streams(3, "phase", number))
        clerk.clock_s += turnout.seconds + population.pause_seconds
        told.append((cohort, turnout, clerk.clock_s))
    return told


POPULATION = [
    "devices.slowness_sigma=0.1",
    "devices.down_median=9e6",
    "devices.down_sigma=0.1",
    "devices.up_median=9e6",
    "devices.up_sigma=0.1",
    "devices.daily=null",
    "devices.daily.hours=12",
    "devices.daily.middle_hour=4",
    "devices.daily.spread_hours=0.5",
    "update_seconds=30",
    "jitter_sigma=0.0",
    "dropout=0.5",
    "deadline=120",
    "deadline=null",
    "over_selection=4",
    "pause_seconds=1800",
    "start_hour=10",
    "cohorts=online",
]


@pytest.mark.parametrize("change", POPULATION)
def test_an_option_of_a_population_changes_what_happens(change: str) -> None:
    assert story("population=phones", f"population.{change}") != story("population=phones")


def test_one_seed_is_one_story() -> None:
    assert story("population=silos") == story("population=silos")


def test_every_key_of_a_population_is_tried() -> None:
    phones = configured("population=phones").population
    assert isinstance(phones, Simulated)
    tried = {change.partition("=")[0] for change in POPULATION}
    known = set(vars(phones)) - {"devices"}
    known |= {f"devices.{key}" for key in vars(phones.devices)}
    known |= {f"devices.daily.{key}" for key in vars(phones.devices.daily)}  # type: ignore[attr-defined]
    assert tried == known


def test_a_trace_and_its_period_count(tmp_path: Path) -> None:
    rows = ["slowness,down,up,online", '1,1e6,1e6,"[[0, 6]]"', "2,1e6,1e6,"]
    paths = []
    for name, chosen in (("one", rows[:2]), ("two", rows)):
        path = tmp_path / f"{name}.csv"
        path.write_text("\n".join(chosen))
        paths.append(f"population.devices.path={path}")
    one, two = (story("population=trace", path, "population.deadline=20000") for path in paths)
    assert one != two
    start = ("population=trace", paths[0], "population.start_hour=12")
    assert story(*start) != story(*start, "population.devices.period_hours=12")


def sent(*overrides: str) -> list[Any]:
    """Return what a client sends in two rounds."""
    compression, residual, told = configured(*overrides).compression, {}, []
    for number in (1, 2):
        values = torch.randn(200, generator=torch.Generator().manual_seed(number))
        given = Contribution({"delta/w": values}, {"weight": 1.0})
        got, residual = compression.compress(given, residual, torch.Generator().manual_seed(number), 0.0)
        told.append(got.tensors["delta/w"].tolist())
    return told


@pytest.mark.parametrize(
    ("choice", "change"),
    [
        ("int8", "number.rounding=nearest"),
        ("int8", "error_feedback=false"),
        ("bf16", "number.dtype=float16"),
        ("bf16", "error_feedback=false"),
        ("fp16", "error_feedback=false"),
        ("topk", "topk.share=0.05"),
        ("topk", "error_feedback=false"),
        ("topk_int8", "topk.share=0.05"),
        ("topk_int8", "number.rounding=nearest"),
        ("topk_int8", "topk=null"),
        ("topk_int8", "number=null"),
    ],
)
def test_an_option_of_compression_changes_what_is_sent(choice: str, change: str) -> None:
    assert sent(f"compression={choice}", f"compression.{change}") != sent(f"compression={choice}")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["population=phones", "population.dropout=1"], r"population\.dropout=1 "),
        (["population=phones", "population.over_selection=0.9"], r"population\.over_selection=0\.9 "),
        (["population=phones", "population.cohorts=all"], r"population\.cohorts='all' .*registered.*online"),
        (["population=phones", "population.pause_seconds=0"], r"population\.pause_seconds=0 "),
        (["population=phone"], r"population=phone: no such option.*phones"),
        (["compression=topk", "compression.topk.share=1"], r"compression\.topk\.share=1 "),
        (["compression=topk", "compression.topk=null"], "both null"),
        (["compression=int8", "compression.number.rounding=up"], r"compression\.number\.rounding='up' "),
        (["population=trace"], r"population\.devices\.path=null: set it"),
    ],
)
def test_wrong_settings_are_named(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        configured(*overrides)
