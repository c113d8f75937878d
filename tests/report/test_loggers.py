"""Loggers: what reaches TensorBoard and Weights & Biases."""

import sys
import types
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter

from fedalign.errors import UserError
from fedalign.federation.observer import PhasePlan, RoundReport
from fedalign.metrics.record import Metric
from fedalign.report import loggers
from fedalign.report.loggers import Logger, NoLogger, TensorBoardLogger, WandbLogger

PLAN = [PhasePlan("prior", 2), PhasePlan("gpo", 3)]
CONFIG = {"seed": 1, "method": {"name": "pluralllm"}}


def report(phase: str, round: int, value: float) -> RoundReport:
    metrics = (
        Metric(phase, round, "eval", None, "unseen/x", value, 1.0),
        Metric(phase, round, "eval", "Kenya", "unseen/x", value + 1, 1.0),
    )
    return RoundReport(phase, round, 2, 0, 0.1, metrics)


def run(logger: Logger, directory: Path, resumed: tuple[str, int] | None = None) -> None:
    observer = logger.open(directory, "a run", CONFIG)
    observer.run_started(PLAN, resumed)
    for each in (report("prior", 0, 0.0), report("prior", 2, 0.25), report("gpo", 1, 0.5), report("gpo", 3, 0.75)):
        observer.round_ended(each)
    observer.run_ended()


@pytest.mark.parametrize("name", ["none", "tensorboard", "wandb"])
def test_every_shipped_config_fits_its_class(root: Path, name: str) -> None:
    path = root / "conf" / "logger" / f"{name}.yaml"
    lines = path.read_text().splitlines()
    content = yaml.safe_load(path.read_text())
    module, _, kind = content.pop("_target_").rpartition(".")
    assert module == loggers.__name__
    built = TypeAdapter(getattr(loggers, kind)).validate_python(content)
    assert isinstance(built, Logger)
    assert lines[0].startswith("# ")
    for number, line in enumerate(lines):
        if line and not line.startswith(("#", "_target_")):
            assert lines[number - 1].startswith("# "), f"{line!r} has no comment above it"


def test_no_logger_leaves_nothing(tmp_path: Path) -> None:
    run(NoLogger(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def scalars(directory: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(directory / "tensorboard"))
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_has_every_curve_at_cumulative_rounds(tmp_path: Path) -> None:
    run(TensorBoardLogger(per_group=True), tmp_path)
    assert scalars(tmp_path) == {
        "eval/unseen/x": [(0, 0.0), (2, 0.25), (3, 0.5), (5, 0.75)],
        "eval/unseen/x/Kenya": [(0, 1.0), (2, 1.25), (3, 1.5), (5, 1.75)],
    }


def test_tensorboard_without_groups(tmp_path: Path) -> None:
    run(TensorBoardLogger(per_group=False), tmp_path)
    assert list(scalars(tmp_path)) == ["eval/unseen/x"]


def test_tensorboard_shows_the_configuration(tmp_path: Path) -> None:
    run(TensorBoardLogger(per_group=False), tmp_path)
    content = b"".join(path.read_bytes() for path in (tmp_path / "tensorboard").iterdir())
    assert b"a run" in content and b"name: pluralllm" in content


def test_tensorboard_forgets_what_is_later_than_the_checkpoint(tmp_path: Path) -> None:
    run(TensorBoardLogger(per_group=False), tmp_path)
    observer = TensorBoardLogger(per_group=False).open(tmp_path, "a run", CONFIG)
    observer.run_started(PLAN, ("gpo", 1))
    observer.round_ended(report("gpo", 3, 0.875))
    observer.run_ended()
    assert scalars(tmp_path)["eval/unseen/x"] == [(0, 0.0), (2, 0.25), (3, 0.5), (5, 0.875)]


class FakeWandb(types.ModuleType):
    """What fedalign uses of wandb, written down."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.arguments: list[dict[str, Any]] = []
        self.logged: list[tuple[dict[str, float], int]] = []
        self.finished = 0

    def init(self, **arguments: Any) -> "FakeWandb":
        self.arguments.append(arguments)
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        self.logged.append((values, step))

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> FakeWandb:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_wandb_gets_settings_curves_and_an_end(tmp_path: Path, wandb: FakeWandb) -> None:
    run(WandbLogger(project="p", entity="team", mode="offline", per_group=True), tmp_path)
    (arguments,) = wandb.arguments
    assert arguments["project"] == "p" and arguments["entity"] == "team" and arguments["mode"] == "offline"
    assert arguments["name"] == "a run" and arguments["dir"] == str(tmp_path) and arguments["config"] == CONFIG
    assert wandb.logged[2] == ({"eval/unseen/x": 0.5, "eval/unseen/x/Kenya": 1.5}, 3)
    assert [step for _, step in wandb.logged] == [0, 2, 3, 5]
    assert wandb.finished == 1


def test_wandb_without_groups(tmp_path: Path, wandb: FakeWandb) -> None:
    run(WandbLogger(project="p", entity=None, mode="offline", per_group=False), tmp_path)
    assert all(list(values) == ["eval/unseen/x"] for values, _ in wandb.logged)


def test_wandb_goes_on_with_the_run_of_the_same_directory(tmp_path: Path, wandb: FakeWandb) -> None:
    logger = WandbLogger(project="p", entity=None, mode="online", per_group=False)
    for directory in (tmp_path / "a", tmp_path / "a", tmp_path / "b"):
        run(logger, directory)
    first, again, other = (arguments["id"] for arguments in wandb.arguments)
    assert first == again != other
    assert wandb.arguments[0]["resume"] == "allow"


def test_wandb_that_is_not_installed_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # import raises ImportError
    with pytest.raises(UserError, match=r"pip install 'fedalign\[wandb\]'"):
        WandbLogger(project="p", entity=None, mode="offline", per_group=False).open(tmp_path, "a", CONFIG)
