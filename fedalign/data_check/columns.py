"""What the cells of a column look like: a text in the wrong column, traces of people, broken characters, odd sizes."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from fedalign.data.names import suggest
from fedalign.data_check.findings import Finding, Spread
from fedalign.data_check.kinds import Cells, FileKind

# Bounded, since a search for what has no end takes a time that grows with the square of a long text.
EMAIL = re.compile(r"[\w.+-]{1,64}@[\w-]{1,64}\.[\w.-]{0,64}[a-zA-Z]")
PHONE = re.compile(r"(?<![\w.])(?:\+\d{1,3}[ ./-]?|\(?0)\d(?:[\d ()./-]{6,14})\d(?![\w.])")
FULL_NAME = re.compile(r"[A-Z]\w*[a-z]\w*(?: [A-Z]\.?)*(?:,)? [A-Z]\w*[a-z]\w*")
_HTML = re.compile(r"</?[a-zA-Z][a-zA-Z0-9]*(?:\s[^<>]*)?/?>|&(?:nbsp|amp|lt|gt|quot|#\d+);")
_MOJIBAKE = re.compile("\u00c3[\u0080-\u00bf]|\u00e2\u20ac|\u00c2[\u00a0-\u00bf]|\ufffd")
_NUMBER = re.compile(r"\s*[-+]?\d+(?:[.,]\d+)?\s*")

LONG_NAME, GIGANTIC = 60, 50_000
"""Characters from which on a name is no name, and a text is worth a look."""

Located = Sequence[tuple[str, Cells]]
"""Rows with where they stand."""


def check_columns(kind: FileKind, rows: Located) -> Iterator[Finding]:
    """Yield what the cells tell by themselves, column by column."""
    if not rows:
        return
    yield from _unknown_columns(kind, rows)
    for column in kind.texts:
        yield from _text_column(column, _cells(rows, column))
    for column in kind.names:
        yield from _name_column(column, _cells(rows, column), len(rows))


def lengths(kind: FileKind, rows: Located) -> dict[str, Spread]:
    """Return how many characters the texts of each column have."""
    found = {column: [len(text) for _, text in _cells(rows, column) if text.strip()] for column in kind.texts}
    return {f"characters of {column}": Spread.of(own) for column, own in found.items() if own}


def texts_of(cell: object) -> Iterator[str]:
    """Yield the texts of a cell: itself, those of a list, and the contents of messages."""
    if isinstance(cell, str):
        yield cell
    elif isinstance(cell, (list, tuple)):
        for part in cell:
            yield from texts_of(part.get("content") if isinstance(part, dict) else part)


def _cells(rows: Located, column: str) -> list[tuple[str, str]]:
    return [(where, text) for where, record in rows for text in texts_of(record.get(column))]


def _about(
    code: str, cells: Sequence[tuple[str, str]], test: Callable[[str], object], message: str, least: float = 0.0
) -> Iterator[Finding]:
    """Yield a warning if more than a share ``least`` of the cells pass a test."""
    found = list(dict.fromkeys(where for where, text in cells if test(text)))
    if found and len(found) > least * len(cells):
        yield Finding("warning", code, message.format(n=len(found)), len(found), found[:3])


def _unknown_columns(kind: FileKind, rows: Located) -> Iterator[Finding]:
    known = kind.columns
    present = Counter(str(column) for _, record in rows for column in record)
    for column, count in present.items():
        if column in known:
            continue
        near = suggest(column, [name for name in known if any(name not in own for _, own in rows if column in own)])
        if near.startswith("; did you mean"):
            yield Finding("warning", "column_misspelt", f"column {column[:40]!r} is not read{near}", count)
        else:
            yield Finding("note", "column_ignored", f"column {column[:40]!r} is not read and stays here", count)


def _text_column(column: str, cells: Sequence[tuple[str, str]]) -> Iterator[Finding]:
    yield from _about("cell_empty", cells, lambda text: not text.strip(), f"column {column!r}: {{n}} rows have no text")
    yield from _about(
        "numbers_as_text", cells, _NUMBER.fullmatch,
        f"column {column!r}: {{n}} rows hold nothing but a number; is it the column that you mean?", 0.5,
    )  # fmt: skip
    yield from _about("html", cells, _HTML.search, f"column {column!r}: {{n}} rows hold HTML; a model would learn it")
    yield from _about(
        "personal_data", cells, lambda text: EMAIL.search(text) or PHONE.search(text),
        f"column {column!r}: {{n}} rows hold what looks like an e-mail address or a telephone number; the text stays "
        "here, but a language model can learn it by heart: remove it, or train with a guarantee",
    )  # fmt: skip
    yield from _about(
        "cell_gigantic", cells, lambda text: len(text) > GIGANTIC,
        f"column {column!r}: {{n}} rows hold more than {GIGANTIC} characters; encoders and models read the beginning "
        "or the end of it only",
    )  # fmt: skip
    yield from _broken(column, cells)


def _name_column(column: str, cells: Sequence[tuple[str, str]], rows: int) -> Iterator[Finding]:
    if not cells:
        return
    warning = f"column {column!r}: {{n}} rows hold what looks like"
    fix = "names of clients and groups travel to the server: write numbers or codes instead"
    yield from _about("personal_name", cells, EMAIL.search, f"{warning} an e-mail address; {fix}")
    yield from _about("personal_name", cells, PHONE.search, f"{warning} a telephone number; {fix}")
    yield from _about("personal_name", cells, _is_full_name, f"{warning} a person's name; {fix}", 0.2)
    yield from _about(
        "text_as_name", cells, lambda text: len(text) > LONG_NAME or len(text.split()) > 8,
        f"{warning} a text; {fix}, and see that the columns are not mixed up",
    )  # fmt: skip
    distinct = {text for _, text in cells}
    if column == "group" and rows >= 20 and len(distinct) > 0.8 * rows:
        yield Finding(
            "warning", "group_per_row", f"column 'group': {len(distinct)} groups in {rows} rows; a group is what "
            f"results "
            "are reported by, and should have many rows", len(distinct),
        )  # fmt: skip
    yield from _near_names(column, distinct)
    yield from _broken(column, cells)


def _is_full_name(text: str) -> bool:
    return len(text) <= LONG_NAME and FULL_NAME.fullmatch(text) is not None


def _near_names(column: str, names: set[str]) -> Iterator[Finding]:
    """Yield a warning about names that differ in capitals or white space alone: they are different people."""
    forms = Counter(" ".join(name.split()).casefold() for name in names)
    near = [form for form, count in forms.items() if count > 1]
    if near:
        yield Finding(
            "warning", "names_alike", f"column {column!r}: {len(near)} names are written in more than one way "
            f"(capitals or "
            "white space differ); they count as different ones", len(near),
        )  # fmt: skip


def _broken(column: str, cells: Sequence[tuple[str, str]]) -> Iterator[Finding]:
    yield from _about(
        "mojibake", cells, _MOJIBAKE.search,
        f"column {column!r}: {{n}} rows hold broken characters (such as \u00c3\u00a9 for \u00e9); the file was read in "
        "one encoding and saved in another: export it anew as UTF-8",
    )  # fmt: skip
    yield from _about(
        "control_characters", cells, _has_control,
        f"column {column!r}: {{n}} rows hold control characters or invisible marks; remove them",
    )  # fmt: skip


def _has_control(text: str) -> bool:
    if text.isascii() and text.isprintable():
        return False
    return any((unicodedata.category(c) == "Cc" and c not in "\n\r\t") or c in "\ufeff\u200b\u2060" for c in text)
