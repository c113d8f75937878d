"""Server and nodes of different versions do not work together, and say so."""

from __future__ import annotations

import json
import logging

import pytest
from flwr.app import ConfigRecord, RecordDict

from fedalign import __version__
from fedalign.errors import RunFailed, UserError
from fedalign.federation import versions
from fedalign.federation.directory import discover
from fedalign.federation.versions import VERSIONS, check_versions, own_versions, versions_record

from .toy import Halfway, grid_of, node, one_client_a_node, opener


def told(**changes: str) -> RecordDict:
    return RecordDict({VERSIONS: ConfigRecord({"json": json.dumps({**own_versions(), **changes})})})


def test_equal_versions_pass_silently(caplog: pytest.LogCaptureFixture) -> None:
    check_versions(RecordDict({VERSIONS: versions_record()}), "the server", "node 7")
    assert not caplog.records


def test_another_fedalign_is_refused_naming_both() -> None:
    with pytest.raises(UserError, match=f"node 7 runs fedalign 9.9, the server runs fedalign {__version__}; install"):
        check_versions(told(fedalign="9.9"), "the server", "node 7")


def test_a_node_that_does_not_say_is_another_version() -> None:
    with pytest.raises(UserError, match="a version that does not say"):
        check_versions(RecordDict({}), "the server", "node 7")


def test_another_torch_is_mentioned(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        check_versions(told(torch="1.0"), "the server", "node 7")
    assert "node 7 runs torch 1.0, the server runs" in caplog.text


def test_a_server_of_another_version_is_refused_by_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([{**own_versions(), "fedalign": "9.9"}, own_versions()])
    # The server asks first; the node compares with its own version.
    monkeypatch.setattr(versions, "own_versions", lambda: next(answers))
    with pytest.raises(
        RunFailed, match=f"node 1 cannot start: .*the server runs fedalign 9.9, this node .*{__version__}"
    ):
        discover(grid_of(opener([Halfway()]), node(1)), "{}", 1, 5.0)


def test_a_federation_of_one_version_is_discovered() -> None:
    assert len(discover(one_client_a_node(opener([Halfway()])), "{}", 5, 5.0).node_of) == 5
