"""A public probe as read: the same menus for everybody, and what each annotator answered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fedalign.data.ranking_rows import tiers_of
from fedalign.data.rankings import Menu, RankingSet
from fedalign.errors import UserError

_Key = tuple[str, frozenset[str]]


@dataclass(frozen=True)
class ProbeAnswer:
    """What one annotator answered to one menu.

    Parameters
    ----------
    where : str
        Where it stands, for error messages.
    annotator : str
    menu : Menu
        Its responses in the order in which the annotator saw them.
    ranks : tuple of (float or None)
        As in ``RankingRow``; all may tie.
    """

    where: str
    annotator: str
    menu: Menu
    ranks: tuple[float | None, ...]


def with_probe(rankings: RankingSet, answers: Sequence[ProbeAnswer]) -> RankingSet:
    """Return the rankings with their probe, without the judgments of its menus.

    A menu is its prompt and its responses, in the order of the first answer to it; other answers may have another
    order. The probe is public, so a judgment of one of its menus cannot be held out, nor learnt from as if it were
    private: it is dropped (``in_probe``).

    Raises
    ------
    UserError
        If a menu cannot be ranked, somebody answered one twice, or somebody who judged or answered left one out.
    """
    if not answers:
        return rankings
    menus: dict[_Key, Menu] = {}
    given: dict[str, dict[_Key, tuple[int, ...]]] = {}
    for answer in answers:
        key = _checked(answer)
        own = given.setdefault(answer.annotator, {})
        if key in own:
            raise UserError(
                f"{answer.where}: annotator {answer.annotator!r} answers this menu of the probe twice; remove a row"
            )
        ranks = dict(zip(answer.menu.responses, answer.ranks, strict=True))
        own[key] = tiers_of([ranks[response] for response in menus.setdefault(key, answer.menu).responses])
    kept = [r for r in rankings.rankings if (r.prompt, frozenset(r.responses)) not in menus]
    if not kept:
        raise UserError("data: all judgments are of menus of the probe; nothing is left to learn from")
    judges = dict.fromkeys(r.annotator for r in kept if r.annotator is not None)
    for person in [*judges, *given]:
        _refuse_gaps(person, given.get(person, {}), menus)
    public = len(rankings.rankings) - len(kept)
    return replace(
        rankings,
        rankings=kept,
        dropped=dict(Counter(rankings.dropped) + Counter(in_probe=public)),
        probe=list(menus.values()),
        answers={person: [own[key] for key in menus] for person, own in given.items()},
    )


def _checked(answer: ProbeAnswer) -> _Key:
    """Return what tells a menu from others."""
    texts = [answer.menu.prompt, *answer.menu.responses]
    if not all(text.strip() for text in texts):
        raise UserError(f"{answer.where}: a menu of the probe has an empty text; fill it in or remove the menu")
    responses = frozenset(answer.menu.responses)
    if len(responses) < len(answer.menu.responses):
        raise UserError(f"{answer.where}: a menu of the probe has the same response twice; remove one")
    return answer.menu.prompt, responses


def _refuse_gaps(person: str, own: Mapping[_Key, object], menus: Mapping[_Key, Menu]) -> None:
    missing = [menu for key, menu in menus.items() if key not in own]
    if missing:
        raise UserError(
            f"data: annotator {person!r} answered {len(own)} of {len(menus)} menus of the probe, and not "
            f"{missing[0].prompt[:40]!r}; everybody is asked the same: add the rows, or remove that annotator or menu"
        )
