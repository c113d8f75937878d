"""The server side of every method: one Flower ServerApp whose main function conducts a job."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedalign.federation.conductor import Conductor
from fedalign.federation.job import Job, Outcome


def make_server_app(make_job: Callable[[Mapping[str, Any]], Job], keep: Callable[[Outcome], None]) -> ServerApp:
    """Return the ServerApp that runs one job on whatever grid it is started with.

    Parameters
    ----------
    make_job : callable
        From Flower's run configuration to the job.
    keep : callable
        Receives the outcome when the last phase is done.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        keep(Conductor(make_job(context.run_config), grid).run())

    return app
