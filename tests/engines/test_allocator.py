"""Freed memory stays with the process, unless the user or the C library says otherwise."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from fedalign.engines import allocator

ROUNDS = """
import resource, sys
import torch
from fedalign.engines.allocator import keep_freed_memory

def a_round():
    tensors = [torch.ones(500_000 * size) for size in range(1, 7)]
    return [tensor + 1 for tensor in tensors]

if sys.argv[1] == "keep":
    assert keep_freed_memory()
for _ in range(3):
    a_round()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    a_round()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

glibc = pytest.mark.skipif(allocator._mallopt() is None, reason="needs glibc")


def pages(how: str) -> int:
    """Return how many pages the system hands out in ten rounds of 84 MB each."""
    own = {name: value for name, value in os.environ.items() if name not in allocator._CHOSEN_BY_USER}
    done = subprocess.run([sys.executable, "-c", ROUNDS, how], env=own, capture_output=True, text=True, check=True)
    return int(done.stdout)


@glibc
def test_a_round_takes_the_memory_of_the_round_before() -> None:
    kept, usual = pages("keep"), pages("leave")
    assert usual > 10_000
    assert kept < usual / 5


@pytest.mark.parametrize("name", allocator._CHOSEN_BY_USER)
def test_thresholds_of_the_user_stay(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(allocator, "_mallopt", lambda: lambda *option: told.append(option) or 1)
    for chosen in allocator._CHOSEN_BY_USER:
        monkeypatch.delenv(chosen, raising=False)
    assert allocator.keep_freed_memory()
    assert len(told) == 2
    monkeypatch.setenv(name, "1")
    assert not allocator.keep_freed_memory()
    assert len(told) == 2


def test_elsewhere_nothing_is_asked_of_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not allocator.keep_freed_memory()
