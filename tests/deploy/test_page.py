"""docs/deployment.md, followed word by word: what its console blocks say is typed into one shell."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from fedalign.cli import main
from fedalign.deployment.process_group import ProcessGroup
from fedalign.deployment.running import same_fedalign

from .federation import wait_for

pytestmark = [pytest.mark.deploy, pytest.mark.slow]

ELSEWHERE = ("flwr run .",)
"""Commands that test_flwr_run.py tries, where Flower's own daemon is kept apart."""


def console_commands(page: str) -> list[str]:
    """Return what follows the prompt in the console blocks of a page."""
    blocks = re.findall(r"^```console\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    lines = [line for block in blocks for line in block.splitlines()]
    assert all(line.startswith("$ ") for line in lines)
    return [line.removeprefix("$ ") for line in lines]


def test_a_federation_of_three_sites_step_by_step(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (root / "docs" / "deployment.md").read_text()
    (written,) = re.findall(r"^fedalign (deploy --sites north,south,west .*)$", page, re.MULTILINE)
    commands = [command for command in console_commands(page) if not command.startswith(ELSEWHERE)]
    assert len(commands) == 10
    monkeypatch.chdir(tmp_path)
    assert main(written.split()) == 0
    # As a reader types them, one after another; what ends with an error ends the test.
    script = "\n".join(["set -e", f"cd {tmp_path}", "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT", *commands])
    shell = ProcessGroup(["bash", "-c", script], tmp_path / "shell.log", {**os.environ, **same_fedalign()})
    try:
        wait_for(lambda: shell.code is not None, "the end of the page")
        told = (tmp_path / "shell.log").read_text()
    finally:
        shell.kill()
    assert shell.code == 0, told
    runs = sorted((tmp_path / "federation" / "superlink" / "outputs").glob("*/*/summary.json"))
    assert {path.parts[-3] for path in runs} == {"pluralllm", "baseline"}
    assert told.count("is completed") == 2
    assert told.count("online") == 3
