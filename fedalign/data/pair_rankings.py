"""Any source of pairs as rankings of two responses: the chosen one is in the first tier, the other in the second."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from fedalign.data.pairs import Pair, PairSource
from fedalign.data.rankings import Ranking, RankingSet, RankingSource
from fedalign.errors import UserError
from fedalign.rng import Streams


@dataclass(frozen=True)
class PairRankings(RankingSource):
    """The pairs of a source, with its annotators and groups; ties say nothing and are dropped (``all_tied``).

    Parameters
    ----------
    name : str
    path : str or None
        Where the pairs are; the config hands it to the source.
    prompt_tail : int
        How many characters of a prompt's end the encoder reads; the config hands it to the source.
    source : PairSource
    types_from_groups : bool
        Whether an annotator's group is the true type, as in worlds where groups are what people want.
    """

    name: str
    path: str | None
    prompt_tail: Annotated[int, Field(ge=1)]
    source: PairSource
    types_from_groups: bool

    def load(self, streams: Streams) -> RankingSet:
        """Load the source and make a ranking of every pair that is no tie.

        Raises
        ------
        UserError
            If the source's data are missing or malformed, all pairs are ties, or groups are to be types and an
            annotator has several.
        """
        found = self.source.load(streams)
        rankings = [_ranking(pair) for pair in found.pairs if not pair.tie]
        if not rankings:
            raise UserError(f"data={self.name}: all {len(found.pairs)} pairs are ties, which say nothing of an order")
        dropped = Counter(found.dropped) + Counter(all_tied=len(found.pairs) - len(rankings))
        return RankingSet(rankings, dict(dropped), _types(rankings) if self.types_from_groups else {})


def _ranking(pair: Pair) -> Ranking:
    """Return a pair with its responses in the order of their texts, so that their places do not tell the choice."""
    tiers = {pair.chosen: 0, pair.rejected: 1}
    responses = tuple(sorted(tiers))
    return Ranking(
        pair.prompt,
        responses,
        tuple(tiers[response] for response in responses),
        pair.split,
        pair.group,
        pair.annotator,
    )


def _types(rankings: Iterable[Ranking]) -> Mapping[str, str]:
    types: dict[str, str] = {}
    for ranking in rankings:
        if ranking.annotator is None:
            continue
        known = types.setdefault(ranking.annotator, ranking.group)
        if known != ranking.group:
            raise UserError(
                f"data.types_from_groups=true: annotator {ranking.annotator!r} has judgments of the groups {known!r} "
                f"and {ranking.group!r}, so a group is not a type; set it to false"
            )
    return types
