"""A check on the terminal: figures, findings, and what leaves the machine."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedalign.data_check.findings import CheckReport, Finding

_MOST_VALUES = 12

_WHY = {
    "prompt_empty": "the prompt holds no text",
    "response_empty": "a response holds no text",
    "responses_equal": "the two responses are the same",
    "tie": "neither response was preferred",
    "judgment_repeated": "the same judgment by the same person a second time",
    "identical_answer": "the same answer of the same group a second time",
    "answer_with_one_option": "fewer than two options are left of the question",
    "answer_with_little_mass": "the options that are left hold too little of the answer",
    "response_merged": "a judgment holds the response twice",
    "responses_few": "fewer than two responses are left",
    "responses_repeated": "the same response has two ranks",
    "unranked": "no response has a rank",
    "all_tied": "all responses tie",
    "ties_many": "too many responses tie",
    "in_probe": "a judgment of a menu of the public probe",
    "example_repeated": "the same record of the same user a second time",
    "in_test": "a training record whose text a held-out record has too",
}


def show_check(console: Console, report: CheckReport) -> None:
    """Print a report."""
    console.print(f"[bold]{escape(report.path)}[/bold]: {report.rows} rows of {report.kind}", soft_wrap=True)
    if report.sizes:
        console.print(_sizes(report))
    for title, counts in report.counts.items():
        console.print(_counts(title, counts))
    if report.dropped:
        console.print(_dropped(report.dropped))
    for finding in sorted(report.findings, key=lambda found: ("error", "warning", "note").index(found.level)):
        console.print(_line(finding), soft_wrap=True)
    console.print(_leaving(report))
    console.print(_verdict(report))


def _table(title: str, *columns: str) -> Table:
    table = Table(title=escape(title), title_justify="left", box=None, padding=(0, 2))
    table.add_column(columns[0])
    for column in columns[1:]:
        table.add_column(column, justify="right")
    return table


def _sizes(report: CheckReport) -> Table:
    table = _table("sizes", "", "least", "median", "most", "of")
    for what, spread in report.sizes.items():
        numbers = (spread.least, spread.median, spread.most, spread.number)
        table.add_row(escape(what), *(f"{value:g}" for value in numbers))
    return table


def _counts(title: str, counts: Mapping[str, int]) -> Table:
    table = _table(title, "", "rows")
    shown = sorted(counts.items(), key=lambda item: -item[1])[:_MOST_VALUES]
    for value, count in shown:
        table.add_row(escape(value[:60]), str(count))
    if len(counts) > len(shown):
        table.add_row(f"and {len(counts) - len(shown)} more", str(sum(counts.values()) - sum(c for _, c in shown)))
    return table


def _dropped(dropped: Mapping[str, int]) -> Table:
    table = _table("a run leaves out", "", "rows", "since")
    for rule, count in dropped.items():
        table.add_row(rule, str(count), _WHY.get(rule, ""))
    return table


def _line(finding: Finding) -> str:
    colour = {"error": "red", "warning": "yellow", "note": "dim"}[finding.level]
    where = f" (first: {', '.join(row.rpartition('/')[2] for row in finding.rows)})" if finding.rows else ""
    place = "" if finding.level == "error" else where
    return f"[{colour}]{finding.level}[/{colour}]: {escape(' '.join(finding.message.split()))}{escape(place)}"


def _leaving(report: CheckReport) -> Table:
    table = Table(title="what leaves this machine", title_justify="left")
    table.add_column("privacy=")
    table.add_column("what others see")
    for mode, text in report.leaves.items():
        table.add_row(mode, escape(text))
    table.add_row("never", escape(report.stays))
    return table


def _verdict(report: CheckReport) -> str:
    errors, warnings = len(report.of_level("error")), len(report.of_level("warning"))
    if errors:
        return f"[red]{errors} errors[/red]: a run would refuse this file"
    return f"{warnings} warnings: a run would use this file" if warnings else "nothing to complain of"
