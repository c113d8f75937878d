"""Pairs as read, one by one, become a checked set: what cannot be used is dropped and counted."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from fedalign.data.pairs import Pair, PairSet, Split
from fedalign.errors import UserError

Ties = Literal["keep", "drop"]


@dataclass(frozen=True)
class PairRow:
    """One judgment as read; fields as in ``Pair``, but texts may be empty or the same.

    Parameters
    ----------
    prompt, chosen, rejected, group : str
    annotator : str or None
    split : {"train", "test"} or None
        None where the data do not say.
    tie : bool
    """

    prompt: str
    chosen: str
    rejected: str
    group: str
    annotator: str | None = None
    split: Split | None = None
    tie: bool = False


def split_of(prompt: str, test_fraction: float) -> Split:
    """Return the split of a prompt by its hash, so that no prompt is on both sides and all sites agree."""
    number = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:8], "big")
    return "test" if number < test_fraction * 2**64 else "train"


def clean_pairs(
    rows: Iterable[PairRow], test_fraction: float, ties: Ties, dropped: Mapping[str, int] | None = None
) -> PairSet:
    """Drop what cannot be used, count it, and split what is left.

    ================= =================================================================================
    count             what was dropped
    ================= =================================================================================
    prompt_empty      judgments whose prompt holds no text
    response_empty    judgments one of whose responses holds no text
    responses_equal   judgments whose two responses are the same, but for white space at the ends
    tie               judgments without a preference, if ``ties`` says so
    judgment_repeated the same judgment by the same annotator (or by nobody known), after the first
    ================= =================================================================================

    Parameters
    ----------
    rows : iterable of PairRow
        In file order.
    test_fraction : float
        Share of the prompts whose judgments are held out, for rows without a split.
    ties : "keep" or "drop"
    dropped : mapping from rule to count, optional
        What the reader itself has dropped; complete only when ``rows`` has ended.

    Returns
    -------
    PairSet

    Raises
    ------
    UserError
        If nothing is left.
    """
    counts: Counter[str] = Counter()
    pairs: list[Pair] = []
    seen: set[tuple[str | None, str, str, str, str, bool]] = set()
    for row in rows:
        key = (row.annotator, row.group, row.prompt, row.chosen, row.rejected, row.tie)
        reason = _reason_to_drop(row, ties) or ("judgment_repeated" if key in seen else None)
        if reason is not None:
            counts[reason] += 1
            continue
        seen.add(key)
        split = row.split or split_of(row.prompt, test_fraction)
        pairs.append(Pair(row.prompt, row.chosen, row.rejected, split, row.group, row.annotator, row.tie))
    counts.update(dropped or {})
    if not pairs:
        raise UserError(
            f"data: no usable pair is left; removed so far: {dict(counts) or 'nothing, the input is empty'}"
        )
    return PairSet(pairs, dict(counts))


def _reason_to_drop(row: PairRow, ties: Ties) -> str | None:
    if not row.prompt.strip():
        return "prompt_empty"
    if not row.chosen.strip() or not row.rejected.strip():
        return "response_empty"
    if row.chosen.strip() == row.rejected.strip():
        return "responses_equal"
    return "tie" if row.tie and ties == "drop" else None
