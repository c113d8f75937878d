"""Flower's own simulation runtime as an engine: one node a client, on Ray; the parity reference."""

from __future__ import annotations

import logging
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from flwr.serverapp import ServerApp
from pydantic import Field

from fedalign.engines.base import Engine
from fedalign.errors import RunFailed, UserError
from fedalign.federation.client_app import make_client_app
from fedalign.federation.site import OpenSite


@dataclass(frozen=True)
class Flower(Engine):
    """Settings of Flower's simulation engine.

    Parameters
    ----------
    name : str
    threads : int
        PyTorch threads of each worker.
    workers : int
        Ray actors; each takes one CPU.
    gpus_per_worker : float
        Share of a GPU that each worker gets.
    """

    name: str
    threads: Annotated[int, Field(ge=1)]
    workers: Annotated[int, Field(ge=1)]
    gpus_per_worker: Annotated[float, Field(ge=0)]

    def nodes(self, clients: int) -> int:
        """Return one node a client."""
        return clients

    def run(self, server_app: ServerApp, open_site: OpenSite, clients: int, state_path: Path) -> None:
        """Start Ray and run the apps in Flower's simulation runtime.

        Raises
        ------
        UserError
            If Ray is not installed.
        RunFailed
            If the runtime ends in an error that is not the run's own.
        """
        _quiet()
        try:
            import ray  # noqa: F401
        except ImportError as error:
            raise UserError("engine=flower needs Ray; pip install 'flwr[simulation]'") from error
        from flwr.simulation import run_simulation

        # Asking Ray for as many CPUs as there are workers keeps Flower from waiting for a pool that cannot be filled.
        resources = {"num_cpus": 1, "num_gpus": self.gpus_per_worker}
        init = {"num_cpus": self.workers, "include_dashboard": False, "log_to_driver": False}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                run_simulation(
                    server_app,
                    make_client_app(open_site, state_path),
                    num_supernodes=clients,
                    backend_config={"client_resources": resources, "init_args": init},  # type: ignore[dict-item]
                )
            except RuntimeError as error:
                if error.__cause__ is None:
                    raise
                raise RunFailed(f"Flower's simulation runtime failed: {error.__cause__}") from error


def _quiet() -> None:
    """Keep Flower from phoning home and from repeating its log lines through the root logger."""
    for key in ("FLWR_TELEMETRY_ENABLED", "RAY_USAGE_STATS_ENABLED"):
        os.environ.setdefault(key, "0")
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
    flower = logging.getLogger("flwr")
    flower.propagate = False
    flower.setLevel(logging.ERROR)
