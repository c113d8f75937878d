"""What there is to choose from: config groups and their options, one line each."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedalign.config import options
from fedalign.data.names import suggest
from fedalign.errors import UserError


def show_options(console: Console, group: str | None) -> None:
    """Print the options of one group, or of all.

    Parameters
    ----------
    group : str or None
        A config group; its plural is understood too (``methods``, ``engines``).

    Raises
    ------
    UserError
        If there is no such group.
    """
    found = options()
    if group is not None:
        singular = next((name for name in found if group in (name, f"{name}s")), None)
        if singular is None:
            raise UserError(f"list {group}: no such group{suggest(group, found)}")
        found = {singular: found[singular]}
    for name, choices in found.items():
        table = Table(title=name, title_justify="left", show_header=False, box=None, padding=(0, 2))
        for choice, description in choices.items():
            table.add_row(escape(choice), escape(description))
        console.print(table)
