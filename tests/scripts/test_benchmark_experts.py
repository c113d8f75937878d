"""The benchmark of experts compares like with like, and its page shows what was recorded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from scripts import benchmark_experts as benchmark
from scripts.benchmark_experts import Serving, Training, Work, World, main, peak_bytes, tensor_bytes, to_tables
from tests.language_models import random_model

SMALL = ["--layers", "1", "--widths", "48", "--vocabulary", "50", "--each", "1", "--prompt-tokens", "3", "--batch", "2"]
SMALL += ["--new-tokens", "3", "--rank", "2"]


pytestmark = pytest.mark.usefixtures("threads_as_before")


def work(**changes):
    values = {"model": None, "layers": 1, "vocabulary": 50, "widths": (48,), "target_modules": ("c_attn",), "rank": 2}
    values |= {"each": 2, "prompt_tokens": 3, "new_tokens": 4, "batch": 4, "seed": 0, "threads": 1}
    return Work(**{**values, **changes})


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    with torch.random.fork_rng():
        return World(work(), work().write_model(tmp_path_factory.mktemp("model"), 48))


def test_report_is_printed_and_written(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "_COUNTED", 1)
    out = tmp_path / "run.json"
    assert main([*SMALL, "--repeats", "2", "--output", str(out)]) == 0
    report = json.loads(out.read_text())
    assert set(report["machine"]) == {"machine", "cpu_count", "python", "versions"}
    (serving,) = report["serving"]
    assert serving["same_texts"] == {"shared": 1, "merged": 1}
    for i in range(2):
        assert serving["separate_ratio"][i] == pytest.approx(serving["separate_s"][i] / serving["shared_s"][i])
    assert [each["active"] for each in report["active"]] == [1, 2, 3, 4, 5, 6]
    assert [each["experts"] for each in report["training"]] == [2, 4, 8, 16]
    assert (tmp_path / "run.md").read_text() == capsys.readouterr().out == "\n".join(to_tables(report))


def test_preferences_want_one_side_of_each_dimension(world):
    assert world.wanted.shape == (8, 3)
    assert len({tuple(own) for own in world.wanted.tolist()}) == 8
    assert (world.wanted // 2 == torch.arange(3)).all()


def test_all_ways_serve_the_same_requests(world):
    serving = Serving(world)
    shared, separate = serving.shared(), serving.separate()
    assert shared.shape == separate.shape == (16, 4)
    assert torch.equal(shared, serving.alone())
    assert torch.equal(separate, serving.batched())
    assert not torch.equal(shared, separate)


def test_merged_models_share_nothing(world):
    serving = Serving(world)
    places = [p.data_ptr() for model in serving.merged for p in model.network.parameters()]
    assert len(set(places)) == len(places)
    assert not set(places) & {p.data_ptr() for p in world.base.network.parameters()}


def test_matrices_of_either_layout_are_adapted(tmp_path):
    small = work(target_modules=("q_proj", "down_proj"))
    serving = Serving(World(small, random_model("qwen2", tmp_path)))
    assert torch.equal(serving.separate(), serving.batched())


def test_other_texts_are_an_error(monkeypatch, capsys):
    monkeypatch.setattr(Serving, "batched", lambda self: 1 + self.separate())
    assert main([*SMALL, "--repeats", "1"]) == 1
    assert capsys.readouterr().err.startswith("benchmark_experts: merged: in one batch only 0% of the texts")


def test_memory_is_what_tensors_take():
    def hold() -> None:
        first = torch.ones(1000, 250)
        second = first + 1
        del first
        second += torch.ones(1000, 250)

    peak_bytes(hold)
    assert peak_bytes(hold) == pytest.approx(2_000_000, rel=0.01)
    one = torch.ones(10)
    assert tensor_bytes([one, one, torch.ones(5)]) == 60


def test_an_update_from_cached_numbers_needs_no_more_for_more_experts(world):
    """The numbers themselves are all that there is more of."""
    peaks = {count: peak_bytes(Training(world, count).cached) for count in (2, 16)}
    numbers = 4 * 4 * 14 * 4  # texts, tokens, more experts, bytes
    assert peaks[16] - peaks[2] < 20 * numbers + 0.02 * peaks[2]


def test_experts_in_memory_need_more(world):
    training = Training(world, 6)
    experts = world.experts(world.adapters)
    assert peak_bytes(lambda: training.with_experts(experts)) > 1.5 * peak_bytes(training.cached)


@pytest.mark.parametrize(
    "arguments", [["--model", "./nope"], ["--target-modules", "absent"], ["--model", "", "--prompt-tokens", "99"]]
)
def test_a_user_s_mistake_is_one_line(arguments, capsys, tmp_path):
    given = [str(random_model("gpt2", tmp_path)) if argument == "" else argument for argument in arguments]
    capsys.readouterr()
    assert main([*SMALL, "--repeats", "1", *given]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("arguments", [["--batch", "3"], ["--repeats", "0"], ["--widths", "100"], ["--rank", "0"]])
def test_what_cannot_be_measured_is_refused(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2


def test_the_page_shows_the_recorded_run(root: Path):
    report = json.loads((root / "docs" / "benchmarks" / "experts.json").read_text())
    page = (root / "docs" / "benchmarks.md").read_text()
    assert all(table in page for table in to_tables(report))
    assert benchmark.PREFERENCES * report["work"]["each"] == 32
    assert all(sorted(each["separate_ratio"])[len(each["separate_ratio"]) // 2] > 1 for each in report["serving"])
    first, *_, last = (each["cached_bytes"] for each in report["training"])
    assert last < 1.05 * first
