"""Law 7: every draw comes from a stream of (seed, purpose, phase, round, client), never from a global generator."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from fedalign.rng import Streams

from .conftest import Runner


def test_a_run_touches_no_global_generator(run: Runner) -> None:
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    run("one")
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), before[2])


@pytest.mark.slow
def test_a_global_seed_changes_nothing(run: Runner) -> None:
    torch.manual_seed(1)
    first = run("one").summary.metrics
    torch.manual_seed(2)
    assert run("two").summary.metrics == first


def test_streams_differ_in_every_coordinate() -> None:
    places = itertools.product((0, 1), ("", "a"), (0, 1), ("", "x"), ("draw", "init"))
    seeds = {Streams(s, p, r, c).integer(purpose) for s, p, r, c, purpose in places}
    assert len(seeds) == 2**5


def test_neighbouring_names_do_not_run_together() -> None:
    assert Streams(1, "ab", 0, "c").integer("x") != Streams(1, "a", 0, "bc").integer("x")


def test_streams_are_the_same_in_another_process() -> None:
    code = "from fedalign.rng import Streams; print(Streams(5, 'gpo', 3, 'Nigeria').integer('episodes'))"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": h}
        ).stdout.strip()
        for h in ("1", "2")
    }
    assert outputs == {str(Streams(5, "gpo", 3, "Nigeria").integer("episodes"))}
