"""Devices: distributions, hours of the day, durations, and traces from files."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedalign.errors import UserError
from fedalign.federation.device_trace import TracedDevices
from fedalign.federation.devices import DAY_S, HOUR_S, Daily, Device, Load, LogNormalDevices
from fedalign.rng import Streams

MANY = [f"client-{number}" for number in range(3000)]
DRAWN = LogNormalDevices(0.5, 2e6, 0.8, 5e5, 1.0, Daily(8, 2, 3))


def test_a_duration_is_download_work_and_upload() -> None:
    device = Device(slowness=2.0, down=100.0, up=50.0)
    assert device.seconds(Load(1000, 200), 30.0) == 1000 / 100 + 2 * 30 + 200 / 50


def test_speeds_and_bandwidths_have_their_medians_and_spreads() -> None:
    fleet = DRAWN.fleet(MANY, Streams(7))
    for name, median, sigma in (("slowness", 1.0, 0.5), ("down", 2e6, 0.8), ("up", 5e5, 1.0)):
        logs = np.log([getattr(fleet[client], name) / median for client in MANY])
        assert abs(logs.mean()) < 4 * sigma / math.sqrt(len(MANY))
        assert abs(logs.std() / sigma - 1) < 4 / math.sqrt(2 * len(MANY))
        assert abs(np.mean(((logs - logs.mean()) / logs.std()) ** 3)) < 4 * math.sqrt(6 / len(MANY))
    slow, down = (np.log([getattr(fleet[client], name) for client in MANY]) for name in ("slowness", "down"))
    assert abs(np.corrcoef(slow, down)[0, 1]) < 4 / math.sqrt(len(MANY))


def test_a_client_s_device_is_its_own_and_that_of_the_seed() -> None:
    fleet = DRAWN.fleet(["a", "b"], Streams(7))
    assert fleet["b"] == DRAWN.fleet(["b"], Streams(7))["b"]
    assert fleet["a"] != fleet["b"]
    assert fleet["a"] != DRAWN.fleet(["a"], Streams(8))["a"]


def test_the_share_that_is_there_goes_up_and_down_with_the_hour() -> None:
    fleet = DRAWN.fleet(MANY, Streams(7))
    shares = [np.mean([fleet[client].is_online(hour * HOUR_S) for client in MANY]) for hour in range(24)]
    # Over a day every client is there 8 hours of 24.
    assert np.mean(shares) == pytest.approx(8 / 24, abs=0.02)
    # At the median client's middle, those whose own is less than 4 hours away: a normal within 4/3 deviations.
    assert shares[2] == pytest.approx(math.erf(4 / 3 / math.sqrt(2)), abs=4 * 0.5 / math.sqrt(len(MANY)))
    assert shares[14] < 0.01


@given(st.floats(0, 23.99), st.floats(0.01, 24), st.integers(0, 5), st.floats(0, 23.99))
def test_a_window_comes_again_every_day_and_goes_on_past_midnight(
    middle: float, hours: float, day: int, hour: float
) -> None:
    ((begin, end),) = Daily(hours, middle, 0.0).windows(1.7)
    assert 0 <= begin < DAY_S
    assert end - begin == pytest.approx(hours * HOUR_S)
    away = (hour - middle + 12) % 24 - 12
    # But for what is decided by rounding.
    if abs(abs(away) - hours / 2) > 1e-6 and abs(abs(away) - 12) > 1e-6:
        device = Device(1.0, 1.0, 1.0, ((begin, end),))
        assert device.is_online((24 * day + hour) * HOUR_S) == (abs(away) < hours / 2)


JSONL = """{"client": "a", "slowness": 2, "down": 1e6, "up": 5e5, "online": [[8, 12.5], [22, 30]]}
{"slowness": 0.5, "down": 3e6, "up": 2e6}
{"client": "", "slowness": 3.0, "down": 1e5, "up": 1e5, "online": [[0, 24]]}
"""
CSV = """client,slowness,down,up,online
a,2,1e6,5e5,"[[8, 12.5], [22, 30]]"
,0.5,3e6,2e6,
,3.0,1e5,1e5,"[[0, 24]]"
"""


@pytest.mark.parametrize(("name", "text"), [("trace.jsonl", JSONL), ("trace.csv", CSV)])
def test_a_trace_gives_named_clients_their_rows_and_deals_the_others_out(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    fleet = TracedDevices(str(path), 24).fleet(["a", *MANY[:400]], Streams(3))
    assert fleet["a"] == Device(2.0, 1e6, 5e5, ((8 * HOUR_S, 12.5 * HOUR_S), (22 * HOUR_S, 30 * HOUR_S)), DAY_S)
    hours = {hour: fleet["a"].is_online(hour * HOUR_S) for hour in (0, 5.9, 6, 7.9, 8, 12.4, 12.5, 21.9, 22, 48)}
    assert [hour for hour, there in hours.items() if there] == [0, 5.9, 8, 12.4, 22, 48]
    slow = sum(fleet[client].slowness == 3.0 for client in MANY[:400])
    assert abs(slow - 200) < 4 * 10
    assert {fleet[client].windows for client in MANY[:400]} == {None, ((0.0, 24 * HOUR_S),)}


def test_a_week_is_a_period_too(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(json.dumps({"slowness": 1, "down": 1, "up": 1, "online": [[100, 110]]}))
    device = TracedDevices(str(path), 168).fleet(["a"], Streams(0))["a"]
    assert [device.is_online(hour * HOUR_S) for hour in (4, 100, 105, 110, 105 + 168)] == [
        False,
        True,
        True,
        False,
        True,
    ]


ROW = {"slowness": 1, "down": 1, "up": 1}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{**ROW, "client": "b"}], "no row for client 'a', and none without a client"),
        ([{**ROW, "client": "a"}, {**ROW, "client": "a"}], "line 2: client 'a' has a row already"),
        ([{**ROW, "up": 0}], "line 1: up=0 must be a positive number"),
        ([{**ROW, "down": "fast"}], "down='fast' must be a positive number"),
        ([{"slowness": 1, "down": 1}], "no column 'up'"),
        ([{**ROW, "online": [[3, 2]]}], "must be pairs of hours"),
        ([{**ROW, "online": [[24, 25]]}], "each beginning below 24"),
        ([{**ROW, "online": "always"}], "must be pairs of hours"),
        ([{**ROW, "online": 8}], "must be pairs of hours"),
    ],
)
def test_a_wrong_trace_is_refused_with_its_row(tmp_path: Path, rows: list[object], message: str) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    with pytest.raises(UserError, match=message):
        TracedDevices(str(path), 24).fleet(["a"], Streams(0))


def test_a_trace_that_is_not_there_is_named_by_its_key(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"population\.devices\.path=.*nothing\.csv: no such file"):
        TracedDevices(str(tmp_path / "nothing.csv"), 24).fleet(["a"], Streams(0))


def test_a_trace_of_another_format_is_named_by_its_key(tmp_path: Path) -> None:
    (tmp_path / "trace.txt").write_text("client\n")
    with pytest.raises(UserError, match=r"^population\.devices\.path=.*trace\.txt: unknown suffix"):
        TracedDevices(str(tmp_path / "trace.txt"), 24).fleet(["a"], Streams(0))


@pytest.mark.parametrize("online", [[], "[]", "", None])
def test_without_hours_a_device_is_always_there(tmp_path: Path, online: object) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(json.dumps({**ROW, "online": online}))
    device = TracedDevices(str(path), 24).fleet(["a"], Streams(0))["a"]
    assert all(device.is_online(hour * HOUR_S) for hour in range(24))
