"""What a guarantee does not cover: what leaves the clients, or has left them before, past it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fedalign.federation.account import Account
from fedalign.federation.shared_units import composition_of
from fedalign.privacy.ledger import Unit
from fedalign.privacy.metric_release import OpenMetrics
from fedalign.privacy.protection import Protection
from fedalign.privacy.scheme import Scheme

_ELSEWHERE = {
    Unit.CLIENT: "a person whose data are on several clients: the promise is for each client by itself",
    Unit.EXAMPLE: (
        "a person with several judgments or texts: the promise is for each of them by itself, and for those that the "
        "partition has kept (by max_train or small=drop, or for the stage that the person's other texts fit)"
    ),
    Unit.USER: "a person on several clients: a simulation refuses that, a deployment has to see to it",
}


def not_covered(privacy: Protection, account: Account | None, public: Sequence[str] = ()) -> list[str]:
    """Return one line for each thing that the guarantee says nothing of.

    Parameters
    ----------
    privacy : Protection
    account : Account or None
    public : sequence of str
        What is taken as public, of the data that the run is about.
    """
    return [
        "the choice of these settings, where it was made on the same data (hyperparameter search)",
        *_sent(privacy),
        *_kept(privacy, account),
        *([] if account is None else _assumed(privacy, account, public)),
    ]


def _sent(privacy: Protection) -> Iterator[str]:
    """Yield what clients send besides."""
    if isinstance(privacy.metrics, OpenMetrics):
        others = "withheld" if privacy.local is not None else "withheld or summed"
        yield f"metrics: they are exact; a deployment sets privacy/metrics={others}"
    if privacy.mechanism is None or privacy.secure is not None:
        yield "which clients take part in which round, and which of them fail"
    if privacy.secure is not None:
        yield "that a round was given up because too few clients stayed, for whatever reason they went"
    if privacy.secure is not None and privacy.mechanism is None:
        yield (
            "differences of sums over different clients: repeated rounds and evaluations, and weights that stay the "
            "same, single out who is missing from one of them"
        )


def _kept(privacy: Protection, account: Account | None) -> Iterator[str]:
    """Yield what the server's own files hold."""
    yield (
        "the server's own records: sizes of cohorts, failures, traffic and times, and what cleaning dropped, in "
        "metrics.jsonl, summary.json and the report"
    )
    yield "the directory checkpoints: what clients keep between rounds, and noise that later rounds take back"
    if account is not None and not privacy.randomness.secret:
        yield "anything, from whoever knows the run's seed: the noise follows from it"


def _apart(account: Account) -> Iterator[str]:
    """Yield what is taken for granted where stages spend the budget side by side."""
    if composition_of(list(account.exposures.values())) == "sequential":
        return
    if account.unit is Unit.CLIENT:
        yield (
            "which client holds data for which stage: it is taken as public, and as settled for each client by its own "
            "data and coins, whoever else is there"
        )
    else:
        yield (
            f"which stage each {account.unit} is of: it is taken as settled for each person by that person's own data "
            "and coins, so that one who comes or goes moves nobody else to another stage"
        )
        yield (
            f"the same {account.unit} under another name in another stage: nodes refuse names that are in two stages, "
            "and the noise is chosen for each stage by itself"
        )


def _assumed(privacy: Protection, account: Account, public: Sequence[str]) -> Iterator[str]:
    """Yield what is taken as public, or for granted."""
    counted = "the number of training clients" if account.unit is Unit.CLIENT else "how much data a client holds"
    yield f"{counted}: it is taken as public"
    yield from (f"{fact}: taken as public" for fact in public)
    yield from _apart(account)
    yield _ELSEWHERE[account.unit]
    yield (
        "what the initial model, its tokenizer, the encoder, and rewards and judges that are given have learnt before "
        "the run: taken as public, also where it is of the same people's data"
    )
    if privacy.mechanism is None:
        return
    if privacy.secure is None:
        yield "a client that makes its whole node late for federation.round_timeout: others' sums are lost with its own"
    schemes = {exposure.sampling.scheme for exposure in account.exposures.values()}
    if Scheme.FIXED_SIZE in schemes:
        yield (
            "nodes and clients that pool what they know of who was asked: of a cohort of fixed size that tells of the "
            "others too (federation/sampler=poisson does not)"
        )
