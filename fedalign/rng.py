"""Random streams: every draw comes from (seed, purpose, phase, round, client), never from a global generator."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch


@dataclass(frozen=True)
class Streams:
    """A factory of independent random streams at one place of a run.

    Two streams are independent as soon as any of seed, purpose, phase, round or client differ,
    and the same five always give the same numbers, whichever engine, process or order asks.

    Parameters
    ----------
    seed : int
        The seed of the run.
    phase : str
        Name of the phase; empty outside a phase.
    round : int
        Round within the phase, from 1; 0 outside a round.
    client : str
        Name of the client; empty on the server.
    """

    seed: int
    phase: str = ""
    round: int = 0
    client: str = ""

    def at(self, *, phase: str | None = None, round: int | None = None, client: str | None = None) -> Streams:
        """Return the factory of another place of the same run."""
        return replace(
            self,
            phase=self.phase if phase is None else phase,
            round=self.round if round is None else round,
            client=self.client if client is None else client,
        )

    def integer(self, purpose: str) -> int:
        """Return a 63-bit seed for ``purpose`` at this place."""
        key = "\x1f".join([str(self.seed), purpose, self.phase, str(self.round), self.client])
        return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") >> 1

    def numpy(self, purpose: str) -> np.random.Generator:
        """Return a NumPy generator for ``purpose`` at this place."""
        return np.random.Generator(np.random.PCG64(self.integer(purpose)))

    def torch(self, purpose: str) -> torch.Generator:
        """Return a CPU PyTorch generator for ``purpose`` at this place."""
        return torch.Generator().manual_seed(self.integer(purpose))

    @contextlib.contextmanager
    def torch_default(self, purpose: str) -> Iterator[None]:
        """Run code that draws from PyTorch's default generator (module constructors, dropout) on this stream.

        The default generator is put back as it was, so nothing outside the block is affected.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.integer(purpose))
            yield
