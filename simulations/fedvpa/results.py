"""From the runs of the FedVPA-GP experiment to its recorded numbers, its tables and its plots.

python -m simulations.fedvpa.results [--runs DIR] [--results DIR] [--readme FILE]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedalign.metrics.record import Metric
from fedalign.report.curves import Curves
from fedalign.report.metrics_log import read_metrics
from simulations.fedvpa.arms import ARMS, CURVES, SETTINGS
from simulations.fedvpa.run import OUTPUT, curve_place, finished, place
from simulations.fedvpa.tables import Results, beside, tables

_RECORDED = (
    *(
        f"{population}/accuracy{whose}{pairs}"
        for population in ("test", "unseen")
        for whose in ("", "_prior_z", "_swapped_z")
        for pairs in ("", "_conflict")
    ),
    "test/active_units",
    "test/kl",
    "unseen/kl",
    "latent/linear_probe",
    "latent/silhouette",
    "latent/cluster_agreement",
)
_BY_GROUP = ("test/accuracy", "test/accuracy_prior_z", "test/accuracy_swapped_z")


@dataclass(frozen=True)
class Use:
    """How an arm uses its latent over rounds.

    Parameters
    ----------
    rounds : tuple of int
        Of every evaluation.
    kl, active_units : tuple of float
    """

    rounds: tuple[int, ...]
    kl: tuple[float, ...]
    active_units: tuple[float, ...]


def read_run(directory: Path) -> dict[str, float]:
    """Return a finished run's numbers; those of a group are called ``<metric>@<group>``.

    ``up_mb_per_round`` is of a training round of the main phase, ``seconds`` of the whole run.
    """
    summary = json.loads((directory / "summary.json").read_text())
    metrics = summary["metrics"]
    values = {name: metrics[name] for name in _RECORDED if name in metrics}
    for group, own in summary["groups"].items():
        values |= {f"{name}@{group}": own[name] for name in _BY_GROUP if name in own}
    values["seconds"] = summary["timing"]["total_s"]
    sent = _sent(read_metrics(directory / "metrics.jsonl"))
    if sent:
        values["up_mb_per_round"] = sum(sent) / len(sent) / 1e6
    return {name: round(float(value), 6) for name, value in values.items()}


def _sent(records: list[Metric]) -> list[float]:
    """Return the bytes from clients to server in each round of the first phase that has any."""
    sent = [(record.phase, record.value) for record in records if record.name == "up_bytes"]
    return [value for phase, value in sent if phase == sent[0][0]]


def read_all(output: Path) -> Results:
    """Return the numbers of all finished runs: setting, arm, metric, seed."""
    found: dict[str, dict[str, dict[str, dict[int, float]]]] = {}
    for setting in SETTINGS:
        for arm in ARMS:
            folder = place(output, setting.name, arm.name, 0).parent
            seeds = sorted(int(path.name.removeprefix("seed-")) for path in folder.glob("seed-*"))
            for seed in seeds:
                directory = place(output, setting.name, arm.name, seed)
                if finished(directory):
                    metrics = found.setdefault(setting.name, {}).setdefault(arm.name, {})
                    for name, value in read_run(directory).items():
                        metrics.setdefault(name, {})[seed] = value
    return found


def read_use(output: Path) -> dict[str, Use]:
    """Return how the followed arms use their latents over the rounds of their main phase."""
    found = {}
    for arm in CURVES:
        directory = curve_place(output, SETTINGS[0].name, arm)
        if not finished(directory):
            continue
        records = read_metrics(directory / "metrics.jsonl")
        curves = Curves(records).of_phase(records[0].phase)
        kl, active = curves.get("test/kl"), curves.get("test/active_units")
        # A run's first evaluation lacks neither; an arm without a latent has none at all.
        if kl is not None and active is not None:
            found[arm] = Use(tuple(kl.steps.tolist()), tuple(kl.values.tolist()), tuple(active.values.tolist()))
    return found


def to_json(found: Results, use: Mapping[str, Use]) -> str:
    """Return the content of ``results.json``, one line an arm."""
    settings = []
    for setting, arms in found.items():
        lines = [f"   {json.dumps(arm)}: {json.dumps(metrics)}" for arm, metrics in arms.items()]
        settings.append(f"  {json.dumps(setting)}: {{\n" + ",\n".join(lines) + "\n  }")
    curves = [f"  {json.dumps(arm)}: {json.dumps(vars(of))}" for arm, of in use.items()]
    parts = [' "settings": {\n' + ",\n".join(settings) + "\n }", ' "latent_use": {\n' + ",\n".join(curves) + "\n }"]
    return "{\n" + ",\n".join(parts) + "\n}\n"


def from_json(text: str) -> Results:
    """Return the numbers in ``results.json``."""
    content: dict[str, Any] = json.loads(text)
    return {
        setting: {
            arm: {name: {int(seed): value for seed, value in by.items()} for name, by in metrics.items()}
            for arm, metrics in arms.items()
        }
        for setting, arms in content["settings"].items()
    }


def included(readme: str, name: str, table: str) -> str:
    """Return the README with the table between the markers ``<!-- name -->`` and ``<!-- /name -->``.

    Raises
    ------
    ValueError
        If the markers are not there.
    """
    before, start, rest = readme.partition(f"<!-- {name} -->")
    _, end, after = rest.partition(f"<!-- /{name} -->")
    if not (start and end):
        raise ValueError(f"the README has no <!-- {name} --> ... <!-- /{name} -->")
    return f"{before}{start}\n\n{table}\n{end}{after}"


def with_tables(readme: str, found: Results) -> str:
    """Return the README with the tables of these numbers."""
    return included(included(readme, "beside", beside(found)), "results", tables(found))


def main() -> None:
    """Read the runs and write the numbers, the tables and the plots."""
    from simulations.fedvpa.plots import plots

    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=OUTPUT, help="where the runs are")
    parser.add_argument("--results", type=Path, default=here / "results", help="where numbers, tables and plots go")
    parser.add_argument("--readme", type=Path, default=here / "README.md", help="gets the tables between its markers")
    given = parser.parse_args()
    found, use = read_all(given.runs), read_use(given.runs)
    if not found:
        parser.error(f"--runs {given.runs}: no finished run there")
    given.results.mkdir(parents=True, exist_ok=True)
    (given.results / "results.json").write_text(to_json(found, use))
    (given.results / "table.md").write_text(tables(found))
    for name, content in plots(found, use, given.runs).items():
        (given.results / f"{name}.png").write_bytes(content)
    given.readme.write_text(with_tables(given.readme.read_text(), found))
    print(tables(found))


if __name__ == "__main__":
    main()
