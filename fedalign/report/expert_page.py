"""A self-contained page of texts whose tokens have the colour of the expert that weighed most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from fedalign.report.canvas import CATEGORIES
from fedalign.report.html import heading, page, paragraph, section

_STYLE = """<style>
.token { border-radius: 3px; padding: 1px 0; white-space: pre-wrap; overflow-wrap: anywhere; }
.written { font-size: 17px; line-height: 2; margin: 10px 0 14px; }
.bar { display: flex; height: 12px; border-radius: 6px; overflow: hidden; background: var(--line); }
.bar i { display: block; height: 100%; }
.keys { display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: 13px; color: var(--muted); margin-top: 8px; }
.keys i { display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin-right: 6px;
  vertical-align: -1px; }
</style>
"""
_MORE = ("#F0E442", "#999999", "#882255", "#117733", "#44AA99", "#AA4499")
"""Colours of further experts, of Tol's and of Okabe and Ito's palettes; after these, colours come again."""


@dataclass(frozen=True)
class WeighedText:
    """A text in tokens, with the weights that each was drawn under.

    Parameters
    ----------
    prompt, preference : str
    pieces : tuple of str, length S
        Joined they are the text; a piece may be empty.
    weights : tuple of tuples of float, shape (S, n)
        In [0, 1], over experts.
    """

    prompt: str
    preference: str
    pieces: tuple[str, ...]
    weights: tuple[tuple[float, ...], ...]

    @property
    def mean(self) -> tuple[float, ...]:
        """Return the mean weight of every expert over the tokens; empty where there is no token."""
        return tuple(sum(column) / len(self.weights) for column in zip(*self.weights, strict=True))


def expert_page(title: str, note: str, experts: Sequence[str], texts: Sequence[WeighedText]) -> str:
    """Return the page, as HTML.

    Parameters
    ----------
    title, note : str
    experts : sequence of str, length n
    texts : sequence of WeighedText
    """
    legend = _keys([(name, _colour(place)) for place, name in enumerate(experts)])
    told = paragraph(
        "A token has the colour of the expert that weighed most when it was drawn, the stronger the more it weighed. "
        "Point at a token to see all weights. The bar shows the mean over the text."
    )
    cards = "".join(_card(experts, text) for text in texts)
    return page(title, _STYLE + heading(title, note) + section("Experts", told + legend) + cards)


def _card(experts: Sequence[str], text: WeighedText) -> str:
    tokens = "".join(_token(experts, *each) for each in zip(text.pieces, text.weights, strict=True))
    prompt = f'<div class="token muted">{escape(text.prompt)}</div>\n'
    means = [(place, share) for place, share in enumerate(text.mean) if share >= 0.0005]
    bar = "".join(
        f'<i style="width:{share:.1%};background:{_colour(place)}" title="{escape(experts[place])} {share:.3f}"></i>'
        for place, share in means
    )
    keys = _keys([(f"{experts[place]} {share:.3f}", _colour(place)) for place, share in means])
    return section(
        text.preference, f'{prompt}<div class="written">{tokens}</div>\n<div class="bar">{bar}</div>\n{keys}'
    )


def _token(experts: Sequence[str], piece: str, weights: Sequence[float]) -> str:
    """Return one token; an empty one, such as the end of the text or the rest of a character, shows nothing."""
    if not piece:
        return ""
    most = max(range(len(weights)), key=weights.__getitem__)
    red, green, blue = (int(_colour(most)[start : start + 2], 16) for start in (1, 3, 5))
    # Never so strong that letters cannot be read on it, in a light page or a dark one.
    strength = 0.08 + 0.36 * weights[most]
    told = ", ".join(f"{name} {w:.3f}" for name, w in zip(experts, weights, strict=True) if w > 0)
    style = f"background:rgba({red},{green},{blue},{strength:.2f})"
    return f'<span class="token" style="{style}" title="{escape(told)}">{escape(piece)}</span>'


def _keys(entries: Sequence[tuple[str, str]]) -> str:
    each = "".join(f'<span><i style="background:{colour}"></i>{escape(name)}</span>' for name, colour in entries)
    return f'<div class="keys">{each}</div>\n'


def _colour(place: int) -> str:
    colours = (*CATEGORIES, *_MORE)
    return colours[place % len(colours)]
