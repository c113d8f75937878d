"""Who judged: the annotators of a set of rankings, or people made up where the data name nobody."""

from __future__ import annotations

from collections.abc import Sequence

from fedalign.data.rankings import Annotator, Ranking, RankingSet, Split
from fedalign.errors import UserError
from fedalign.rng import Streams

_SPLITS: tuple[Split, ...] = ("train", "test")


def people_of(rankings: RankingSet) -> list[Annotator]:
    """Return everybody who judged with all judgments in file order, by first appearance.

    Raises
    ------
    UserError
        If a judgment does not say who judged.
    """
    unknown = sum(ranking.annotator is None for ranking in rankings.rankings)
    if unknown:
        fix = (
            "take partition=annotator_silos, which makes people up, or give every judgment an annotator"
            if unknown == len(rankings.rankings)
            else "give every judgment an annotator, or none, and take partition=annotator_silos"
        )
        raise UserError(f"partition: {unknown} of {len(rankings.rankings)} judgments do not say who judged; {fix}")
    own: dict[str, list[Ranking]] = {}
    for ranking in rankings.rankings:
        own.setdefault(str(ranking.annotator), []).append(ranking)
    return [
        Annotator(name, rankings.types.get(name), tuple(judged), tuple(rankings.answers.get(name, ())))
        for name, judged in own.items()
    ]


def invent(rankings: Sequence[Ranking], per_person: int, streams: Streams) -> list[Annotator]:
    """Return made-up people called person-00001, ... to whom judgments of one group are dealt at random.

    Parameters
    ----------
    rankings : sequence of Ranking
        In file order.
    per_person : int
        How many training judgments a person has, at least: what is left over goes to the group's people in turn, and
        so do its held-out judgments. A group with fewer is one person.
    streams : Streams
    """
    people: list[Annotator] = []
    for group in sorted({ranking.group for ranking in rankings}):
        own = {split: [r for r in rankings if r.group == group and r.split == split] for split in _SPLITS}
        count = max(1, len(own["train"]) // per_person)
        hands: list[list[Ranking]] = [[] for _ in range(count)]
        for split, judged in own.items():
            order = streams.numpy(f"partition/people/{split}/{group}").permutation(len(judged))
            for place, i in enumerate(order):
                hands[place % count].append(judged[i])
        people += [Annotator(f"person-{len(people) + i:05d}", None, tuple(hand)) for i, hand in enumerate(hands, 1)]
    return people
