"""The bar shows on a terminal only."""

from __future__ import annotations

import pytest

from fedalign.data.progress import silent, terminal_bar


def test_nothing_is_written_where_there_is_no_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    for factory in (silent, terminal_bar):
        with factory("encoding", 3) as advance:
            advance(3)
    assert capfd.readouterr() == ("", "")


def test_a_terminal_sees_the_bar_on_standard_error(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with terminal_bar("encoding", 3) as advance:
        advance(3)
    out, err = capfd.readouterr()
    assert out == ""
    assert "encoding" in err and "3/3" in err
