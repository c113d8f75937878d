"""Cells of a record of texts, checked: a text, and a name that may be missing."""

from __future__ import annotations

from fedalign.errors import UserError


def text_cell(value: object, where: str, column: str) -> str:
    """Return a text.

    Raises
    ------
    UserError
        If the cell holds anything else.
    """
    if not isinstance(value, str):
        raise UserError(f"{where}: {column!r} holds {str(value)[:40]!r}; it must be a text")
    return value


def name_cell(value: object, where: str, column: str) -> str | None:
    """Return a name, or None for an empty cell; whole numbers are names too.

    Raises
    ------
    UserError
        If the cell holds anything else.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise UserError(f"{where}: {column!r} holds {str(value)[:40]!r}; it must be a name or a whole number")
    return str(value)
