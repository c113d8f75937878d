"""Small surveys with random answers, made without any of the package's data sources."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from fedalign.data.schema import GroupJudgments, Role, SurveyShard

FEATURES = 6


def group(
    name: str, sizes: Sequence[int], seed: int, test: int = 0, ids: Sequence[str] | None = None
) -> GroupJudgments:
    """Return a group that answered one question a size; the last ``test`` questions are held out."""
    generator = np.random.default_rng(seed)
    shares = np.concatenate([generator.dirichlet(np.ones(size)) for size in sizes])
    questions = len(sizes)
    return GroupJudgments(
        group=name,
        question_ids=tuple(f"q{place}" for place in range(questions)) if ids is None else tuple(ids),
        offsets=torch.tensor([0, *np.cumsum(sizes)], dtype=torch.int64),
        features=torch.tensor(generator.normal(size=(sum(sizes), FEATURES)), dtype=torch.float32),
        shares=torch.tensor(shares, dtype=torch.float32),
        train=torch.arange(questions - test),
        test=torch.arange(questions - test, questions),
    )


def shard(*groups: GroupJudgments, client: str | None = None, role: Role = Role.TRAIN) -> SurveyShard:
    """Return a client that holds the groups, named after the first unless told."""
    return SurveyShard(groups[0].group if client is None else client, role, groups)


def answers(judgments: GroupJudgments) -> dict[str, np.ndarray]:
    """Return the shares of every question by its id."""
    pieces = np.split(judgments.shares.numpy(), judgments.offsets[1:-1].tolist())
    return dict(zip(judgments.question_ids, pieces, strict=True))
