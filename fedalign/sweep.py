"""Many runs: a sweep one after another, and the comparison of finished runs."""

from __future__ import annotations

import datetime
import itertools
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedalign import run
from fedalign.config import expand, parse, resolve
from fedalign.errors import UserError
from fedalign.predict import Choice, Text
from fedalign.report.atomic import write_json_atomic
from fedalign.report.compare import compare
from fedalign.report.compare_tables import show as show_comparison
from fedalign.report.profile import to_json, to_table
from fedalign.report.render import render_run
from fedalign.report.terminal import show_summary
from fedalign.run_end import Result


def run_all(console: Console, overrides: Sequence[str]) -> Path:
    """Run every combination of the overrides' values and compare them; returns the sweep's directory.

    All configurations are checked before the first one runs, so that a typing error in the last costs nothing.

    Raises
    ------
    UserError
        If a configuration is wrong.
    """
    output = parse(resolve([o for o in overrides if o.startswith("output=")])).output
    jobs = expand([o for o in overrides if not o.startswith("output=")])
    if not jobs:
        raise UserError(f"{' '.join(overrides)}: a range without values leaves nothing to run; widen it")
    for job in jobs:
        parse(resolve(job))
    stamp = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    root = Path("outputs") / "sweep" / stamp if output is None else Path(output)
    if root.exists() and (root.is_file() or any(root.iterdir())):
        raise UserError(f"output={root}: not an empty directory; choose another")
    directories = []
    for number, job in enumerate(jobs):
        console.print(f"run {number + 1} of {len(jobs)}: {' '.join(job)}", highlight=False)
        directories.append(run.start([*job, _output(root / str(number))]).directory)
    report(console, directories, root / "comparison", None, None)
    return root


def _output(path: Path) -> str:
    """Return the override that names a run's directory, quoted for Hydra's grammar."""
    escaped = str(path).replace("'", "\\'")
    return f"output='{escaped}'"


def report(
    console: Console,
    directories: Sequence[Path],
    output: Path | None,
    metrics: Sequence[str] | None,
    baseline: str | None,
) -> None:
    """Render one run, or compare many and say where the comparison is.

    Raises
    ------
    UserError
        If a directory is no run, or a metric or the baseline is not there.
    """
    if len(directories) == 1:
        console.print(f"report: {render_run(directories[0])}", soft_wrap=True)
        return
    place = directories[0].parent / "comparison" if output is None else output
    show_comparison(compare(directories, place, metrics, baseline), console)
    console.print(f"comparison: {place / 'compare.html'}", soft_wrap=True)


def show(console: Console, result: Result, profile: bool = False) -> None:
    """Print what a single run came to, and, if asked, where its time went, which is then written down too."""
    show_summary(console, result.directory, result.summary)
    if profile:
        write_json_atomic(result.directory / "profile.json", to_json(result.profile))
        console.print(to_table(result.profile))


def show_predictions(console: Console, predictions: Sequence[Choice]) -> None:
    """Print predicted distributions, a row an option and a table for each kind of prediction."""
    for (question, option, share), alike in itertools.groupby(predictions, lambda prediction: prediction.titles):
        table = Table()
        table.add_column(question, ratio=3)
        table.add_column(option, ratio=2)
        table.add_column(share, justify="right")
        for prediction in alike:
            for place, (name, value) in enumerate(zip(prediction.options, prediction.shares, strict=True)):
                table.add_row(escape(prediction.question) if place == 0 else "", escape(name), f"{value:.3f}")
            table.add_section()
        console.print(table)


def show_texts(console: Console, texts: Sequence[Text]) -> None:
    """Print texts side by side: a row a prompt, a column a preference or stage."""
    labels = list(dict.fromkeys(text.label for text in texts))
    table = Table(show_lines=True)
    for name in ("prompt", *labels):
        table.add_column(escape(name), ratio=1)
    for start in range(0, len(texts), len(labels)):
        row = texts[start : start + len(labels)]
        table.add_row(escape(row[0].prompt), *(escape(text.shown) for text in row))
    console.print(table)


def show_piece(console: Console, piece: str) -> None:
    """Print a piece of a text that is being written."""
    console.print(piece, end="", soft_wrap=True, markup=False, highlight=False)
    console.file.flush()


def show_details(console: Console, texts: Sequence[Text]) -> None:
    """End texts that were printed piece by piece, and print what else is known of them."""
    for text in texts:
        console.print("", *getattr(text, "details", ()), sep="\n", soft_wrap=True, markup=False, highlight=False)
