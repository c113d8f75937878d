"""Blocks of a self-contained page: every text is escaped, every picture is inside, nothing is linked."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --muted: #5b6571; --line: #dde2e8;
  --card: #ffffff; --page: #f5f7f9; --good: #13723a; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ed; --muted: #9aa5b1; --line: #343c46;
  --card: #1d2229; --page: #14181d; --good: #5fd38d; --bad: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 980px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 18px; margin: 0 0 12px; }
p { margin: 0 0 10px; } .muted { color: var(--muted); }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 20px;
  margin: 18px 0; overflow-x: auto; }
.tiles { display: flex; flex-wrap: wrap; gap: 12px; margin-top: 18px; }
.tile { flex: 1 1 140px; background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 14px 16px; }
.tile b { display: block; font-size: 24px; font-variant-numeric: tabular-nums; }
.tile span { color: var(--muted); font-size: 13px; }
.pill { display: inline-block; border: 1px solid; border-radius: 99px; padding: 0 10px; font-size: 13px;
  font-weight: 600; vertical-align: middle; margin-left: 8px; }
.good { color: var(--good); } .bad { color: var(--bad); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 6px 12px 6px 0; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; }
th { color: var(--muted); font-weight: 600; font-size: 13px; }
td.number, th.number { text-align: right; } td.number { white-space: nowrap; }
tr:last-child td { border-bottom: 0; }
figure { margin: 0 0 18px; } figure:last-child { margin-bottom: 0; }
figure img { display: block; width: 100%; background: #ffffff; border-radius: 8px; padding: 6px; }
figcaption { color: var(--muted); font-size: 13px; margin-top: 6px; }
pre { margin: 10px 0 0; font: 13px/1.45 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere; }
summary { cursor: pointer; font-weight: 600; }
"""


@dataclass(frozen=True)
class Number:
    """A table cell that lines up with the numbers below it."""

    text: str


Cell = str | Number


def page(title: str, body: str, head: str = "") -> str:
    """Return a whole document; ``body`` is made of the blocks below, ``title`` is plain text, ``head`` is markup."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n{head}</head>\n"
        f"<body>\n<main>\n{body}</main>\n</body>\n</html>\n"
    )


def heading(title: str, note: str, status: str = "", good: bool = True) -> str:
    """Return the page's first lines: title, a pill with the status, and a note."""
    pill = f'<span class="pill {"good" if good else "bad"}">{escape(status)}</span>' if status else ""
    return f'<h1>{escape(title)}{pill}</h1>\n<p class="muted">{escape(note)}</p>\n'


def tiles(values: Sequence[tuple[str, str]]) -> str:
    """Return (value, what it is) pairs as large numbers."""
    each = "".join(
        f'<div class="tile"><b>{escape(value)}</b><span>{escape(what)}</span></div>\n' for value, what in values
    )
    return f'<div class="tiles">\n{each}</div>\n' if each else ""


def section(title: str, body: str) -> str:
    """Return a titled card; an empty body gives nothing."""
    return f"<section>\n<h2>{escape(title)}</h2>\n{body}</section>\n" if body else ""


def paragraph(text: str, *, bad: bool = False) -> str:
    """Return one paragraph, in the colour of trouble when ``bad``."""
    return f'<p class="bad">{escape(text)}</p>\n' if bad else f"<p>{escape(text)}</p>\n"


def table(headers: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """Return a table; a column is set right when its first cell is a ``Number``. No rows give nothing."""
    if not rows:
        return ""
    right = [isinstance(cell, Number) for cell in rows[0]]
    head = "".join(_cell("th", name, number) for name, number in zip(headers, right, strict=True))
    lines = ["".join(_cell("td", c, number) for c, number in zip(row, right, strict=True)) for row in rows]
    body = "".join(f"<tr>{line}</tr>\n" for line in lines)
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>\n"


def figure(png: bytes, caption: str) -> str:
    """Return a picture, embedded."""
    data = base64.b64encode(png).decode()
    text = escape(caption)
    image = f'<img alt="{text}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{text}</figcaption></figure>\n"


def folded(title: str, text: str) -> str:
    """Return preformatted text that opens on a click."""
    return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>\n"


def _cell(tag: str, content: Cell, number: bool) -> str:
    text = escape(content.text if isinstance(content, Number) else content)
    if tag == "th":
        # Names of metrics are long words; they may break where people would break them.
        text = text.replace("/", "/<wbr>").replace("_", "_<wbr>")
    return f'<{tag} class="number">{text}</{tag}>' if number else f"<{tag}>{text}</{tag}>"
