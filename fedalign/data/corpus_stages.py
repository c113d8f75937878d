"""Which stage of alignment reads which users: every user serves one stage, or all of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from fedalign.data.corpus import REWARD, SFT, STAGES, Example
from fedalign.errors import UserError
from fedalign.rng import Streams

Share = Annotated[float, Field(ge=0.0, le=1.0)]

_SUM_TOLERANCE = 0.01
_NEEDED = {SFT: "demonstrations (texts without a rejected one)", REWARD: "comparisons (texts with a rejected one)"}


@dataclass(frozen=True)
class Shares:
    """Share of the users that each stage reads; they sum to 1, and a stage with none of them is not served.

    Parameters
    ----------
    sft, reward, rl : float
    """

    sft: Share
    reward: Share
    rl: Share

    def __post_init__(self) -> None:
        total = sum(dataclasses.astuple(self))
        if abs(total - 1.0) > _SUM_TOLERANCE:
            raise UserError(f"partition.shares={dataclasses.asdict(self)}: they sum to {total:g}; make them sum to 1")

    @property
    def served(self) -> dict[str, float]:
        """Stages with a share, in their order."""
        return {stage: getattr(self, stage) for stage in STAGES if getattr(self, stage) > 0.0}


def readable(examples: Sequence[Example], stages: Sequence[str]) -> dict[str, list[Example]]:
    """Return, for each stage, which of a corpus' training examples it can learn from.

    Imitation learns from demonstrations; in a corpus of comparisons alone it imitates the preferred texts. A reward
    model learns from comparisons, reinforcement learning from every prompt.
    """
    demonstrated = any(example.rejected is None for example in examples)

    def fits(example: Example, stage: str) -> bool:
        if stage == REWARD:
            return example.rejected is not None
        return stage != SFT or not demonstrated or example.rejected is None

    return {stage: [example for example in examples if fits(example, stage)] for stage in stages}


def assign(
    readers: Mapping[str, Sequence[Example]], shares: Shares, disjoint: bool, streams: Streams
) -> dict[str, tuple[str, ...]]:
    """Return which stages each user serves.

    Parameters
    ----------
    readers : mapping from stage to sequence of Example
        What each stage can learn from; see ``readable``.
    shares : Shares
    disjoint : bool
        Whether every user serves exactly one stage; if not, all that can learn from the user.
    streams : Streams

    Returns
    -------
    dict from user to tuple of str
        In random order, users of the same stages next to one another.

    Raises
    ------
    UserError
        If a stage finds too few users that it can learn from.
    """
    able = {stage: {example.user for example in examples} for stage, examples in readers.items()}
    for stage in shares.served:
        if not able[stage]:
            raise UserError(
                f"partition.shares.{stage}={shares.served[stage]:g}: the data hold no {_needed(stage)}; set it to 0 "
                "and raise the others"
            )
    everybody = sorted(set().union(*able.values()))
    order = [everybody[i] for i in streams.numpy("partition/stages").permutation(len(everybody))]
    if not disjoint:
        return {user: tuple(stage for stage in able if user in able[stage]) for user in order}
    return _one_stage_each(order, able, shares)


def _one_stage_each(order: Sequence[str], able: Mapping[str, set[str]], shares: Shares) -> dict[str, tuple[str, ...]]:
    """Return one stage for each user; users who can serve few stages are taken first, so that quotas are met."""
    free = sorted(order, key=lambda user: sum(user in users for users in able.values()))
    wanted = quotas(len(order), shares.served)
    assigned: dict[str, tuple[str, ...]] = {}
    # The stages that cannot learn from everybody choose first.
    for stage in sorted(wanted, key=lambda stage: len(able[stage])):
        chosen = [user for user in free if user in able[stage]][: wanted[stage]]
        if len(chosen) < wanted[stage]:
            raise UserError(
                f"partition.shares.{stage}={shares.served[stage]:g}: {wanted[stage]} of {len(order)} users are to "
                f"serve it, and {len(chosen)} of them have {_needed(stage)}; lower it to "
                f"{int(100 * len(chosen) / len(order)) / 100:g} or less and raise the others"
            )
        assigned |= dict.fromkeys(chosen, (stage,))
        taken = set(chosen)
        free = [user for user in free if user not in taken]
    rank = {user: i for i, user in enumerate(order)}
    return dict(sorted(assigned.items(), key=lambda item: (STAGES.index(item[1][0]), rank[item[0]])))


def quotas(n: int, shares: Mapping[str, float]) -> dict[str, int]:
    """Return how many of n users each stage gets: the nearest to the shares that sums to n, but one at least.

    Raises
    ------
    UserError
        If there are fewer users than stages.
    """
    if n < len(shares):
        raise UserError(
            f"partition.disjoint=true: {len(shares)} stages ({', '.join(shares)}) need a user each, the data have {n}; "
            "set partition.disjoint=false, or the share of a stage to 0"
        )
    total = sum(shares.values())
    exact = {stage: n * share / total for stage, share in shares.items()}
    counts = {stage: int(value) for stage, value in exact.items()}
    by_remainder = sorted(exact, key=lambda stage: counts[stage] - exact[stage])
    for stage in by_remainder[: n - sum(counts.values())]:
        counts[stage] += 1
    for stage in counts:
        if not counts[stage]:
            counts[max(counts, key=lambda other: counts[other])] -= 1
            counts[stage] = 1
    return counts


def _needed(stage: str) -> str:
    return _NEEDED.get(stage, "texts")
