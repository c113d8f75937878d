"""Every command that the README and the pages of docs/ tell a reader to type is typed here, as it is written."""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests.documentation import Command, File, read_page
from tests.language_models import random_model

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MODEL = "language-model"
"""The folder of a causal model that readers are told to bring."""
EVERY_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def follow(page, directory, monkeypatch, capsys, slow):
    """Do what the page says, step by step, in ``directory``."""
    from fedalign.cli import main

    monkeypatch.chdir(directory)
    monkeypatch.setattr("fedalign.report.serve.ReportServer.serve_forever", one_look)
    text = page.read_text()
    if f"={MODEL}" in text:
        random_model("gpt2", directory / MODEL)
    for step in read_page(text):
        if step.slow and not slow:
            continue
        if isinstance(step, File):
            (directory / step.name).write_text(step.content)
        elif arguments := cli_arguments(step):
            code = main(arguments)
            captured = capsys.readouterr()
            expected = 130 if "--serve" in arguments else 0
            assert code == expected, f"{page.name}: {' '.join(step.words)} ended with {code}: {captured.err}"


def one_look(server):
    """Answer whoever opens the page once, and then stop as on Ctrl-C."""
    server.timeout = 0.05
    with ThreadPoolExecutor(1) as pool:
        page = pool.submit(lambda: urlopen(server.url, timeout=10).read())
        while not page.done():
            server.handle_request()
    assert b"<h1>" in page.result()
    raise KeyboardInterrupt


def cli_arguments(command: Command):
    """Return what ``fedalign`` is called with; nothing for the test script, which is what runs this."""
    program, *arguments = command.words
    if program == "scripts/test":
        return []
    # scripts/run sets up, which the tests' own environment shows, and then calls `fedalign run`.
    return ["run", *arguments] if program == "scripts/run" else arguments


def test_there_are_commands_to_follow():
    steps = [step for page in PAGES for step in read_page(page.read_text())]
    assert sum(isinstance(step, Command) and not step.slow for step in steps) >= 10


@EVERY_PAGE
def test_quick_commands_of(page, tmp_path, monkeypatch, capsys):
    follow(page, tmp_path, monkeypatch, capsys, slow=False)


@pytest.mark.slow
@EVERY_PAGE
def test_all_commands_of(page, tmp_path, monkeypatch, capsys):
    follow(page, tmp_path, monkeypatch, capsys, slow=True)


@EVERY_PAGE
def test_links_lead_somewhere_in(page):
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_programs_that_pages_name_exist():
    steps = [step for page in PAGES for step in read_page(page.read_text())]
    named = {step.words[0] for step in steps if isinstance(step, Command)} - {"fedalign"}
    assert named == {"scripts/run", "scripts/test"}
    assert all(os.access(ROOT / program, os.X_OK) for program in named)
