"""The apps that Flower's own command line starts: ``flwr run .``, and SuperNodes in a deployment."""

from __future__ import annotations

import logging
import shlex
import sys

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedalign.errors import RunFailed, UserError
from fedalign.federation.client_app import make_client_app
from fedalign.site import open_node_site

client = make_client_app(open_node_site)
server = ServerApp()


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Run what the run configuration's ``overrides`` say on Flower's grid."""
    # A node imports this module at every message, and has no use for what writes and draws the report.
    from fedalign.run import start_on_grid

    log = _log_to_flower()
    try:
        start_on_grid(grid, context, shlex.split(str(context.run_config.get("overrides", ""))))
    except (UserError, RunFailed) as error:
        log.error("%s", " ".join(str(error).split()))
        raise


def _log_to_flower() -> logging.Logger:
    """Let fedalign's log go where Flower reads a ServerApp's output from."""
    log = logging.getLogger("fedalign")
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(logging.Formatter("fedalign %(levelname)s: %(message)s"))
    log.handlers = [handler]
    log.setLevel(logging.INFO)
    log.propagate = False
    return log
