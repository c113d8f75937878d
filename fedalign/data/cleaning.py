"""Rules that remove survey artefacts from option lists, by text alone, so that all groups agree on a question.

Published surveys carry options that nobody chose: file codes, refusals, a column total that holds half of the mass.
Whether an option goes is decided from its text, never from a group's shares, because a question is
identified by its text and options and every site must arrive at the same identity on its own.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field

from fedalign.data.schema import Distribution, Question

_REMARK = re.compile(r"[(\[](vol|volunteered|do not read|spontaneous)\.?[)\]]", re.IGNORECASE)
_TOTAL = re.compile(r"total\s+\(?n\)?\s*=.*")
_MISSING = re.compile(r"(other )?missing(\s*[;:].*)?|inap(plicable)?\b.*|not applicable|not asked\b.*")
_DONT_KNOW = {"dk", "don't know", "dont know", "do not know", "not sure", "unsure", "can't say", "cannot say"}
_REFUSED = {"ref", "refuse", "refused", "refusal", "prefer not to say", "prefer not to answer"}
_REFUSAL_PARTS = _DONT_KNOW | _REFUSED | {"na", "no answer", "no response"}


@dataclass(frozen=True)
class Cleaning:
    """Which artefacts are removed.

    Parameters
    ----------
    whitespace : bool
        Strip questions and options and turn runs of white space into one space.
    totals : bool
        Remove column totals such as ``"Total    N="`` and give the other options the whole mass.
    refusals : bool
        Remove "don't know", "refused", "no answer" and their combinations. "Hard to say", "Neither",
        "Both (VOL)" and the like stay: they are answers.
    missing : bool
        Remove codes of the data file: ``"Missing; ..."``, ``"Other missing; ..."``, ``"INAP: ..."``,
        ``"Not applicable"``.
    min_mass : float in (0, 1]
        An answer is dropped if the options that stay hold less than this share of it (totals not counted).
    """

    whitespace: bool
    totals: bool
    refusals: bool
    missing: bool
    min_mass: Annotated[float, Field(gt=0.0, le=1.0)]


@dataclass(frozen=True)
class CleanedQuestion:
    """What cleaning made of one raw question, ready to be applied to any group's shares.

    Parameters
    ----------
    question : Question or None
        None if fewer than two options are left.
    kept : int array
        Indices of the raw options that stay.
    not_total : int array
        Indices of the raw options that are no column totals.
    removed : mapping from rule to count
        How many options each rule removed.
    """

    question: Question | None
    kept: npt.NDArray[np.intp]
    not_total: npt.NDArray[np.intp]
    removed: Counter[str]


def is_total(option: str) -> bool:
    """Say whether an option is a column total."""
    return _TOTAL.fullmatch(_plain(option)) is not None


def is_refusal(option: str) -> bool:
    """Say whether an option only states that no answer was given: every part between / or , must say so."""
    return all(part.strip() in _REFUSAL_PARTS for part in re.split(r"/|,|;|\bor\b", _plain(option)))


def is_missing(option: str) -> bool:
    """Say whether an option is a code of the data file for an absent answer."""
    return _MISSING.fullmatch(_plain(option)) is not None


def clean_question(text: str, options: tuple[str, ...], rules: Cleaning) -> CleanedQuestion:
    """Apply the rules to one question.

    Parameters
    ----------
    text : str
    options : tuple of str
        As read.
    rules : Cleaning

    Returns
    -------
    CleanedQuestion
    """
    if rules.whitespace:
        text, options = " ".join(text.split()), tuple(" ".join(option.split()) for option in options)
    verdicts = [_rule_that_removes(option, rules) for option in options]
    kept = [i for i, rule in enumerate(verdicts) if rule is None]
    return CleanedQuestion(
        question=Question(text, tuple(options[i] for i in kept)) if len(kept) >= 2 else None,
        kept=np.array(kept, dtype=np.intp),
        not_total=np.array([i for i, rule in enumerate(verdicts) if rule != "total_option"], dtype=np.intp),
        removed=Counter(rule for rule in verdicts if rule is not None),
    )


def clean_shares(shares: Distribution, cleaned: CleanedQuestion, min_mass: float) -> Distribution | None:
    """Return one group's shares over the options that stay, renormalised; None if they hold less than ``min_mass``."""
    if len(cleaned.kept) == len(shares):
        return shares
    left = shares[cleaned.kept]
    mass = float(left.sum())
    if mass <= 0.0 or mass < min_mass * float(shares[cleaned.not_total].sum()):
        return None
    return left / mass


def _rule_that_removes(option: str, rules: Cleaning) -> str | None:
    if rules.totals and is_total(option):
        return "total_option"
    if rules.refusals and is_refusal(option):
        return "refusal_option"
    if rules.missing and is_missing(option):
        return "missing_option"
    return None


def _plain(option: str) -> str:
    return " ".join(_REMARK.sub(" ", option.replace("\u2019", "'")).casefold().split())
