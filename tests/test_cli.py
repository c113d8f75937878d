"""The command line: exit codes, one line for a mistake, and every command from start to end."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedalign import __version__, predict, run
from fedalign.cli import main
from fedalign.config import resolve
from fedalign.errors import RunFailed, UserError
from fedalign.methods.pluralllm import GPOPhase
from fedalign.predict_text import WrittenText
from tests.cases import mostly_slow
from tests.tiny import DATA, TINY, trained_run, use_cache


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained_run(tmp_path_factory.getbasetemp())


@pytest.fixture(autouse=True)
def _own_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_cache(tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    path = tmp_path / "answers.jsonl"
    rows = [
        {"question": "Is tea good?", "options": ["yes", "no"], "distribution": [0.3, 0.7]},
        {"question": "Is rain good?", "options": ["yes", "no"]},
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def raising(error: BaseException) -> Callable[..., Any]:
    def raises(*arguments: Any) -> Any:
        raise error

    return raises


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """Return the only line that was written to standard error."""
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fedalign: ")
    return line


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (UserError("seed=x is wrong;\n set it"), 2, "fedalign: seed=x is wrong; set it"),
        (RunFailed("every client\nfailed"), 1, "fedalign: every client failed"),
        (KeyboardInterrupt(), 130, "fedalign: interrupted"),
    ],
)
def test_how_a_command_ends_is_its_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, code: int, line: str
) -> None:
    monkeypatch.setattr(run, "start", raising(error))
    assert main(["run"]) == code
    assert one_line(capsys) == line


@pytest.mark.parametrize("error", [UserError("wrong"), RunFailed("broken")])
def test_debug_shows_where_it_happened(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr(run, "start", raising(error))
    with pytest.raises(type(error)):
        main(["run", "--debug"])


def test_a_bug_is_never_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "start", raising(AssertionError("a bug")))
    with pytest.raises(AssertionError, match="a bug"):
        main(["run"])


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["run", "federation.rouns=1"], "unknown key federation.rouns; did you mean 'federation.rounds'?"),
        (["run", "seed=x"], "seed='x' is not valid: it should be a valid integer"),
        (["run", "data.path=nowhere.csv"], "data.path=nowhere.csv: no such file"),
        (["run", "-m", "seed=1,x"], "seed='x' is not valid"),
        (["run", "-m", "--profile", "seed=1"], "--profile is of one run that is carried out"),
        (["run", "resume=nowhere"], "nowhere: no such directory"),
        (["run", "resume=nowhere", "seed=1"], "resume=DIR goes on under the run's own configuration; give it alone"),
        (["run", "-m", "resume=nowhere"], "give it alone"),
        (["run", "resume=a", "resume=b"], "give it alone"),
        (["list", "metods"], "did you mean 'method'?"),
        (["status"], "outputs: no run in there"),
        (["status", "nowhere"], "nowhere: no such directory"),
        (["status", "."], ".: not a run directory"),
        (["report", "nowhere"], "nowhere"),
        (["report", "--serve", "nowhere"], "nowhere: no such directory"),
        (["report", "--serve", "a", "b"], "--serve shows one run: give one directory"),
        (["report", "--serve", "a", "--metric", "reward"], "no options of a comparison"),
        (["report", "a", "--port", "1"], "--port=1 is of --serve; give both"),
        (["report", "nowhere", "neither"], "no"),
        (["predict", "nowhere", "answers.jsonl"], "nowhere: no such directory"),
    ],
)
def test_a_mistake_is_one_line_exit_code_2_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], line: str
) -> None:
    assert main(arguments) == 2
    assert line in one_line(capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [[], ["rum"], ["run", "--nope"], ["predict"], ["report"]])
def test_what_is_no_command_is_told_the_usage(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: fedalign" in capsys.readouterr().err


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"fedalign {__version__}\n"


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "engines"]) == 0
    assert "in_process" in capsys.readouterr().out


def test_print_config_runs_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--print-config", "seed=4", "method=uniform"]) == 0
    assert json.loads(capsys.readouterr().out) == resolve(["seed=4", "method=uniform"])
    assert list(tmp_path.iterdir()) == []


def test_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", *DATA, "method=uniform", "output=floor"]) == 0
    captured = capsys.readouterr()
    assert "alignment_score" in captured.out
    assert str(Path("floor") / "report.html") in captured.out
    assert captured.err == ""
    assert json.loads((tmp_path / "floor" / "summary.json").read_text())["status"] == "completed"


def test_a_profile_tells_of_the_whole_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--profile", *TINY, f"output={tmp_path / 'run'}"]) == 0
    lines = json.loads((tmp_path / "run" / "profile.json").read_text())
    spent = {line["what"]: line["seconds"] for line in lines if line["who"] == "server"}
    total = json.loads((tmp_path / "run" / "summary.json").read_text())["timing"]["total_s"]
    # The report is rendered after the summary was written.
    assert total - 0.1 <= sum(spent.values()) <= total + 30
    assert spent["waiting for training"] > 0
    clients = {line["what"]: line["seconds"] for line in lines if line["who"] == "clients"}
    assert 0 < clients["forward and backward passes"] <= spent["waiting for training"]
    assert "where the time went" in capsys.readouterr().out


def test_a_run_that_fails_ends_in_one_line_and_exit_code_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(GPOPhase, "local", raising(ValueError("no luck")))
    assert main(["run", *TINY, "output=broken"]) == 1
    assert one_line(capsys).startswith("fedalign: every client failed in round 1 of phase gpo; the first said: ")
    assert json.loads((tmp_path / "broken" / "summary.json").read_text())["status"] == "failed"


def test_resume(tmp_path: Path, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(trained, tmp_path / "again")
    assert main(["run", "resume=again"]) == 0
    assert "alignment_score" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sites", "a,a", "--output", "f"], "'a' is there 2 times"),
        (["--sites", "a,B", "--output", "f"], "'B' cannot name a site"),
        (["--sites", "a"], "--output is missing"),
        (["--sites", "a", "--output", "taken"], "--output=taken exists"),
        (["--sites", "a", "--output", "f", "--server-address", "here"], "--server-address=here"),
        (["--sites", "a", "--output", "f", "federation.round=1"], "unknown key federation.round"),
        (["--local", "0"], "--local=0"),
        (["--local", "2", "--output", "taken"], "--output=.*taken exists"),
        (["--local", "2", "--output", "f", "output=taken"], "output=.*taken: the directory is not empty"),
    ],
)
def test_a_deployment_that_cannot_be_is_refused_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").touch()
    assert main(["deploy", *arguments, *([] if "=" in arguments[-1] else TINY)]) == 2
    assert re.search(message, one_line(capsys))
    assert sorted(path.name for path in tmp_path.rglob("*") if "cache" not in path.parts) == ["mine", "taken"]


def test_deploy_writes_a_federation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["deploy", "--sites", "a,b", "--output", "f", "--server-address", "fed.example.org:8443", *TINY]) == 0
    assert "2 sites, server fed.example.org:8443; next: f/README.md" in capsys.readouterr().out
    assert (tmp_path / "f" / "sites" / "b" / "start.sh").is_file()


def test_multirun(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "-m", *DATA, "method=uniform", "seed=1,2", "output=both"]) == 0
    assert (tmp_path / "both" / "comparison" / "compare.html").is_file()
    assert "run 2 of 2" in capsys.readouterr().out


def test_report(tmp_path: Path, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("one", "two"):
        shutil.copytree(trained, tmp_path / name)
    assert main(["report", "one"]) == 0
    assert main(["report", "one", "two", "--output", "compared", "--metric", "unseen/alignment_score"]) == 0
    assert (tmp_path / "compared" / "compare.html").is_file()
    assert "unseen/alignment_score" in capsys.readouterr().out
    assert main(["report", "one", "two", "--metric", "unseen/alignmen_score"]) == 2
    assert "unseen/alignmen_score" in one_line(capsys)


def test_predict(tmp_path: Path, trained: Path, answers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", str(trained), "answers.jsonl", "--out", "deep/predicted.json"]) == 0
    shown = capsys.readouterr().out
    (written,) = json.loads((tmp_path / "deep" / "predicted.json").read_text())
    assert (written["question"], written["options"]) == ("Is rain good?", ["yes", "no"])
    assert sum(written["distribution"]) == pytest.approx(1)
    assert all(f"{share:.3f}" in shown for share in written["distribution"])


def test_predictions_that_cannot_be_written_are_a_mistake(
    tmp_path: Path, answers: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(predict, "predict", lambda directory, file: [predict.Prediction("q", ("a",), (1.0,))])
    (tmp_path / "taken").mkdir()
    assert main(["predict", "run", "answers.jsonl", "--out", "taken"]) == 2
    assert one_line(capsys) == "fedalign: --out=taken: cannot be written (Is a directory); choose another"


@pytest.mark.parametrize(("debug", "code"), mostly_slow([([], 2), (["--debug"], 1)], [([], 2)]))
def test_as_a_program(tmp_path: Path, debug: list[str], code: int) -> None:
    command = [sys.executable, "-m", "fedalign.cli", "list", "metods", *debug]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == code
    assert ended.stderr.count("\n") == 1 if not debug else "Traceback" in ended.stderr
    assert ended.stdout == ""


def test_pages_that_cannot_be_written_are_a_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(predict, "write", lambda directory, request: [WrittenText("Well", "all", "done")])
    monkeypatch.setattr(predict, "weights_page", lambda texts: "page")
    (tmp_path / "taken").mkdir()
    assert main(["predict", "run", "--prompt", "Well", "--weights", "taken"]) == 2
    assert one_line(capsys) == "fedalign: --weights=taken: cannot be written (Is a directory); choose another"


def test_streams_and_weights_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[predict.TextRequest] = []
    texts = [WrittenText("Well", "all", "done")]
    monkeypatch.setattr(predict, "write", lambda directory, request: asked.append(request) or texts)
    monkeypatch.setattr(predict, "weights_page", lambda texts: "page")
    for options in ([], ["--stream"], ["--weights", "page.html"]):
        assert main(["predict", "run", "--prompt", "Well", *options]) == 0
    assert [(request.on_piece is not None, request.weights) for request in asked] == [
        (False, False),
        (True, False),
        (False, True),
    ]


@pytest.mark.slow
def test_a_run_that_is_killed_is_dead_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rounds = ["federation.rounds=120", "federation.evaluate_every=100", "federation.checkpoint_every=1"]
    tiny = [override for override in TINY if override != "federation.rounds=1"]
    command = [sys.executable, "-m", "fedalign.cli", "run", *tiny, *rounds, "output=long"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while not (told := progress(tmp_path / "long")) or told[0] < 2:
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.1)
    assert main(["status", "long"]) == 0
    assert "long: running" in capsys.readouterr().out
    process.kill()
    process.wait()
    assert main(["status", "long"]) == 0
    shown = capsys.readouterr().out
    assert "long: dead" in shown and "go on with: fedalign run resume=long" in shown
    assert main(["status", "long", "--watch"]) == 1
    assert "dead" in one_line(capsys)
    assert main(["run", "resume=long"]) == 0
    capsys.readouterr()
    assert main(["status", "long", "--watch"]) == 0
    last = progress(tmp_path / "long")
    assert last is not None
    assert last[0] == 120 and last[1] >= 2


def progress(path: Path) -> tuple[int, int] | None:
    """Return the round of the network that a run says it is in, and the one that it went on from."""
    if not (path / "status.json").exists():
        return None
    told = json.loads((path / "status.json").read_text())
    return told["round"] if told["phase"] == "gpo" else 0, (told["resumed_after"] or ["", 0])[1]
