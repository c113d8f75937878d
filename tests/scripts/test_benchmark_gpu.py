"""The GPU benchmark compares like with like, tried out on a CPU, and shares a GPU as it says."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedalign.errors import UserError
from scripts import benchmark_gpu as benchmark
from scripts.benchmark_gpu import WAYS, Steps, Work, engines, main, time_steps, to_table
from scripts.benchmark_task import measure, run_engine
from scripts.benchmark_text import Texts, enlarged
from tests.language_models import random_model

SMALL = ["--device", "cpu", "--batch", "2", "--tokens", "6", "--steps", "1", "--repeats", "2", "--dtype", "float32"]
OWN_GPU = "model.device=cuda"
TEXTS = replace(Texts("", "cpu", "float32"), clients=2, steps=1, batch=2)


pytestmark = pytest.mark.usefixtures("threads_as_before")


@pytest.fixture
def traced(monkeypatch):
    """Lets graphs run as they were traced: what a compiler makes of them has its own test."""
    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="eager"))
    yield
    torch.compiler.reset()


@pytest.fixture
def folder(tmp_path) -> Path:
    return random_model("gpt2", tmp_path / "gpt2")


def work(folder: Path) -> Work:
    return Work(str(folder), "cpu", 2, 6, 1)


def test_report_is_printed_written_and_put_on_a_page(folder, tmp_path, capsys, traced):
    out, page = tmp_path / "run.json", tmp_path / "page.md"
    page.write_text("before\n<!-- gpu -->\nold\n<!-- end of gpu -->\nafter\n")
    assert main(["--model", str(folder), *SMALL, "--workers", "--out", str(out), "--page", str(page)]) == 0
    report = json.loads(out.read_text())
    assert report["work"]["model"] == folder.name, "the machine's paths are nobody's business"
    assert set(report["steps"]) == set(WAYS) and "clients" not in report
    for numbers in report["steps"].values():
        plain = report["steps"]["float32"]["step_s"]
        assert numbers["ratio"] == pytest.approx([a / b for a, b in zip(numbers["step_s"], plain, strict=True)])
        assert numbers["peak_mb"] is None
    assert report["steps"]["float32, compiled"]["gradient_off"] < 1e-5
    assert 1e-5 < report["steps"]["bfloat16"]["gradient_off"] < 0.1
    assert capsys.readouterr().out == (tmp_path / "run.md").read_text() == to_table(report)
    assert to_table(report) in page.read_text()


def test_another_gradient_is_an_error(folder, monkeypatch, traced):
    real = Steps.gradient
    monkeypatch.setattr(Steps, "gradient", lambda self: real(self) * (2 - self._network.policy.transformer.compiled))
    with pytest.raises(RuntimeError, match="float32, compiled: its gradient is off"):
        time_steps(work(folder), 1)


def test_clients_train_and_their_time_is_told_by_engine(folder, monkeypatch):
    texts = replace(TEXTS, model=str(folder))
    told = measure(texts, functools.partial(run_engine, engine=["engine=in_process"]))
    assert told.wall_ms > 0
    longer = measure(replace(texts, rounds=5), functools.partial(run_engine, engine=["engine=in_process"]))
    assert any(not torch.equal(told.weights[name], longer.weights[name]) for name in told.weights)
    report = benchmark.time_clients(texts, [], 1)
    assert report["in_process"]["ratio"] == [1.0] and report["in_process"]["used_mb"] == [None]


@pytest.mark.slow
def test_workers_train_too(folder):
    report = benchmark.time_clients(replace(TEXTS, model=str(folder)), [1], 1)
    assert set(report) == {"in_process", "ray, 1 worker"}


def test_workers_share_the_gpu_whole_and_the_cores_there_are(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    cores = [f"engine.cpus_per_worker={share}" for share in ("1.0", "0.666")]
    assert engines("cuda:1", [1, 3]) == {
        "in_process": ["engine=in_process"],
        "ray, 1 worker": ["engine=ray", "engine.workers=1", cores[0], "engine.gpus_per_worker=1.0000", OWN_GPU],
        "ray, 3 workers": ["engine=ray", "engine.workers=3", cores[1], "engine.gpus_per_worker=0.3333", OWN_GPU],
    }
    assert engines("cpu", [2])["ray, 2 workers"] == ["engine=ray", "engine.workers=2", cores[0]]


def test_what_was_measured_is_kept_though_clients_fail(folder, tmp_path, capsys, monkeypatch, traced):
    def full(*_):
        raise UserError("3 of 8 clients failed")

    monkeypatch.setattr(benchmark, "time_clients", full)
    out = tmp_path / "run.json"
    assert main(["--model", str(folder), *SMALL, "--workers", "1", "--out", str(out)]) == 2
    assert capsys.readouterr().err == "benchmark_gpu: 3 of 8 clients failed\n"
    assert set(json.loads(out.read_text())["steps"]) == set(WAYS)


def test_a_larger_model_has_the_tokenizer_and_its_own_size(folder, tmp_path):
    larger = enlarged(str(folder), 128, 3, tmp_path / "larger")
    transformer = work(Path(larger)).build("float32", False).policy.transformer
    assert (transformer.width, transformer._config.n_layer) == (128, 3)
    assert transformer.vocabulary == work(folder).build("float32", False).policy.transformer.vocabulary
    with pytest.raises(UserError, match="multiple of 64"):
        enlarged(str(folder), 100, 3, tmp_path / "odd")
    with pytest.raises(UserError, match="is a qwen2, no GPT-2"):
        enlarged(str(random_model("qwen2", tmp_path / "qwen2")), 128, 3, tmp_path / "other")


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is said where there is no GPU")
def test_without_a_gpu_one_line_says_so(folder, capsys):
    assert main(["--model", str(folder)]) == 2
    assert capsys.readouterr().err.startswith("benchmark_gpu: --device cuda: PyTorch finds no GPU here")


@pytest.mark.parametrize("arguments", [["--workers", "0"], ["--tokens", "1"], ["--repeats", "0"], ["--dtype", "int8"]])
def test_what_cannot_be_timed_is_refused(folder, arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--model", str(folder), *arguments])
    assert stopped.value.code == 2
