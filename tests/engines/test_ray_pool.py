"""What is said of workers that cannot open the data, and which of them are started again; without Ray's processes."""

from __future__ import annotations

import contextlib
import os
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fedalign.errors import RunFailed

pytest.importorskip("ray")
from fedalign.engines.ray_exchange import Died
from fedalign.engines.ray_pool import RayPool
from fedalign.engines.ray_worker import leave_broken_device

FULL = "UserError: model=gpt2: cannot be loaded on cuda (CUDA out of memory)"


def pool(gpus: float = 0.5, retries: int = 2) -> Any:
    """Return a pool without workers, and what it starts again."""
    made: Any = object.__new__(RayPool)
    made._sees_gpus, made._opens, made._retries, made.again = gpus > 0, False, retries, []
    made._reseat = made.again.append
    return made


def seat() -> Any:
    return SimpleNamespace(started=SimpleNamespace(host="here"), opening="handle", failures=0)


def test_the_first_that_cannot_open_the_data_ends_the_run() -> None:
    with pytest.raises(RunFailed, match=r"^a worker on here cannot open the run's data: .*memory\)$"):
        pool()._opened(seat(), FULL)


def test_where_workers_see_no_gpu_the_setting_is_named() -> None:
    with pytest.raises(RunFailed, match=r"set engine\.gpus_per_worker$"):
        pool(gpus=0)._opened(seat(), "UserError: model=gpt2: cannot be loaded on cuda (No CUDA GPUs are available)")
    with pytest.raises(RunFailed, match=r"answers\.jsonl$"):
        pool(gpus=0)._opened(seat(), "FileNotFoundError: answers.jsonl")


def test_one_that_comes_after_others_were_ready_is_started_again_a_few_times() -> None:
    own, late = pool(), seat()
    assert own._opened(seat(), None) == []
    for number in (1, 2):
        (event,) = own._opened(late, FULL)
        assert event == Died(event.reason, None, ())
        assert FULL in event.reason
        assert own.again == [late] * number
    with pytest.raises(RunFailed, match="out of memory"):
        own._opened(late, FULL)
    late.failures = 2
    assert own._opened(late, None) == []
    assert late.failures == 0


class Left(BaseException):
    """The process would have ended."""


@pytest.mark.parametrize("started", [True, False])
def test_a_worker_whose_gpu_answers_nothing_ends(
    started: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    def leave(code: int) -> None:
        assert code
        raise Left

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: started)
    monkeypatch.setattr(torch.cuda, "synchronize", broken)
    monkeypatch.setattr(os, "_exit", leave)
    with pytest.raises(Left) if started else contextlib.nullcontext():
        leave_broken_device()
    assert ("device-side assert" in capsys.readouterr().err) == started
