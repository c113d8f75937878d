"""Federations of real Flower processes on loopback, brought up by the same code as ``fedalign deploy --local``."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file

from fedalign.contribution import State
from fedalign.deployment.local import prepare_local
from fedalign.deployment.plan import Plan
from fedalign.deployment.running import RunningFederation

TINY = (
    "data.groups=5",
    "data.questions=40",
    "data.world_seed=3",
    "partition.unseen=2",
    "partition.min_questions=8",
    "encoder.size=32",
    "method.prior=none",
    "method.evaluation.draws=1",
    "method.evaluation.context_questions=6",
    "model.width=16",
    "model.layers=1",
    "model.heads=2",
    "method.local.steps=2",
    "method.episode.min_questions=3",
    "method.episode.max_questions=8",
    "federation.rounds=2",
    "federation.evaluate_every=9",
    "federation.checkpoint_every=1",
)
"""Three training clients, one a site, and two unseen ones; as few messages as two rounds allow."""

PATIENCE = 900.0
"""Seconds that a busy machine may take for anything here."""


@dataclass(frozen=True)
class Deployed:
    """A federation whose processes run.

    Parameters
    ----------
    running : RunningFederation
    plan : Plan
    run : Path
        Directory of the run that it was made for.
    """

    running: RunningFederation
    plan: Plan
    run: Path

    def log(self, name: str) -> str:
        """Return what a process has written so far: ``superlink``, ``run`` or a site."""
        return self.running.log(name)

    def wait_for_log(self, name: str, text: str, times: int = 1) -> None:
        """Wait until a process has written a text so many times."""
        wait_for(lambda: self.log(name).count(text) >= times, f"{times} x {text!r} in the log of {name}")

    def wait_for_checkpoint(self, number: int) -> None:
        """Wait until the run has a checkpoint of a round."""
        wanted = f'"round": {number}'

        def there() -> bool:
            path = self.run / "checkpoints" / "newest" / "checkpoint.json"
            with contextlib.suppress(OSError):
                return wanted in path.read_text()
            return False

        wait_for(there, f"a checkpoint of round {number}")

    def processes(self, name: str, program: str) -> list[int]:
        """Return the process ids of a program among those of the SuperLink or a site."""
        return [pid for pid in self.running.processes[name].members() if program in command_line(pid)]


@contextlib.contextmanager
def deployed(folder: Path, *overrides: str, sites: int = 3, start: int | None = None) -> Iterator[Deployed]:
    """Bring a federation up, with all sites or the first few, and take it down at the end."""
    scratch = folder / "parts"
    scratch.mkdir(parents=True)
    asked = [*(overrides or TINY), f"output={folder / 'run'}"]
    plan, run = prepare_local(asked, sites, folder / "federation", scratch)
    with RunningFederation(folder / "federation", plan.address) as running:
        running.start([site.name for site in plan.sites[:start]])
        yield Deployed(running, plan, run.path)


def wait_for(happened: Callable[[], bool], what: str) -> None:
    """Wait until something has happened."""
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < deadline, f"{what} did not come within {PATIENCE:g} s"
        time.sleep(0.2)


def command_line(pid: int) -> str:
    """Return how a process was called; nothing if it has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""


def state_of(run: Path, phase: str = "gpo") -> State:
    """Return the final state that a run left of a phase."""
    return load_file(run / "model" / f"{phase}.safetensors")
