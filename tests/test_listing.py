"""What `fedalign list` shows."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from fedalign.config import options
from fedalign.errors import UserError
from fedalign.listing import show_options


def shown(group: str | None) -> list[str]:
    console = Console(file=io.StringIO(), width=200)
    show_options(console, group)
    assert isinstance(console.file, io.StringIO)
    return [line.strip() for line in console.file.getvalue().splitlines()]


def test_every_option_of_every_group_has_a_line_with_its_description() -> None:
    lines = shown(None)
    for group, choices in options().items():
        assert group in lines
        for name, description in choices.items():
            assert any(line.split() == [name, *description.split()] for line in lines)


@pytest.mark.parametrize("group", ["method", "methods"])
def test_a_group_may_be_named_in_the_plural(group: str) -> None:
    lines = shown(group)
    assert lines[0] == "method"
    assert {line.split()[0] for line in lines[1:] if line} == options()["method"].keys()


def test_nested_groups_are_groups() -> None:
    assert shown("federation/samplers")[0] == "federation/sampler"


def test_a_misspelt_group_is_told_the_nearest() -> None:
    with pytest.raises(UserError, match="list metods: no such group; did you mean 'method'"):
        shown("metods")
