"""Which stage of alignment reads which users: every user serves one stage, or all of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from fedalign.data.corpus import REWARD, SFT, STAGES, Example
from fedalign.errors import UserError
from fedalign.rng import Streams

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Imitate = Literal["demonstrations", "preferred"]

_SUM_TOLERANCE = 0.01


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


def readable(examples: Sequence[Example], stages: Sequence[str], imitate: Imitate) -> dict[str, list[Example]]:
    """Return, for each stage, which of a corpus' training examples it can learn from.

    A reward model learns from comparisons, reinforcement learning from every prompt. Whether a stage can learn from an
    example depends on that example alone, which a guarantee for single examples needs.

    Parameters
    ----------
    examples : sequence of Example
    stages : sequence of str
    imitate : {"demonstrations", "preferred"}
        What imitation reads: examples without a rejected text, or the responses of all examples.

    Raises
    ------
    UserError
        If imitation is to read demonstrations and there are none.
    """

    def fits(example: Example, stage: str) -> bool:
        if stage == REWARD:
            return example.rejected is not None
        return stage != SFT or imitate == "preferred" or example.rejected is None

    found = {stage: [example for example in examples if fits(example, stage)] for stage in stages}
    if examples and not found.get(SFT, examples):
        raise UserError(
            f"partition.imitate={imitate}: the data hold no texts without a rejected one; set "
            "partition.imitate=preferred to imitate the preferred ones"
        )
    return found


def assign(
    readers: Mapping[str, Sequence[Example]], shares: Shares, disjoint: bool, streams: Streams
) -> dict[str, tuple[str, ...]]:
    """Return which stages each user serves: by a coin of the user's name, so that no stage depends on anybody's texts.

    Parallel composition needs that: with a quota for every stage, a user who leaves would move others to another
    stage, and both stages would tell of it; were the coin for the stages that fit a user's texts, a single text would
    move that user's others. Stages therefore have their shares of the users in expectation only, and a user from whom
    the stage drawn cannot learn serves none.

    Parameters
    ----------
    readers : mapping from stage to sequence of Example
        What each stage can learn from; see ``readable``.
    shares : Shares
        How likely a user is to serve each stage.
    disjoint : bool
        Whether a user serves one stage at most; if not, all that can learn from the user.
    streams : Streams

    Returns
    -------
    dict from user to tuple of str
        Sorted by user; without those who serve none.

    Raises
    ------
    UserError
        If a stage finds nobody.
    """
    able = {stage: {example.user for example in examples} for stage, examples in readers.items()}
    for stage in shares.served:
        if not able[stage]:
            needed = "comparisons (texts with a rejected one)" if stage == REWARD else "training texts"
            raise UserError(
                f"partition.shares.{stage}={shares.served[stage]:g}: the data hold no {needed}; set it to 0 "
                "and raise the others"
            )
    everybody = sorted(set().union(*able.values()))
    offered = {user: [_drawn(user, shares, streams)] if disjoint else list(able) for user in everybody}
    fitting = {user: tuple(stage for stage in offered[user] if user in able[stage]) for user in everybody}
    assigned = {user: stages for user, stages in fitting.items() if stages}
    for stage in shares.served:
        if not any(stage in stages for stages in assigned.values()):
            raise UserError(
                f"partition.shares.{stage}={shares.served[stage]:g}: none of {len(everybody)} users came to serve it; "
                "raise it, take more users, or set partition.disjoint=false"
            )
    return assigned


def _drawn(user: str, shares: Shares, streams: Streams) -> str:
    """Return the stage that a user's coin says; only the name, the shares and the seed decide."""
    served = list(shares.served.items())
    coin = float(streams.at(client=user).numpy("partition/stage").random()) * sum(share for _, share in served)
    for stage, share in served:
        coin -= share
        if coin < 0:
            return stage
    return served[-1][0]
