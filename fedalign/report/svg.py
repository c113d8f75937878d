"""Line charts as inline SVG, in the page's own colours, light and dark."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from fedalign.report.colours import CATEGORIES
from fedalign.report.numbers import number

_LIGHT = " ".join(f"--line-{index}: {colour};" for index, colour in enumerate(CATEGORIES))
_CLASSES = "\n".join(f".chart .line-{index} {{ color: var(--line-{index}); }}" for index in range(len(CATEGORIES)))

STYLE = f"""
:root {{ {_LIGHT} }}
@media (prefers-color-scheme: dark) {{ :root {{ --line-0: #4ba3dc; --line-1: #ff8b4a; --line-2: #2fc79a; }} }}
.chart {{ margin: 0; min-width: 0; }}
.chart svg {{ display: block; width: 100%; height: auto; }}
.chart h3 {{ font-size: 14px; margin: 0 0 2px; display: flex; gap: 10px; justify-content: space-between; }}
.chart h3 span {{ overflow-wrap: anywhere; }}
.chart h3 b {{ font-variant-numeric: tabular-nums; font-weight: 600; }}
.chart text {{ fill: var(--muted); font-size: 11px; font-family: inherit; }}
.chart .grid {{ stroke: var(--line); }}
.chart .phase {{ stroke: var(--muted); stroke-dasharray: 2 3; }}
{_CLASSES}
.chart polyline {{ fill: none; stroke: currentColor; stroke-width: 2; stroke-linejoin: round; }}
.chart circle {{ fill: currentColor; }}
.chart polyline.dashed {{ stroke-width: 1.3; stroke-dasharray: 5 4; }}
.chart .keys {{ display: flex; flex-wrap: wrap; gap: 2px 16px; font-size: 12px; color: var(--muted); }}
.chart .keys i {{ display: inline-block; width: 18px; border-top: 3px solid currentColor; vertical-align: middle;
  margin-right: 6px; }}
.chart .keys i.dashed {{ border-top: 2px dashed currentColor; }}
"""

_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 8, 8, 22
_TICK_HEIGHT, _TICK_WIDTH = 40, 60
"""Room that a tick takes."""
_MOST_POINTS = 300
_MARKED = 25
"""Lines of so few points have them marked."""


@dataclass(frozen=True)
class Line:
    """One curve of a chart.

    Parameters
    ----------
    label : str
    points : mapping from round to value
    colour : int
        Place in the palette.
    dashed : bool
    """

    label: str
    points: Mapping[int, float]
    colour: int
    dashed: bool = False


def line_chart(title: str, lines: Sequence[Line], *, starts: Sequence[int] = (), width: int, height: int) -> str:
    """Return a chart of curves over rounds as a ``<figure>``.

    Parameters
    ----------
    title : str
        Plain text; the last value of the first line stands beside it.
    lines : sequence of Line
        None of them empty.
    starts : sequence of int
        Rounds after which phases begin; those after the first are marked.
    width, height : int
        In the units in which text is 11 high.
    """
    values = [value for line in lines for value in line.points.values()]
    rounds = [step for line in lines for step in line.points]
    across = _Scale(min(rounds), max(rounds), _LEFT, width - _RIGHT)
    ticks = _ticks(min(values), max(values), height / _TICK_HEIGHT)
    shown = [*values, *ticks.values]
    up = _Scale(min(shown), max(shown), height - _BOTTOM, _TOP)
    parts = [_grid(up(tick), _written(tick, ticks), width) for tick in ticks.values]
    parts += [_round(across(tick), str(tick), height) for tick in _round_ticks(min(rounds), max(rounds), width)]
    parts += [
        f'<line class="phase" x1="{across(start):.1f}" x2="{across(start):.1f}" y1="{_TOP}" y2="{height - _BOTTOM}"/>'
        for start in starts[1:]
        if min(rounds) < start < max(rounds)
    ]
    parts += [_curve(line, across, up) for line in lines]
    last = lines[0].points[max(lines[0].points)]
    text = escape(title)
    keys = "".join(_key(line) for line in lines) if len(lines) > 1 else ""
    return (
        f'<figure class="chart"><h3><span>{text}</span><b>{number(last)}</b></h3>'
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{text}">{"".join(parts)}</svg>'
        f'<div class="keys">{keys}</div></figure>\n'
    )


@dataclass(frozen=True)
class _Scale:
    """Linear from ``low..high`` to ``start..end``; one value lies in the middle."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return self.start + share * (self.end - self.start)


@dataclass(frozen=True)
class _Ticks:
    """Round numbers at even steps."""

    step: float
    values: Sequence[float]


def _ticks(low: float, high: float, most: float) -> _Ticks:
    """Return round numbers inside the span: about ``most``, and two at least."""
    if high - low < 1e-9 * max(abs(low), abs(high)) or high == low:
        # A flat line gets a span of its own, so that it has a scale.
        low, high = low - (abs(low) or 1.0) / 10, high + (abs(high) or 1.0) / 10
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    steps = [factor * power for factor in (0.1, 0.2, 0.5, 1, 2, 5, 10)]
    wanted = next(place for place, step in enumerate(steps) if step >= rough * (1 - 1e-9))
    for step in reversed(steps[: wanted + 1]):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last > first:
            break
    return _Ticks(step, [index * step for index in range(first, last + 1)])


def _round_ticks(low: int, high: int, width: int) -> list[int]:
    if low == high:
        return [low]
    return [round(tick) for tick in _ticks(low, high, min(high - low, width / _TICK_WIDTH)).values]


def _written(tick: float, ticks: _Ticks) -> str:
    """Return a tick with as many digits as its neighbours need."""
    largest = max(map(abs, ticks.values))
    if tick == 0:
        return "0"
    if not 1e-3 <= largest < 1e5:
        return f"{tick:.3g}"
    return f"{tick:.{max(0, -math.floor(math.log10(ticks.step) + 1e-9))}f}"


def _grid(y: float, text: str, width: int) -> str:
    return (
        f'<line class="grid" x1="{_LEFT}" x2="{width - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'
    )


def _round(x: float, text: str, height: int) -> str:
    return f'<text x="{x:.1f}" y="{height - 6}" text-anchor="middle">{text}</text>'


def _curve(line: Line, across: _Scale, up: _Scale) -> str:
    places = [(across(step), up(line.points[step])) for step in _thinned(sorted(line.points))]
    dashed = " dashed" if line.dashed else ""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    drawn = f'<polyline class="line-{line.colour}{dashed}" points="{path}"/>'
    if len(places) > _MARKED or line.dashed:
        return drawn
    return drawn + "".join(f'<circle class="line-{line.colour}" cx="{x:.1f}" cy="{y:.1f}" r="2.2"/>' for x, y in places)


def _thinned(steps: Sequence[int]) -> Sequence[int]:
    """Return at most so many of the steps as can be told apart, the last one always."""
    stride = -(-len(steps) // _MOST_POINTS)
    return [*steps[:-1:stride], *steps[-1:]]


def _key(line: Line) -> str:
    dashed = " dashed" if line.dashed else ""
    return f'<span><i class="line-{line.colour}{dashed}"></i>{escape(line.label)}</span>'
