"""Run directories as a run would leave them, made from chosen numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from fedalign.federation.observer import PhasePlan, RoundReport
from fedalign.metrics.record import Metric
from fedalign.report import canvas
from fedalign.report.metrics_log import MetricsLog
from fedalign.report.run_directory import RunDirectory
from fedalign.report.summary import Summary, Timing, Traffic, final_values

GUARANTEE = {
    "unit": "client",
    "relation": "add_remove",
    "mechanism": "gaussian",
    "sampling": "poisson",
    "sampling_rate": 0.25,
    "noise_multiplier": 1.1,
    "releases": 3,
    "epsilon": 3.25,
    "delta": 1e-5,
}


@dataclass
class RunMaker:
    """Makes run directories below one folder."""

    folder: Path

    def __call__(
        self,
        name: str,
        *,
        score: float = 0.75,
        seed: int = 1,
        groups: Sequence[str] = ("Kenya", "Brazil", "Japan"),
        rounds: int = 3,
        reason: str | None = None,
        privacy: dict[str, Any] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> Path:
        """Write a run whose unseen alignment score ends at ``score``, and return its directory."""
        directory = RunDirectory.create(self.folder / name)
        config: dict[str, Any] = {
            "method": {
                "_target_": "fedalign.methods.pluralllm.PluralLLM",
                "name": "pluralllm",
                "prior": "none",
            },
            "data": {"name": "synthetic_survey", "path": None},
            "federation": {"rounds": rounds},
            "logger": {"_target_": "fedalign.report.loggers.NoLogger"},
            "name": name,
            "seed": seed,
            "output": str(directory.path),
        }
        for key, value in (settings or {}).items():
            group, _, leaf = key.rpartition(".")
            (config[group] if group else config)[leaf] = value
        directory.write_config(config)
        directory.write_environment({"seed": seed, "python": "3.11.7", "git_sha": None})
        log = MetricsLog(directory.metrics_file)
        log.run_started([PhasePlan("gpo", rounds)], None)
        for number in range(rounds + 1):
            log.round_ended(RoundReport("gpo", number, 2, 0, 0.1, _metrics(number, rounds, score, groups)))
        log.run_ended()
        metrics, by_group = final_values(directory.read_metrics())
        directory.write_summary(
            Summary(
                method=config["method"]["name"],
                data=config["data"]["name"],
                status="completed" if reason is None else "failed",
                rounds=rounds,
                metrics=metrics,
                groups=by_group,
                privacy=privacy,
                timing=Timing(12.5, 4.0, 6, 18.25, 0.5),
                traffic=Traffic(1_234_567, 890),
                seed=seed,
                reason=reason,
            )
        )
        return directory.path


def _metrics(number: int, rounds: int, score: float, groups: Sequence[str]) -> tuple[Metric, ...]:
    """Return one round's metrics; groups lie evenly around the mean, which rises by 0.02 a round."""
    scope = "test" if number == rounds else "eval"
    found = []
    for population, shift in (("test", 0.01), ("unseen", 0.0)):
        mean = score + shift - 0.02 * (rounds - number)
        middle = (len(groups) - 1) / 2
        values = {group: mean + 0.01 * (index - middle) for index, group in enumerate(groups)}
        found += [
            Metric("gpo", number, scope, group, f"{population}/alignment_score", value, 5.0)
            for group, value in values.items()
        ]
        overall = {
            "alignment_score": mean,
            "alignment_score_worst": min(values.values()),
            "alignment_gap": max(values.values()) - min(values.values()),
            "fairness_index": 0.999 - 0.0001 * number,
        }
        found += [
            Metric("gpo", number, scope, None, f"{population}/{name}", value, float(len(groups)))
            for name, value in overall.items()
        ]
    if number:
        found.append(Metric("gpo", number, "train", None, "train/loss", 1.0 / number, 2.0))
        found.append(Metric("gpo", number, "server", None, "epsilon", 0.5 * number, 1.0))
    return tuple(found)


@pytest.fixture
def make_run(tmp_path: Path) -> RunMaker:
    return RunMaker(tmp_path / "runs")


@pytest.fixture
def guarantee() -> dict[str, Any]:
    return dict(GUARANTEE)


@pytest.fixture
def drawn(real_plots: None, monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Collect the figures before they become bytes."""
    figures: list[Figure] = []
    draw = canvas.png

    def collect(figure: Figure) -> bytes:
        figures.append(figure)
        return draw(figure)

    monkeypatch.setattr(canvas, "png", collect)
    return figures
