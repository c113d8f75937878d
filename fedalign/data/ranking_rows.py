"""Rankings as read, one by one, become a checked set: what cannot be used is dropped and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fedalign.data.pair_rows import split_of
from fedalign.data.ranking_forms import MOST_ORDERS, agreeing_orders
from fedalign.data.rankings import Ranking, RankingSet, Split
from fedalign.errors import UserError

GROUP = "all"
"""Group of judgments that belong to none."""


@dataclass(frozen=True)
class RankingRow:
    """One judgment as read; fields as in ``Ranking``, but texts may be empty or the same.

    Parameters
    ----------
    prompt : str
    responses : tuple of str, length S
    ranks : tuple of (float or None), length S
        Less is better and equal is a tie; any numbers will do. None is a response that was not ranked.
    group : str
    annotator : str or None
    split : {"train", "test"} or None
        None where the data do not say.
    """

    prompt: str
    responses: tuple[str, ...]
    ranks: tuple[float | None, ...]
    group: str = GROUP
    annotator: str | None = None
    split: Split | None = None


def tiers_of(ranks: Sequence[float | None]) -> tuple[int, ...]:
    """Return ranks as tiers without gaps, 0 the best; what has no rank is together in one more tier, the last."""
    place: dict[float | None, int] = {
        rank: tier for tier, rank in enumerate(sorted({rank for rank in ranks if rank is not None}))
    }
    place[None] = len(place)
    return tuple(place[rank] for rank in ranks)


def clean_rankings(
    rows: Iterable[RankingRow], test_fraction: float, dropped: Mapping[str, int] | None = None
) -> RankingSet:
    """Drop what cannot be used, count it, and split what is left.

    Responses, which are taken out of their judgment; by Luce's axiom what is left is a judgment of what is left:

    ================== ================================================================================
    count              responses that were taken out
    ================== ================================================================================
    response_empty     responses that hold no text
    response_merged    responses that their judgment holds twice, with the same rank; one of them stays
    ================== ================================================================================

    Judgments:

    ================== ================================================================================
    count              judgments that were dropped
    ================== ================================================================================
    prompt_empty       the prompt holds no text
    responses_few      fewer than two responses are left
    responses_repeated the same response, but for white space at the ends, has two ranks
    unranked           no response that is left has a rank
    all_tied           all responses that are left tie
    ties_many          more than ``MOST_ORDERS`` orders agree: eight tie above the last tier, say
    judgment_repeated  the same judgment by the same annotator (or by nobody known), after the first
    ================== ================================================================================

    Parameters
    ----------
    rows : iterable of RankingRow
        In file order.
    test_fraction : float
        Share of the prompts whose judgments are held out, for rows without a split.
    dropped : mapping from rule to count, optional
        What the reader itself has dropped; complete only when ``rows`` has ended.

    Returns
    -------
    RankingSet
        Without types and without a probe.

    Raises
    ------
    UserError
        If nothing is left.
    """
    counts: Counter[str] = Counter()
    kept: list[Ranking] = []
    seen: set[tuple[str | None, str, str, frozenset[tuple[str, int]]]] = set()
    for row in rows:
        ranked = _usable(row, counts)
        responses = tuple(response for response, _ in ranked)
        tiers = tiers_of([rank for _, rank in ranked])
        key = (row.annotator, row.group, row.prompt, frozenset(zip(responses, tiers, strict=True)))
        reason = _reason_to_drop(row, ranked, tiers) or ("judgment_repeated" if key in seen else None)
        if reason is not None:
            counts[reason] += 1
            continue
        seen.add(key)
        split = row.split or split_of(row.prompt, test_fraction)
        kept.append(Ranking(row.prompt, responses, tiers, split, row.group, row.annotator))
    counts.update(dropped or {})
    if not kept:
        raise UserError(
            f"data: no usable ranking is left; removed so far: {dict(+counts) or 'nothing, the input is empty'}"
        )
    return RankingSet(kept, dict(+counts))


def _usable(row: RankingRow, counts: Counter[str]) -> list[tuple[str, float | None]]:
    """Return the responses that hold text with their ranks, each such pair once, and count the others."""
    kept: dict[tuple[str, float | None], str] = {}
    for response, rank in zip(row.responses, row.ranks, strict=True):
        if not response.strip():
            counts["response_empty"] += 1
        elif (response.strip(), rank) in kept:
            counts["response_merged"] += 1
        else:
            kept[response.strip(), rank] = response
    return [(response, rank) for (_, rank), response in kept.items()]


def _reason_to_drop(row: RankingRow, ranked: Sequence[tuple[str, float | None]], tiers: tuple[int, ...]) -> str | None:
    if not row.prompt.strip():
        return "prompt_empty"
    if len(ranked) < 2:
        return "responses_few"
    if len({response.strip() for response, _ in ranked}) < len(ranked):
        return "responses_repeated"
    ranks = {rank for _, rank in ranked}
    if ranks == {None}:
        return "unranked"
    if len(ranks) == 1:
        return "all_tied"
    return "ties_many" if agreeing_orders(tiers) > MOST_ORDERS else None
