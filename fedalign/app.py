"""The apps that Flower's own command line starts: ``flwr run .``, and SuperNodes in a deployment."""

from __future__ import annotations

import shlex

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedalign.federation.client_app import make_client_app
from fedalign.run import start_on_grid
from fedalign.site import open_node_site

client = make_client_app(open_node_site)
server = ServerApp()


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Run what the run configuration's ``overrides`` say on Flower's grid."""
    start_on_grid(grid, context, shlex.split(str(context.run_config.get("overrides", ""))))
