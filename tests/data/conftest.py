"""What the tests of survey data share: objects from the shipped configs, small surveys, files of rows."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from fedalign.build import build
from fedalign.data.federated import DataSource, Layout
from fedalign.data.schema import Encoder, Question, Survey

KINDS: dict[str, type] = {"data": DataSource, "partition": Layout, "encoder": Encoder}


@pytest.fixture(scope="session")
def make(root: Path) -> Callable[..., Any]:
    """Build the object of a shipped config, e.g. ``make("data/survey_file", path="x.csv")``."""

    def from_config(name: str, **changes: Any) -> Any:
        group = name.split("/")[0]
        node = yaml.safe_load((root / "conf" / f"{name}.yaml").read_text())
        return build({**node, **changes}, KINDS[group], group)

    return from_config


@pytest.fixture(scope="session")
def survey() -> Survey:
    """Six groups with 30, 32, ..., 40 of 40 questions, of 2 to 4 options."""
    rng = np.random.default_rng(0)
    questions = [Question(f"Question {i}?", tuple(f"option {o}" for o in range(2 + i % 3))) for i in range(40)]
    answers = {}
    for g in range(6):
        asked = sorted(rng.choice(40, size=30 + 2 * g, replace=False))
        answers[f"land {g}"] = {questions[i].id: rng.dirichlet(np.ones(len(questions[i].options))) for i in asked}
    return Survey({question.id: question for question in questions}, answers)


Row = dict[str, Any]


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, Sequence[Row]], Path]:
    """Write rows to a file whose suffix says the format; returns its path."""

    def to_file(name: str, rows: Sequence[Row]) -> Path:
        path = tmp_path / name
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        if name.endswith(".gz"):
            path.write_bytes(gzip.compress(lines.encode()))
        elif name.endswith(".csv"):
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                for row in rows:
                    writer.writerow({k: json.dumps(v) if isinstance(v, list) else v for k, v in row.items()})
        elif name.endswith(".parquet"):
            import pyarrow
            import pyarrow.parquet

            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
        else:
            path.write_text(lines)
        return path

    return to_file
