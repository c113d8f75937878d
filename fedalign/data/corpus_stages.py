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

    Imitation learns from a user's demonstrations; of a user who has comparisons alone it imitates the preferred texts.
    A reward model learns from comparisons, reinforcement learning from every prompt. What a stage reads of a user
    depends on that user's examples alone.
    """
    demonstrators = {example.user for example in examples if example.rejected is None}

    def fits(example: Example, stage: str) -> bool:
        if stage == REWARD:
            return example.rejected is not None
        return stage != SFT or example.user not in demonstrators or example.rejected is None

    return {stage: [example for example in examples if fits(example, stage)] for stage in stages}


def assign(
    readers: Mapping[str, Sequence[Example]], shares: Shares, disjoint: bool, streams: Streams
) -> dict[str, tuple[str, ...]]:
    """Return which stages each user serves: by a coin of the user's own, so that nobody's stage depends on others.

    Parallel composition needs that: with a quota for every stage, a user who leaves would move others to another
    stage, and both stages would tell of it. Stages therefore have their shares of the users in expectation only.

    Parameters
    ----------
    readers : mapping from stage to sequence of Example
        What each stage can learn from; see ``readable``.
    shares : Shares
        Among the stages that can learn from a user, in proportion to these.
    disjoint : bool
        Whether every user serves exactly one stage; if not, all that can learn from the user.
    streams : Streams

    Returns
    -------
    dict from user to tuple of str
        Sorted by user.

    Raises
    ------
    UserError
        If a stage finds nobody.
    """
    able = {stage: {example.user for example in examples} for stage, examples in readers.items()}
    for stage in shares.served:
        if not able[stage]:
            raise UserError(
                f"partition.shares.{stage}={shares.served[stage]:g}: the data hold no {_needed(stage)}; set it to 0 "
                "and raise the others"
            )
    everybody = sorted(set().union(*able.values()))
    if not disjoint:
        return {user: tuple(stage for stage in able if user in able[stage]) for user in everybody}
    assigned: dict[str, tuple[str, ...]] = {user: (_drawn(user, able, shares, streams),) for user in everybody}
    for stage in shares.served:
        if (stage,) not in assigned.values():
            raise UserError(
                f"partition.shares.{stage}={shares.served[stage]:g}: none of {len(everybody)} users came to serve it; "
                "raise it, take more users, or set partition.disjoint=false"
            )
    return assigned


def _drawn(user: str, able: Mapping[str, set[str]], shares: Shares, streams: Streams) -> str:
    """Return the stage that a user's coin says, out of those that can learn from the user."""
    fitting = [(stage, share) for stage, share in shares.served.items() if user in able[stage]]
    coin = float(streams.at(client=user).numpy("partition/stage").random()) * sum(share for _, share in fitting)
    for stage, share in fitting:
        coin -= share
        if coin < 0:
            return stage
    return fitting[-1][0]


def _needed(stage: str) -> str:
    return _NEEDED.get(stage, "texts")
