"""The run directory: made, refused, written and read."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fedalign.errors import UserError
from fedalign.report.run_directory import RunDirectory


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def test_create_makes_parents_and_accepts_an_empty_directory(tmp_path: Path) -> None:
    RunDirectory.create(tmp_path / "a" / "b")
    assert RunDirectory.create(tmp_path / "a" / "b").path.is_dir()


def test_create_refuses_a_directory_that_holds_something(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError) as error:
        RunDirectory.create(tmp_path)
    assert "not empty" in one_line(error) and f"resume={tmp_path}" in str(error.value)


def test_create_refuses_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot make the directory") as error:
        RunDirectory.create(tmp_path / "file")
    one_line(error)


def test_resume_needs_a_run(tmp_path: Path, make_run: Callable[..., Path]) -> None:
    path = make_run("old")
    assert RunDirectory.create(path, resume=True).read_config()["seed"] == 1
    with pytest.raises(UserError, match=r"not a run directory \(no config.yaml\)"):
        RunDirectory.create(tmp_path, resume=True)


def test_open_names_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such directory"):
        RunDirectory.open(tmp_path / "nowhere")
    with pytest.raises(UserError, match="not a run directory"):
        RunDirectory.open(tmp_path)


def test_files_lie_where_other_tools_look_for_them(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    paths = [
        directory.config_file,
        directory.environment_file,
        directory.metrics_file,
        directory.summary_file,
        directory.report_file,
        directory.checkpoints,
        directory.model,
        directory.plots,
    ]
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == [
        "config.yaml",
        "environment.json",
        "metrics.jsonl",
        "summary.json",
        "report.html",
        "checkpoints",
        "model",
        "plots",
    ]


def test_config_survives_with_order_and_types(tmp_path: Path) -> None:
    config = {"seed": 3, "a": {"path": None, "lr": 1e-05, "on": True, "groups": ["Türkiye", "no"]}}
    directory = RunDirectory(tmp_path)
    directory.write_config(config)
    assert directory.read_config() == config
    assert list(directory.read_config()) == ["seed", "a"]


@pytest.mark.parametrize("content", ["a: [1", "- 1\n- 2\n"])
def test_a_broken_config_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(UserError) as error:
        RunDirectory.open(tmp_path).read_config()
    assert "config.yaml" in one_line(error)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"method": 1}'])
def test_a_broken_summary_is_one_line(make_run: Callable[..., Path], content: str) -> None:
    path = make_run("run")
    (path / "summary.json").write_text(content)
    with pytest.raises(UserError) as error:
        RunDirectory.open(path).read_summary()
    assert "summary.json" in one_line(error)


def test_a_summary_that_lacks_one_key_names_it(make_run: Callable[..., Path]) -> None:
    path = make_run("run")
    content = json.loads((path / "summary.json").read_text())
    del content["timing"]["per_round_s"]
    (path / "summary.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"timing\.per_round_s"):
        RunDirectory.open(path).read_summary()


def test_a_run_that_has_not_ended_says_how_to_go_on(make_run: Callable[..., Path]) -> None:
    path = make_run("run")
    (path / "summary.json").unlink()
    with pytest.raises(UserError, match="resume="):
        RunDirectory.open(path).read_summary()


def test_environment_may_be_missing_but_not_broken(make_run: Callable[..., Path]) -> None:
    path = make_run("run")
    directory = RunDirectory.open(path)
    assert directory.read_environment()["seed"] == 1
    directory.environment_file.write_text("[1]")
    with pytest.raises(UserError, match="expected an object"):
        directory.read_environment()
    directory.environment_file.unlink()
    assert directory.read_environment() == {}
