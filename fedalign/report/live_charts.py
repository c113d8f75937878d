"""The charts of a running run: the headline large, every other metric small."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from fedalign.report.live_metrics import LiveMetrics
from fedalign.report.svg import Line, line_chart

_COLOURS = {"test": 0, "unseen": 1, "train": 2}
"""As in the plots of the final report, which have no curve of the training population."""
_OTHER = 3
_MOST = 24
"""Small charts; what comes later is in the table only."""
_NOT_SHOWN = ("cohort", "clients_failed", "train_seconds", "down_bytes", "up_bytes")
"""What the server measures of itself is told elsewhere; epsilon is not among it."""

STYLE = """
.grid-of-charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(250px, 1fr)); gap: 18px 22px;
  margin-top: 22px; }
"""


def live_charts(metrics: LiveMetrics, headline: str) -> str:
    """Return the charts as HTML; nothing before the first metrics.

    Parameters
    ----------
    metrics : LiveMetrics
    headline : str
        Name of the metric that matters most, such as ``unseen/alignment_score``; every population's is drawn.
    """
    main = headline.partition("/")[2] or headline
    stems = list(dict.fromkeys(_stem(name) for name in metrics.curves if name not in _NOT_SHOWN))
    small = "".join(
        line_chart(_words(stem), list(_lines(metrics, stem)), starts=metrics.starts, width=300, height=150)
        for stem in [stem for stem in stems if stem not in (main, f"{main}_worst")][:_MOST]
    )
    means = _scored(list(_lines(metrics, main)))
    worst = _scored(list(_lines(metrics, f"{main}_worst", ", worst group", dashed=True)))
    large = [*means, *worst]
    head = line_chart(_words(main), large, starts=metrics.starts, width=900, height=270) if large else ""
    return head + (f'<div class="grid-of-charts">\n{small}</div>\n' if small else "")


def _lines(metrics: LiveMetrics, stem: str, suffix: str = "", *, dashed: bool = False) -> Iterator[Line]:
    """Yield a line a population; those of new groups first."""
    found: Mapping[str, str] = {name.partition("/")[0]: name for name in metrics.curves if _stem(name) == stem}
    usual = [population for population in ("unseen", "test", "train") if population in found]
    for place, population in enumerate([*usual, *(each for each in found if each not in usual)]):
        name = found[population]
        label = population if "/" in name else stem
        colour = _COLOURS.get(population, _OTHER + (place - len(usual)) % 3)
        yield Line(label + suffix, metrics.curves[name], colour, dashed)


def _scored(lines: Sequence[Line]) -> Sequence[Line]:
    """Leave out the population that is trained on where there are others, as the final report does."""
    others = [line for line in lines if line.colour != _COLOURS["train"]]
    return others or lines


def _stem(name: str) -> str:
    return name.partition("/")[2] or name


def _words(stem: str) -> str:
    return stem.replace("_", " ").replace("/", " / ").capitalize()
