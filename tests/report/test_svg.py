"""Line charts: what is drawn lies where its numbers say, inside the picture, and no text is markup."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedalign.report.svg import Line, line_chart

WIDTH, HEIGHT = 300, 150


def parse(chart: str) -> ElementTree.Element:
    return ElementTree.fromstring(chart)


def places(chart: str, line: int = 0) -> list[tuple[float, float]]:
    drawn = parse(chart).findall(".//polyline")[line].attrib["points"]
    return [(float(x), float(y)) for x, y in (place.split(",") for place in drawn.split())]


def axes(chart: str) -> tuple[dict[str, float], dict[str, float]]:
    """Return where each tick of the rounds and of the values stands."""
    texts = parse(chart).findall(".//text")
    rounds = {str(t.text): float(t.attrib["x"]) for t in texts if t.attrib["text-anchor"] == "middle"}
    values = {str(t.text): float(t.attrib["y"]) - 4 for t in texts if t.attrib["text-anchor"] == "end"}
    return rounds, values


def test_points_stand_where_the_axes_say() -> None:
    chart = line_chart("Accuracy", [Line("test", {0: 0.5, 5: 0.7, 10: 0.9}, 0)], width=WIDTH, height=HEIGHT)
    rounds, values = axes(chart)
    # Where the ticks put 0 and 1.
    step = (values["0.8"] - values["0.6"]) / 0.2
    zero = values["0.6"] - 0.6 * step
    middle = (rounds["0"] + rounds["10"]) / 2
    expected = [(rounds["0"], zero + 0.5 * step), (middle, zero + 0.7 * step), (rounds["10"], zero + 0.9 * step)]
    for found, wanted in zip(places(chart), expected, strict=True):
        assert found == pytest.approx(wanted, abs=0.3)
    assert zero > values["0.6"] > values["0.8"]
    assert "<b>0.9000</b>" in chart


@given(
    points=st.dictionaries(
        st.integers(0, 2000), st.floats(-1e30, 1e30, allow_nan=False, allow_subnormal=False), min_size=1, max_size=40
    )
)
def test_any_numbers_are_drawn_inside_with_at_least_two_ticks(points: dict[int, float]) -> None:
    chart = line_chart("x", [Line("x", points, 0)], width=WIDTH, height=HEIGHT)
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in places(chart))
    rounds, values = axes(chart)
    assert len(rounds) >= min(2, len(points))
    assert 2 <= len(values) <= 12
    assert all(0 <= y <= HEIGHT for y in values.values())
    assert "nan" not in chart and "inf" not in chart


def test_close_values_have_ticks_that_differ() -> None:
    chart = line_chart("x", [Line("x", {0: 0.9921, 1: 0.9984, 2: 0.995}, 0)], width=WIDTH, height=HEIGHT)
    _, values = axes(chart)
    assert set(values) >= {"0.994", "0.996", "0.998"}


def test_a_long_run_is_thinned_but_keeps_its_last_point() -> None:
    points = {step: float(step) for step in range(100_001)}
    chart = line_chart("x", [Line("x", points, 0)], width=WIDTH, height=HEIGHT)
    assert len(places(chart)) <= 302
    rounds, _ = axes(chart)
    assert places(chart)[-1][0] == pytest.approx(rounds["100000"])


def test_phases_after_the_first_are_marked_and_several_lines_have_keys() -> None:
    lines = [Line("unseen", {0: 1.0, 4: 2.0}, 1), Line("unseen, worst group", {0: 0.0, 4: 1.0}, 1, dashed=True)]
    chart = line_chart("x", lines, starts=[0, 1, 4], width=WIDTH, height=HEIGHT)
    assert len(parse(chart).findall(".//line[@class='phase']")) == 1
    assert [key.tail for key in parse(chart).findall(".//i")] == ["unseen", "unseen, worst group"]
    assert not parse(line_chart("x", lines[:1], width=WIDTH, height=HEIGHT)).findall(".//i")


def test_names_are_text() -> None:
    bad = '"><script>alert(1)</script>'
    chart = line_chart(bad, [Line(bad, {0: 1.0}, 0), Line(bad, {0: 2.0}, 1)], width=WIDTH, height=HEIGHT)
    found = parse(chart)
    assert {element.tag for element in found.iter()} <= {
        "figure", "h3", "span", "b", "svg", "line", "text", "polyline", "circle", "div", "i",
    }  # fmt: skip
    assert found.find(".//span").text == bad  # type: ignore[union-attr]
    assert found.find("svg").attrib["aria-label"] == bad  # type: ignore[union-attr]
    assert [key.tail for key in found.findall(".//i")] == [bad, bad]
