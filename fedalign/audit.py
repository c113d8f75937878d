"""An audit: run a configuration again with canaries, score them, bound epsilon from below, hold it to the claim."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedalign.audited_run import auditable, run_with_canaries
from fedalign.config import resolve
from fedalign.errors import RunFailed, UserError
from fedalign.federation.canary_score import ScoringCustodian
from fedalign.privacy.audit import AuditResult, AuditSettings, audit
from fedalign.privacy.canaries import Canaries
from fedalign.privacy.canary_audit import CanaryBound
from fedalign.privacy.one_run_audit import OneRunBound
from fedalign.privacy.roc_audit import GdpBound, RocBound
from fedalign.report.atomic import write_bytes_atomic, write_json_atomic
from fedalign.report.audit_plot import audit_plot
from fedalign.report.audit_report import COLUMNS, audit_rows, audit_sentence
from fedalign.report.run_directory import RunDirectory
from fedalign.rng import Streams

RESULT, PLOT = "audit.json", "audit.png"
Main = Literal["gdp", "one_run", "roc", "canary"]

# Fixed before any score is seen: a choice that is made on the scores would not be covered.
_GUESSED = (0.9, 0.5, 0.2, 0.1)
_ERRORS = (0.0, 0.01, 0.05, 0.2, 0.5)
_RESAMPLES = 1000


@dataclass(frozen=True)
class Request:
    """What to audit with.

    Parameters
    ----------
    canaries : int
    confidence : float
        Of all bounds together.
    bound : {"gdp", "one_run", "roc", "canary"}
        The one that decides. ``one_run`` alone rests on nothing but the coins, and 1000 canaries cannot show much
        more than 5 by it; ``gdp`` can refute larger claims.
    output : Path or None
        Directory; None is ``audit`` in the run's own, or a new one under ``outputs/``.
    seed : int or None
        Of coins and directions; None is the run's.
    """

    canaries: int = 1000
    confidence: float = 0.95
    bound: Main = "gdp"
    output: Path | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        """Refuse what no audit can be made with."""
        if self.canaries < 20:
            raise UserError(f"--canaries={self.canaries}: that few cannot show anything; take hundreds")
        if not 0.5 < self.confidence < 1:
            raise UserError(f"--confidence={self.confidence} must lie between 0.5 and 1")
        if self.bound not in get_args(Main):
            raise UserError(f"--bound={self.bound}: no such bound; choose {', '.join(get_args(Main))}")
        if self.seed is not None and self.seed < 0:
            raise UserError(f"--seed={self.seed} must be at least 0")

    @property
    def settings(self) -> AuditSettings:
        """The bounds that are measured."""
        return AuditSettings(
            self.confidence, self.bound, OneRunBound(_GUESSED), RocBound(_ERRORS), GdpBound(_ERRORS),
            CanaryBound(_RESAMPLES),
        )  # fmt: skip


@dataclass(frozen=True)
class Audited:
    """A finished audit.

    Parameters
    ----------
    directory : Path
    result : AuditResult
    limits : tuple of str
        What it does not show.
    """

    directory: Path
    result: AuditResult
    limits: tuple[str, ...]

    def check(self) -> None:
        """Refuse a claim that the audit found violated.

        Raises
        ------
        RunFailed
            If it did.
        """
        if self.result.verdict == "violated":
            raise RunFailed(audit_sentence(self.result))


def audit_run(target: Sequence[str], request: Request) -> Audited:
    """Audit the guarantee of a configuration, in a run of its own.

    Parameters
    ----------
    target : sequence of str
        The directory of a run, or overrides as ``fedalign run`` takes them.
    request : Request

    Raises
    ------
    UserError
        If the configuration is wrong or claims nothing, or the output holds an audit already.
    RunFailed
        If the federation breaks down.
    """
    run = RunDirectory.open(Path(target[0])) if len(target) == 1 and "=" not in target[0] else None
    resolved = auditable(resolve(target) if run is None else run.read_config())
    directory = _directory(request, run, resolved["output"])
    seed = resolved["seed"] if request.seed is None else request.seed
    custodian, canaries = run_with_canaries(resolved, request.canaries, seed)
    return _conclude(custodian, canaries, request, directory)


def show(console: Console, audited: Audited) -> None:
    """Print the bounds, the outcome in a sentence, and where more is."""
    table = Table(title=f"{audited.result.canaries_included + audited.result.canaries_held_out} canaries")
    for name in COLUMNS:
        table.add_column(name)
    for row in audit_rows(audited.result):
        table.add_row(*(escape(cell) for cell in row))
    console.print(table)
    console.print(escape(audit_sentence(audited.result)), soft_wrap=True, highlight=False)
    console.print(f"audit: {audited.directory / RESULT}", soft_wrap=True)


def _directory(request: Request, run: RunDirectory | None, output: str | None) -> Path:
    if request.output is not None:
        place = request.output
    elif run is not None:
        place = run.path / "audit"
    else:
        stamp = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S_%f")
        place = Path("outputs") / "audit" / stamp if output is None else Path(output)
    if (place / RESULT).exists():
        raise UserError(f"{place}: holds an audit already; choose another with --output")
    return place


def _conclude(custodian: ScoringCustodian, canaries: Canaries, request: Request, directory: Path) -> Audited:
    """Bound epsilon by the scores, hold it to the ledger, and write both down."""
    account = custodian.account
    assert account is not None
    scores = custodian.scores(canaries)
    generator = Streams(canaries.seed).numpy("audit/bootstrap")
    claimed = account.ledger.epsilon()
    result = audit(scores, request.settings, delta=account.delta, claimed=claimed, generator=generator)
    local = custodian.privacy.local is not None
    sizes = [exposure.size for exposure in account.exposures.values()]
    audited = Audited(directory, result, _limits(result, sizes, canaries.count, local))
    try:
        write_json_atomic(directory / RESULT, _content(audited, custodian, canaries, request))
        write_bytes_atomic(directory / PLOT, audit_plot(result, scores))
    except OSError as error:
        raise UserError(f"--output={directory}: cannot be written ({error.strerror}); choose another") from error
    return audited


def _content(audited: Audited, custodian: ScoringCustodian, canaries: Canaries, request: Request) -> dict[str, Any]:
    return {
        "sentence": audit_sentence(audited.result),
        **audited.result.to_json(),
        "not_shown": list(audited.limits),
        "settings": {
            "canaries": canaries.count,
            "norm_over_bound": canaries.norm,
            "held_out": "opposed" if canaries.opposed else "silent",
            "decides": request.bound,
            "seed": canaries.seed,
        },
        "privacy": custodian.statement(),
    }


def _limits(result: AuditResult, sizes: Sequence[int], canaries: int, local: bool) -> tuple[str, ...]:
    """Say what a reader must not take from the audit."""
    joined = "units of one client, which trains alone" if local else "clients"
    one_run = next(bound for bound in result.bounds if bound.name == OneRunBound.name)
    limits = [
        "It bounds epsilon from below: that nothing was found confirms no claim.",
        f"It is of a run of its own, with the canaries as further {joined}, and of the claim of that run's ledger.",
        "It scores the noisy sums. What else leaves a client or the server (metrics, times, who takes part) is not "
        "tested, nor is what is done to real data before they are clipped.",
        "The one-run bound alone rests on nothing but the coins; so many canaries can show "
        f"{one_run.ceiling:.2f} by it at most, and more at a smaller delta. The others take scores of one run for "
        "independent.",
    ]
    if local:
        limits.append(
            "Canaries' gradients are found in a loop: other values of privacy.local.grad_sample are not tested. An "
            "optimiser with moments, as adam, blurs what a canary does; with sgd the audit sees more."
        )
    if max(sizes) < canaries:
        limits.append(
            f"A sum holds {max(sizes)} numbers at most, fewer than there are canaries: they drown each other."
        )
    return tuple(limits)
