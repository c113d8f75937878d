"""What the server is told of a failure: what to change, and nothing of the data."""

from __future__ import annotations

import weakref
from pathlib import Path

import pytest
import torch

from fedalign.contribution import Contribution
from fedalign.errors import DataError, UserError
from fedalign.federation.failures import FULL, failure_of

from .test_batching import Node, Side


@pytest.mark.parametrize("guarded", [True, False])
def test_a_full_gpu_is_told_with_what_to_change(guarded: bool) -> None:
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    assert failure_of("ada", error, guarded) == f"OutOfMemoryError: {FULL}"
    for setting in ("engine.gpus_per_worker", "engine.workers", "model.dtype"):
        assert setting in FULL


@pytest.mark.parametrize(
    ("error", "open_text", "guarded_text"),
    [
        (ValueError("Ada said no"), "ValueError: Ada said no", "ValueError"),
        (UserError("lower the lr"), "UserError: lower the lr", "UserError: lower the lr"),
        (DataError("Ada said no"), "DataError: Ada said no", "DataError"),
    ],
)
def test_the_text_of_an_error_leaves_only_where_it_may(error: Exception, open_text: str, guarded_text: str) -> None:
    assert failure_of("ada", error, guarded=False) == open_text
    assert failure_of("ada", error, guarded=True) == guarded_text


class Activations:
    """What a client has in memory when there is no more."""


def test_a_client_that_ran_out_of_memory_leaves_it_to_the_next(tmp_path: Path) -> None:
    held: list[weakref.ref[Activations]] = []
    alive: list[bool] = []

    def tell(client: str, told: Contribution) -> Contribution:
        alive.append(bool(held) and held[0]() is not None)
        if client == "b":
            large = Activations()
            held.append(weakref.ref(large))
            try:
                raise ArithmeticError(large)
            except ArithmeticError as error:
                raise torch.OutOfMemoryError("CUDA out of memory") from error
        return told

    _, report = Node(tmp_path, Side(tell=tell), None).ask()
    assert report.failures == (("b", f"OutOfMemoryError: {FULL}"),)
    assert report.clients == tuple("acdef")
    assert alive == [False] * 6
    assert held[0]() is None
