"""Partitions whose training clients mix groups: at random, or in proportions drawn from a Dirichlet distribution."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated

from datasets import Dataset
from flwr_datasets.partitioner import DirichletPartitioner, IidPartitioner, Partitioner
from pydantic import Field

from fedalign.data.partition import Answers, GroupPartition, HeldOut
from fedalign.data.schema import ClientAnswers, Role
from fedalign.errors import UserError
from fedalign.rng import Streams

_Row = tuple[str, str]
"""Group and question id."""

_SMALLEST_CELL = 2  # training questions of one group on one client: one to see and one to predict


@dataclass(frozen=True)
class MixedPartition(GroupPartition):
    """What the mixed partitions share: every answer is a row, Flower's partitioner deals the rows to clients.

    A group of which a client got fewer than two training questions could not be learnt from there; those few go
    to the client that holds most of that group.

    Parameters
    ----------
    clients : int
        Number of training clients, called ``client-01``, ``client-02``, ...
    """

    clients: Annotated[int, Field(ge=1)]

    @abstractmethod
    def partitioner(self, seed: int) -> Partitioner:
        """Return the partitioner that deals rows with the columns ``row`` and ``group``."""

    def lay_out(self, answers: Answers, held_out: HeldOut, streams: Streams) -> list[ClientAnswers]:
        """Return the training clients.

        Raises
        ------
        UserError
            If there are more clients than answers, or a client would get fewer than ``min_questions`` answers.
        """
        rows = [(group, question) for group, own in answers.items() for question in own]
        if len(rows) < self.clients * self.min_questions:
            raise UserError(
                f"partition.clients={self.clients}: {len(rows)} answers do not give every client "
                f"partition.min_questions={self.min_questions}; lower one of them"
            )
        # The partitioners cut runs of neighbouring rows, so the order must be random first.
        order = streams.numpy("partition/order").permutation(len(rows))
        dealt = self._deal([rows[i] for i in order], streams.integer("partition/deal"))
        cells = _merge_small_cells([_cells(own) for own in dealt], held_out)
        return [self._client(number, cell, answers, held_out) for number, cell in enumerate(cells, start=1)]

    def _deal(self, rows: list[_Row], seed: int) -> list[list[_Row]]:
        partitioner = self.partitioner(seed)
        partitioner.dataset = Dataset.from_dict({"row": list(range(len(rows))), "group": [group for group, _ in rows]})
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # each repeated draw warns at length
                return [[rows[i] for i in partitioner.load_partition(c)["row"]] for c in range(self.clients)]
        except ValueError as error:
            raise UserError(
                f"partition: no draw gave each of {self.clients} clients partition.min_questions={self.min_questions} "
                f"answers; raise partition.alpha or lower partition.clients ({str(error).splitlines()[0]})"
            ) from None

    def _client(self, number: int, cell: dict[str, set[str]], answers: Answers, held_out: HeldOut) -> ClientAnswers:
        own = {
            group: {question: shares for question, shares in answers[group].items() if question in cell[group]}
            for group in answers
            if cell.get(group)
        }
        test = {group: held_out[group] & cell[group] for group in own}
        return ClientAnswers(f"client-{number:02d}", Role.TRAIN, own, test)


@dataclass(frozen=True)
class IID(MixedPartition):
    """Every client holds an equal random part of all training groups' answers."""

    def partitioner(self, seed: int) -> Partitioner:
        """Return Flower's IID partitioner."""
        return IidPartitioner(num_partitions=self.clients)


@dataclass(frozen=True)
class Dirichlet(MixedPartition):
    """Each group's answers are spread over clients in proportions drawn from a Dirichlet distribution.

    Yurochkin et al. 2019 (arXiv 1905.12022), with groups in the place of class labels.

    Parameters
    ----------
    alpha : float
        Concentration: near 0 a group sits with few clients, large values approach IID.
    """

    alpha: Annotated[float, Field(gt=0.0)]

    def partitioner(self, seed: int) -> Partitioner:
        """Return Flower's Dirichlet partitioner."""
        return DirichletPartitioner(
            num_partitions=self.clients,
            partition_by="group",
            alpha=self.alpha,
            min_partition_size=self.min_questions,
            self_balancing=False,
            shuffle=False,
            seed=seed,
        )


def _cells(rows: list[_Row]) -> dict[str, set[str]]:
    cells: dict[str, set[str]] = {}
    for group, question in rows:
        cells.setdefault(group, set()).add(question)
    return cells


def _merge_small_cells(clients: list[dict[str, set[str]]], held_out: HeldOut) -> list[dict[str, set[str]]]:
    for group in {group: None for cells in clients for group in cells}:
        sizes = [len(cells.get(group, set()) - held_out[group]) for cells in clients]
        largest = clients[sizes.index(max(sizes))]
        for cells, size in zip(clients, sizes, strict=True):
            if size < _SMALLEST_CELL and cells is not largest:
                largest[group] |= cells.pop(group, set())
    return clients
