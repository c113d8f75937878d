"""A partition with many small clients of one group each: a group's answers are split at random into sub-samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import Field

from fedalign.data.partition import Answers, GroupPartition, HeldOut
from fedalign.data.schema import ClientAnswers, Role
from fedalign.rng import Streams


@dataclass(frozen=True)
class Subsamples(GroupPartition):
    """Each training group's answered questions are dealt at random to clients with ``questions`` each.

    This gives a federation of many clients out of a survey of few groups. Sub-samples of a group are disjoint and
    together hold every answer once. What is left over after dealing goes to the group's clients in turn, so
    a client may have a few questions more; a group too small for one sub-sample is a client by itself.

    A group is on many clients. A privacy guarantee for a client is one for a sub-sample; it is none for a group.

    Parameters
    ----------
    questions : int
        Training questions of a client, at least.
    """

    questions: Annotated[int, Field(ge=2)]

    def lay_out(self, answers: Answers, held_out: HeldOut, streams: Streams) -> list[ClientAnswers]:
        """Return each group's clients, named after it and numbered from 1; held-out questions are dealt like others."""
        return [client for group in answers for client in self._clients(group, answers, held_out[group], streams)]

    def _clients(self, group: str, answers: Answers, held_out: frozenset[str], streams: Streams) -> list[ClientAnswers]:
        generator = streams.at(client=group).numpy("partition/subsamples")
        order = list(answers[group])
        shuffled = [order[i] for i in generator.permutation(len(order))]
        train = [question for question in shuffled if question not in held_out]
        test = [question for question in shuffled if question in held_out]
        count = max(1, len(train) // self.questions)
        parts = zip(np.array_split(train, count), np.array_split(test, count)[::-1], strict=True)
        return [
            _client(f"{group} {number:02d}", group, answers, frozenset(own.tolist()), frozenset(hidden.tolist()))
            for number, (own, hidden) in enumerate(parts, start=1)
        ]


def _client(name: str, group: str, answers: Answers, train: frozenset[str], test: frozenset[str]) -> ClientAnswers:
    own = {question: shares for question, shares in answers[group].items() if question in train or question in test}
    return ClientAnswers(name, Role.TRAIN, {group: own}, {group: test})
