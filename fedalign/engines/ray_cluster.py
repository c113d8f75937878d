"""The Ray that a run works on: one of its own that leaves nothing behind, or one that was there before."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import socket
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedalign.errors import RunFailed, UserError

_PREFIX = "fedalign-"
# Ray's sockets lie below its directory, and the path of a socket has at most 107 bytes.
_LONGEST = 12
_CONNECT_SECONDS = 10.0


@contextlib.contextmanager
def own_cluster(cpus: float, gpus: float, object_store_mb: int) -> Iterator[None]:
    """Start Ray for this process alone, and end it with all that it has written.

    Parameters
    ----------
    cpus, gpus : float
        What Ray is to hand out; of GPUs it has those of the machine.
    object_store_mb : int

    Raises
    ------
    RunFailed
        If Ray cannot be started.
    """
    import ray

    directory = own_directory()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        try:
            _init(
                address="local",
                num_cpus=max(1, math.ceil(cpus)),
                # Ray would believe in GPUs that it is told of; those that are there it finds itself.
                num_gpus=None if gpus else 0,
                object_store_memory=object_store_mb * 2**20,
                include_dashboard=False,
                _temp_dir=str(directory),
            )
        except (OSError, RuntimeError) as error:
            raise RunFailed(f"Ray cannot be started: {_first_line(error)}") from error
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def joined_cluster(address: str) -> Iterator[None]:
    """Connect to a Ray that runs, and leave it running.

    Raises
    ------
    UserError
        If there is none at ``address``.
    """
    import ray

    if address.startswith("ray://"):
        raise UserError(
            f"engine.address={address}: the run must itself be on a machine of the cluster; start it there with "
            "engine.address=auto"
        )
    try:
        if address != "auto":
            _check_listening(address)
        _init(address=address)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"engine.address={address}: no Ray to join ({_first_line(error)}); start one with 'ray start --head', or "
            "set engine.address=null"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_listening(address: str) -> None:
    """Refuse an address where nobody listens: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError("an address is auto or host:port")
    with socket.create_connection((host, int(port)), _CONNECT_SECONDS):
        pass


def check_room(workers: int, cpus: float, gpus: float) -> None:
    """Refuse more workers than the machines of a running Ray have room for, even if nobody else used them.

    Raises
    ------
    UserError
        Naming the settings.
    """
    import ray

    machines: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    nodes = [node["Resources"] for node in machines if node["Alive"]]
    room = sum(fitting(node.get("CPU", 0.0), node.get("GPU", 0.0), cpus, gpus) for node in nodes)
    if room < workers:
        total = {kind: sum(node.get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU")}
        raise UserError(
            f"engine.workers={workers} with {cpus:g} CPUs and {gpus:g} GPUs each: Ray has {total['CPU']:g} CPUs and "
            f"{total['GPU']:g} GPUs, room for {room:g}; lower engine.workers, engine.cpus_per_worker or "
            "engine.gpus_per_worker"
        )


def fitting(cpus: float, gpus: float, cpus_each: float, gpus_each: float) -> float:
    """Return how many workers a machine has room for."""
    # Fractions of a GPU are not spread over two; Ray counts in ten-thousandths.
    by_cpu = (cpus + 1e-6) // cpus_each if cpus_each else float("inf")
    if not gpus_each:
        return by_cpu
    by_gpu = gpus * (1.0001 // gpus_each) if gpus_each < 1 else (gpus + 1e-6) // gpus_each
    return min(by_cpu, by_gpu)


def _init(**options: Any) -> None:
    import ray

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ray.init(log_to_driver=False, configure_logging=False, **options)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def own_directory() -> Path:
    """Return a new directory whose name says which process it belongs to."""
    place = tempfile.gettempdir()
    parent = Path(place if len(place) <= _LONGEST else "/tmp")
    remove_left_behind(parent)
    return Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=parent))


def remove_left_behind(parent: Path) -> None:
    """Remove the directories of processes that were killed."""
    for old in parent.glob(f"{_PREFIX}*-*"):
        if _left_behind(old):
            shutil.rmtree(old, ignore_errors=True)


def _left_behind(directory: Path) -> bool:
    """Tell whether a directory is ours and the process that made it was killed."""
    number = directory.name.removeprefix(_PREFIX).split("-")[0]
    try:
        if not number.isdigit() or directory.stat().st_uid != os.getuid():
            return False
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False
