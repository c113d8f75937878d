"""The benchmark of language models compares like with like, and its page shows what was recorded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from scripts import benchmark_language_models as benchmark
from scripts.benchmark_language_models import Work, main, time_steps, to_table
from tests.language_models import random_model

SMALL = ["--batch", "3", "--tokens", "8", "--prompts", "2", "--prompt-tokens", "3", "--new-tokens", "4"]


pytestmark = pytest.mark.usefixtures("threads_as_before")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_model("gpt2", tmp_path_factory.mktemp("gpt2"))


def work(folder: Path) -> Work:
    return Work(str(folder), None, 3, 8, 2, 3, 4, "hooks", 0, 1)


def test_report_is_printed_and_written(folder, tmp_path, capsys):
    out = tmp_path / "run.json"
    assert main(["--model", str(folder), *SMALL, "--repeats", "2", "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    assert report["work"]["model"] == folder.name, "the machine's paths are nobody's business"
    assert set(report["machine"]) == {"machine", "cpu_count", "python", "versions"}
    assert set(report["steps"]) == {"sft", "ppo"}
    for numbers in report["steps"].values():
        assert numbers["gradient_difference"] < 1e-4
        for i in range(2):
            assert numbers["ratio"][i] == pytest.approx(numbers["private_s"][i] / numbers["plain_s"][i])
            assert numbers["first_ratio"][i] == pytest.approx(numbers["private_first_s"][i] / numbers["plain_s"][i])
    writing = report["writing"]
    assert writing["ratio"] == pytest.approx(
        [a / b for a, b in zip(writing["uncached_s"], writing["cached_s"], strict=True)]
    )
    assert 1 <= writing["tokens_written"] <= 4
    assert writing["same_texts"] == 1
    assert (tmp_path / "run.md").read_text() == capsys.readouterr().out == to_table(report)


def test_another_gradient_is_an_error(folder, monkeypatch, capsys):
    """Half of the texts, or a factor, would make a step that is not worth comparing."""
    real = benchmark.Texts.losses
    monkeypatch.setattr(benchmark.Texts, "losses", lambda self, chosen, step: real(self, chosen, step) * len(chosen))
    with pytest.raises(RuntimeError, match=r"sft: .* off the plain gradient"):
        time_steps(replace(work(folder), mode="loop"), "sft", 1)


def test_other_texts_are_an_error(folder, monkeypatch, capsys):
    drawn = iter(torch.randint(20, (4, 2, 4), generator=torch.Generator().manual_seed(0)))
    monkeypatch.setattr(benchmark, "generate", lambda *_: next(drawn))
    monkeypatch.setattr(benchmark, "time_steps", lambda *_: {})
    assert main(["--model", str(folder), *SMALL, "--repeats", "1"]) == 1
    assert capsys.readouterr().err.startswith("benchmark_language_models: with the cache only 0% of the texts")


@pytest.mark.parametrize(
    "arguments", [["--model", "./nope"], ["--target-modules", "absent"], ["--prompt-tokens", "64"]]
)
def test_a_user_s_mistake_is_one_line(folder, arguments, capsys):
    assert main(["--model", str(folder), *SMALL, "--repeats", "1", *arguments]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("arguments", [[], ["--model", "m", "--tokens", "3"], ["--model", "m", "--repeats", "0"]])
def test_what_cannot_be_timed_is_refused(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2


def test_the_page_shows_the_recorded_runs(root):
    report = json.loads((root / "docs" / "benchmarks" / "language_models.json").read_text())
    assert to_table(report) in (root / "docs" / "benchmarks.md").read_text()
    assert report["work"]["new_tokens"] == report["writing"]["tokens_written"] == 64
