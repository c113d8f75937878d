"""Ray as an engine: long-lived workers that hold the data, many clients a call, and partial sums back."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from flwr.app import Context, RecordDict
from flwr.serverapp import ServerApp
from pydantic import Field

from fedalign.engines.allocator import keep_freed_memory
from fedalign.engines.base import Engine
from fedalign.errors import UserError
from fedalign.federation.client_app import make_client_app
from fedalign.federation.site import OpenSite


@dataclass(frozen=True)
class Ray(Engine):
    """Settings of the Ray engine.

    Parameters
    ----------
    name : str
    threads : int
        PyTorch threads of each worker.
    workers : int
        Processes that work for clients.
    cpus_per_worker, gpus_per_worker : float
        What Ray sets aside for each; several may share a GPU.
    clients_per_call : int
        Largest number of clients that a worker adds up before it replies.
    retries : int
        How often clients are sent to another worker after theirs died; the last time one by one.
    start_timeout : float
        Seconds to wait for the first worker.
    address : str or None
        Of a Ray cluster to join, or ``auto`` for the one on this machine; None starts Ray for this run.
    object_store_mb : int
        Size of the shared memory of a Ray of the run's own.
    """

    name: str
    threads: Annotated[int, Field(ge=1)]
    workers: Annotated[int, Field(ge=1)]
    cpus_per_worker: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    gpus_per_worker: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    clients_per_call: Annotated[int, Field(ge=1)]
    retries: Annotated[int, Field(ge=0)]
    start_timeout: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    address: str | None
    object_store_mb: Annotated[int, Field(ge=80)]

    def __post_init__(self) -> None:
        """Refuse what Ray does not hand out."""
        for key, share in (("cpus_per_worker", self.cpus_per_worker), ("gpus_per_worker", self.gpus_per_worker)):
            if share > 1 and share != int(share):
                raise UserError(
                    f"engine.{key}={share:g}: above 1, Ray sets aside whole ones only; choose a whole number"
                )

    def nodes(self, clients: int) -> int:
        """Return 1: one node hosts everybody, whoever works for it."""
        return 1

    def run(self, server_app: ServerApp, open_site: OpenSite, clients: int, state_path: Path) -> None:
        """Start or join Ray, and call the server app with a grid over its workers.

        Raises
        ------
        UserError
            If Ray is not installed, cannot be joined, or has not what the workers need.
        RunFailed
            If no worker can be started, or one cannot open the data.
        """
        try:
            import ray  # noqa: F401
        except ImportError as error:
            raise UserError("engine=ray needs Ray; pip install 'flwr[simulation]'") from error
        from fedalign.engines.ray_cluster import check_room
        from fedalign.engines.ray_grid import RayGrid
        from fedalign.engines.ray_pool import RayPool

        keep_freed_memory()
        with self._cluster():
            check_room(self.workers, self.cpus_per_worker, self.gpus_per_worker)
            pool = RayPool(
                open_site, self.workers, self.cpus_per_worker, self.gpus_per_worker, self.start_timeout, self.retries
            )
            try:
                node = Context(1, 1, node_config={}, state=RecordDict(), run_config={})
                app = make_client_app(open_site, state_path)
                grid = RayGrid(app, node, pool, self.workers, self.clients_per_call, self.retries)
                server_app(grid, Context(1, 0, node_config={}, state=RecordDict(), run_config={}))
            finally:
                pool.close()

    def _cluster(self) -> contextlib.AbstractContextManager[None]:
        import ray

        from fedalign.engines.ray_cluster import joined_cluster, own_cluster

        if ray.is_initialized():
            return contextlib.nullcontext()
        if self.address is not None:
            return joined_cluster(self.address)
        self._check_machine()
        return own_cluster(
            self.workers * self.cpus_per_worker, self.workers * self.gpus_per_worker, self.object_store_mb
        )

    def _check_machine(self) -> None:
        """Refuse to promise workers cores that are not there: they would take turns."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        if self.workers * self.cpus_per_worker > cores:
            raise UserError(
                f"engine.workers={self.workers} with engine.cpus_per_worker={self.cpus_per_worker:g}: this machine has "
                f"{cores} cores; lower one of them"
            )
